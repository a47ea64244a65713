import pytest
import torch

from subjunctive.data.pendulum import Pendulum
from subjunctive.metrics.trivial import Copy, CopyRescale, Retrieval
from subjunctive.scm import Model


class Data:
    """The pendulum, where the light counts as what scales the pixels."""

    def __init__(self) -> None:
        real = Pendulum(size=24, train=60, valid=2, test=20)
        self.graph, self.variables, self.oracle = real.graph, real.variables, real.oracle
        self.train, self.test = real.train, real.test


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


DO = {"angle": torch.linspace(-30, 30, 20)}


def test_all_but_the_image_is_the_truth(data: Data) -> None:
    truth = data.oracle.predict(data.oracle.abduct(data.test), DO)
    for model in (
        Copy(data, "image"),
        CopyRescale(data, "image", "light"),
        Retrieval(data, "image"),
    ):
        assert isinstance(model, Model)
        answer = model.predict(model.abduct(data.test), DO)
        for node in ("angle", "light", "length", "position"):
            assert torch.equal(answer[node], truth[node])
        sampled = model.predict(model.noise(5))
        assert sampled["image"].shape == (5, 3, 24, 24)


def test_a_copy_is_the_factual_and_a_copied_table_all_of_it(data: Data) -> None:
    model = Copy(data, "image")
    answer = model.predict(model.abduct(data.test), DO)
    assert torch.equal(answer["image"], data.test.values["image"])
    whole = Copy(data, *data.graph.nodes)
    answer = whole.predict(whole.abduct(data.test), DO)
    assert torch.equal(answer["angle"], DO["angle"])
    assert torch.equal(answer["length"], data.test.values["length"])


def test_rescaling_follows_the_ratio_within_the_range_of_pixels(data: Data) -> None:
    model = CopyRescale(data, "image", "light")
    factual = data.test.values
    answer = model.predict(model.abduct(data.test), {"light": 120.0})
    expected = torch.stack(
        [
            (x * 120 / light).clamp(0, 1)
            for x, light in zip(factual["image"], factual["light"], strict=True)
        ]
    )
    torch.testing.assert_close(answer["image"], expected)
    assert float(answer["image"].max()) == 1
    with pytest.raises(KeyError, match="unknown node 'lite'"):
        CopyRescale(data, "image", "lite")


def test_retrieval_finds_the_nearest_training_row_by_search(data: Data) -> None:
    model = Retrieval(data, "image")
    answer = model.predict(model.abduct(data.test), DO)
    names = ("angle", "light", "length", "position")
    for row in range(20):
        gap = [
            sum(
                ((data.train.values[n][k] - answer[n][row]) / data.variables[n].scale) ** 2
                for n in names
            )
            for k in range(60)
        ]
        best = int(torch.stack(gap).argmin())  # type: ignore[arg-type]
        assert torch.equal(answer["image"][row], data.train.values["image"][best])


def test_the_factual_is_remembered_by_row(data: Data) -> None:
    model = Copy(data, "image")
    noise = model.abduct(data.test[torch.tensor([3, 1])])
    assert torch.equal(noise["image"], data.test.values["image"][[3, 1]])
