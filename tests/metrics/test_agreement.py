import torch
from torch import Tensor
from torch.distributions import Normal

from subjunctive.data.tabular import Linear
from subjunctive.graph import Graph
from subjunctive.mechanisms import Known, LinearGaussian
from subjunctive.metrics.agreement import agreement
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

T, Y = Variable("t", loc=1.0, scale=2.0), Variable("y", loc=5.0, scale=2.0)


def scm(shrink: float = 1.0, weight: float = 1.5) -> SCM:
    """y = w t + u, whose abduction may shrink u towards zero, as a posterior's mean does."""
    fn = lambda u, parents: weight * parents["t"] + u  # noqa: E731

    def inverse(x: Tensor, parents: dict[str, Tensor]) -> Tensor:
        return shrink * (x - weight * parents["t"])

    y = Known(Y, [T], fn, inverse, Normal(0.0, 1.0))
    return SCM(Graph.parse("t -> y"), {"t": LinearGaussian(T), "y": y})


def test_exact_abduction_agrees_on_the_models_own_samples() -> None:
    found = agreement(scm(), {"t": 2.0}, rows=400, seed=0)
    assert list(found) == ["y"]
    assert found["y"].p_value > 0.01


def test_the_mean_of_a_posterior_contradicts_the_model() -> None:
    found = agreement(scm(shrink=0.5), {"t": 2.0}, rows=400, seed=0)["y"]
    assert found.value > found.null
    assert found.p_value < 0.02


def test_on_data_a_wrong_equation_shows_as_noise_that_is_not_the_priors() -> None:
    rows = Batch(scm().sample(400, seed=1))
    targets = torch.full((400,), 2.0)
    right = agreement(scm(), {"t": targets}, rows, seed=0)["y"]
    wrong = agreement(scm(weight=-1.5), {"t": targets}, rows, seed=0)["y"]
    assert right.p_value > 0.01
    assert wrong.value > max(wrong.null, 5 * right.value)


def test_an_oracle_agrees_on_its_own_rows_and_the_users_generator_is_left_alone() -> None:
    data = Linear("a -> b -> c; a -> c", train=20, valid=2, test=20)
    before = torch.random.get_rng_state()
    found = agreement(data.oracle, {"a": 1.0}, rows=300, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert found == agreement(data.oracle, {"a": 1.0}, rows=300, seed=0)
    assert min(d.p_value for d in found.values()) > 0.01
