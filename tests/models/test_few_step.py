"""`distil`: the twin follows the teacher's road, and all else stays as it was."""

import copy

import pytest
import torch

from subjunctive.diffusion import DDIM
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import Consistency, LinearGaussian
from subjunctive.models import CausalDiffAE, distil, few
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.variable import Variable


def teacher(guidance=1.0):
    model, batch = CausalDiffAE.card.example()
    model.mechanisms["x"].guidance = guidance
    return model, batch


def test_two_jumps_follow_the_teachers_road_closer_than_its_own_two_steps(tmp_path):
    model, batch = teacher(guidance=1.5)
    before = copy.deepcopy(model.state_dict())
    twin = distil(
        *(model, batch), steps=2, edges=(0.0, 0.5), updates=200, batch_size=64, lr=2e-3,
        intervals=16, progress=False,
    )  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in twin.parameters())
    own, jumps = model.mechanisms["x"], twin.mechanisms["x"]
    schedule = own.denoiser.schedule
    parents = {p.name: p.standardise(batch.values[p.name]) for p in own.parents}
    with seeded(1):
        u = draw(jumps.prior(), 64)

    def road(steps):
        own.sampler = DDIM(schedule, steps, sigma_data=own.denoiser.sigma_data)
        return own({k: u[k] for k in ("code", "start")}, parents)

    with torch.no_grad():
        wanted = road(100)
        ours = (jumps.landed(u, parents) - wanted).square().mean()
        theirs = (road(2) - wanted).square().mean()
    assert float(ours) < 0.8 * float(theirs)
    answers = counterfactual(twin, batch, {"t": 3.0}, seed=0)
    again = counterfactual(load(save(twin, tmp_path / "twin") or tmp_path / "twin"), batch,
                           {"t": 3.0}, seed=0)  # fmt: skip
    assert torch.equal(answers["x"], again["x"])


def test_labels_graph_and_code_are_the_models_own():
    model, batch = teacher()
    twin = distil(model, None, updates=1, batch_size=32, progress=False)
    assert twin.graph == model.graph
    assert isinstance(twin.mechanisms["x"], Consistency)
    for name in ("t", "i", "k"):
        for a, b in zip(twin.mechanisms[name].parameters(), model.mechanisms[name].parameters(),
                        strict=True):  # fmt: skip
            assert torch.equal(a, b)
    code, mine = (m.mechanisms["x"] for m in (model, twin))
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(code.posterior(x)[0], mine.diffusion.posterior(x)[0])
    assert few(twin, 1.0, 0.4).mechanisms["x"].jumps.ways() == [(1.0, 0.0), (0.4, 0.0)]
    rows = counterfactual(twin, batch, {}, seed=0)
    torch.testing.assert_close(rows["x"], batch.values["x"], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_distilled_is_refused():
    model, batch = teacher()
    with pytest.raises(ValueError, match="one edge a step"):
        distil(model, batch, steps=3, edges=(0.0, 0.5))
    with pytest.raises(ValueError, match="one stop a step"):
        distil(model, batch, steps=3, stops=(1.0, 0.5))
    with pytest.raises(ValueError, match="one edge a step"):
        distil(model, batch, steps=0)
    plain = SCM(Graph.parse("t"), {"t": LinearGaussian(Variable("t"))})
    with pytest.raises(ValueError, match="one Diffusion mechanism; the model has none"):
        distil(plain)
    with pytest.raises(ValueError, match="at 't'"):
        distil(model, node="t")
    with pytest.raises(KeyError, match="Did you mean"):
        distil(model, node="xx")
