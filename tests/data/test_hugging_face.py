"""`Stream` and `fit` on the data sets of Hugging Face's own package, where it is installed."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from subjunctive.data.stream import SizedStream, Stream, fit_variables
from subjunctive.graph import Graph
from subjunctive.mechanisms import Categorical, LinearGaussian
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Variable

datasets = pytest.importorskip("datasets", reason="Hugging Face's package")

N = 300
ARM = Variable("arm", kind="categorical", categories=("placebo", "drug"))
NODES = [Variable("t"), ARM, Variable("y"), Variable("x", (1, 2, 2))]
GRAPH = Graph.parse("t -> arm; t, arm -> y; y -> x")


@pytest.fixture(scope="module")
def held():
    """Columns: y = 2 t + arm + 1 + noise, not seen in every fiftieth row; x repeats t."""
    make = np.random.default_rng(0)
    t, arm = make.normal(3, 1, N).astype(np.float32), make.integers(0, 2, N)
    y = 2 * t + arm + 1 + 0.1 * make.normal(size=N).astype(np.float32)
    columns = {"t": t.tolist(), "arm": [ARM.categories[a] for a in arm], "id": list(range(N))}
    columns["y"] = [None if i % 50 == 7 else float(v) for i, v in enumerate(y)]
    columns["x"] = [[[[v, v], [v, v]]] for v in t.tolist()]
    return columns


FORMS = {
    "as it comes": lambda d: d,
    "torch": lambda d: d.with_format("torch"),
    "numpy": lambda d: d.with_format("numpy"),
    "iterable": lambda d: d.to_iterable_dataset(),
    "labels": lambda d: d.cast_column("arm", datasets.ClassLabel(names=list(ARM.categories))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_row_comes_once_in_another_order_and_gaps_are_unseen(form, held):
    datasets.disable_progress_bars()
    stream = Stream(FORMS[form](datasets.Dataset.from_dict(held)), NODES, batch_size=50, seed=1)
    assert isinstance(stream, SizedStream) == (form != "iterable")
    whole = torch.tensor(held["t"])
    passes = []
    for _ in range(2):
        batches = list(stream)
        t = torch.cat([b.values["t"] for b in batches])
        assert torch.equal(t.sort().values, whole.sort().values)
        assert sum(int((~b.mask("y")).sum()) for b in batches) == N // 50
        for b in batches:
            assert torch.equal(b.values["x"][:, 0, 1, 1], b.values["t"])
        passes.append(t)
    assert not torch.equal(*passes)
    codes = Counter(int(c) for b in stream.once() for c in b.values["arm"])
    assert codes == Counter(ARM.categories.index(name) for name in held["arm"])


@pytest.mark.parametrize("form", ["as it comes", "iterable"])
def test_a_model_is_fitted_to_it(form, held):
    stream = Stream(FORMS[form](datasets.Dataset.from_dict(held)), NODES[:3], batch_size=50)
    v = fit_variables(stream, NODES[:3])
    y = np.array([math.nan if value is None else value for value in held["y"]])
    assert v["y"].loc == pytest.approx(np.nanmean(y), rel=1e-5)
    graph = GRAPH.subgraph([*v])
    model = SCM(
        graph,
        {
            "t": LinearGaussian(v["t"]),
            "arm": Categorical(v["arm"], [v["t"]]),
            "y": LinearGaussian(v["y"], [v["t"], v["arm"]]),
        },
    )
    done = fit(model, stream, steps=200, lr=0.1, progress=False)
    assert done.rows == 200 * 50
    low, high = (model.sample(1, do={"t": t, "arm": "drug"}, seed=0)["y"] for t in (2.0, 4.0))
    assert float(high - low) == pytest.approx(4.0, abs=0.1)
