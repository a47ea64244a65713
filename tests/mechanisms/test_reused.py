"""Encoder reuse: nothing reused is nothing changed, what runs when, and the way back."""

import pytest
import torch

from subjunctive.diffusion import DDIM, Ancestral, Cosine, Denoiser, Heun, Multistep
from subjunctive.diffusion.reuse import Run, decode, encode, indices
from subjunctive.graph import Graph
from subjunctive.mechanism import draw, seeded
from subjunctive.mechanisms import VAE, LinearGaussian, Reused
from subjunctive.mechanisms.diffusion import Diffusion, condition_width
from subjunctive.mechanisms.linear import stirred
from subjunctive.nn import UNet
from subjunctive.scm import SCM
from subjunctive.store import load, save
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X, T = Variable("x", (1, 8, 8)), Variable("t")
ROUGH = Cosine(0.05)  # the last step is not so long that little training shows


def unet(**options):
    with seeded(0):
        return stirred(UNet(1, width=8, **options))


def build(sampler, guidance=1.0, target="clean"):
    schedule = Cosine() if sampler is None else sampler.schedule
    with seeded(0):
        network = UNet(1, condition=condition_width([T], 0), width=8, multipliers=(1, 2))
        denoiser = Denoiser(network, schedule, target)
        return Diffusion(X, [T], denoiser, sampler=sampler, guidance=guidance, anchor=0.0)


def inputs(mechanism, rows=6):
    return draw(mechanism.prior(), rows), {"t": torch.randn(rows)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"condition": 3, "layout": True, "size": 8, "modulating": 1, "multipliers": (1, 2)},
        {"blocks": (0, 1), "attention": False, "unshuffle": 1, "outputs": 2, "multipliers": (1, 2)},
    ],
    ids=["plain", "layout", "light"],
)
def test_encoder_and_decoder_make_the_network(options):
    network = unet(**options)
    x, noise = torch.randn(3, 1, 8, 8), torch.randn(3)
    condition = torch.randn(3, 3) if options.get("condition") else None
    features = encode(network, x, noise, condition)
    assert torch.equal(decode(network, features, noise, condition), network(x, noise, condition))
    later, other = network(x, noise + 1, condition), decode(network, features, noise + 1, condition)
    assert torch.allclose(other, later) == (options.get("blocks") == (0, 1))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("target", ["clean", "noise", "velocity", "edm"])
@pytest.mark.parametrize("sampler", [DDIM(Cosine(), 5), DDIM(Cosine(), 5, 0.5), Heun(Cosine(), 4)])
def test_with_every_step_a_key_nothing_changes(sampler, target, guidance):
    whole = stirred(build(sampler, guidance, target))
    u, parents = inputs(whole)
    assert torch.equal(Reused(whole, keys=1)(u, parents), whole(u, parents))
    assert not torch.allclose(Reused(whole, keys=2)(u, parents), whole(u, parents))


@pytest.mark.parametrize(("keys", "encoded"), [(3, 3), ((0, 1, 2, 5), 4), ((0,), 1)])
def test_the_encoder_runs_at_keys_and_the_decoder_at_all(keys, encoded):
    whole, calls = build(DDIM(Cosine(), 7)), {"stem": 0, "head": 0}
    for name in calls:
        part = getattr(whole.denoiser.network, name)
        part.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    Reused(whole, keys)(*inputs(whole))
    assert calls == {"stem": encoded, "head": 7}


def test_between_keys_features_are_the_last_keys(monkeypatch):
    whole = stirred(build(DDIM(Cosine(), 4), target="velocity"))
    u, parents = inputs(whole)
    network, denoiser = whole.denoiser.network, whole.denoiser
    there = whole.condition(parents, None, torch.ones(6, 1))
    levels, x = whole.sampler.levels(), u["start"] * whole.sampler.levels()[0].scale
    for i in range(4):
        t, s = levels[i], levels[i + 1]
        at = torch.full((6,), t.t)
        noise = denoiser.schedule.log_snr(at) / 4
        c_in, c_skip, c_out = (c[:, None, None, None] for c in denoiser.coefficients(at))
        if i in (0, 3):
            features = encode(network, c_in * x, noise, there)
        d = c_skip * x + c_out * decode(network, features, noise, there)
        a = s.sigma / t.sigma
        x = a * x + (s.alpha - a * t.alpha) * d
    found = Reused(whole, keys=(0, 3))(u, parents)
    torch.testing.assert_close(found, x / levels[-1].alpha, rtol=0, atol=1e-5)


def test_runs_share_nothing():
    """Another run in between, of as many rows, changes no answer; nor does its own direction."""
    whole = stirred(build(DDIM(Cosine(), 6)))
    levels = whole.sampler.levels()
    parents, run = inputs(whole)[1], []
    for _ in range(2):
        run.append(Run(whole.denoiser, [level.t for level in levels], [0, 3]))
    there = whole.condition(parents, None, torch.ones(6, 1))
    x, y = torch.randn(2, 6, 1, 8, 8)
    alone = [level.denoise(lambda x, t: run[0](x, t, there), x) for level in levels[:3]]
    for level, expected in zip(levels[:3], alone, strict=True):
        assert torch.equal(level.denoise(lambda x, t: run[1](x, t, there), x), expected)
        level.denoise(lambda x, t: run[0](x, t, there), y)
    first = levels[0].denoise(lambda x, t: run[1](x, t, there), y)
    assert torch.equal(first, levels[0].denoise(lambda x, t: whole.denoiser(x, t, there), y))


@pytest.fixture(scope="module")
def trained():
    """A mechanism that has learned smooth pictures a little: stirred weights denoise nothing."""
    with seeded(0):
        x = torch.randn(256, 1, 8, 8).cumsum(2).cumsum(3)
        x = x / x.std()
        rows = Batch({"x": x, "t": x.mean((1, 2, 3))})
    image = build(DDIM(ROUGH))
    model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(T), "x": image})
    fit(model, rows, steps=80, batch_size=32, lr=5e-3, seed=0, progress=False)
    return image.eval(), rows[:16]


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(ROUGH, 12, refine=60),
        Heun(ROUGH, 8, refine=60),
        DDIM(ROUGH, 12, eta=1.0),
        Ancestral(ROUGH, 12),
    ],
    ids=["DDIM", "Heun", "stochastic", "Ancestral"],
)
def test_what_was_seen_comes_back(trained, sampler):
    image, rows = trained
    image.sampler = sampler
    fast, (x, t) = Reused(image, keys=3), (rows.values["x"], rows.values["t"])
    with torch.no_grad():
        u = fast.abduct(x, {"t": t})
        assert (fast(u, {"t": t}) - x).abs().max() < 1e-4
        if "steps" not in u:  # undone as if nothing were reused, it would not come back
            assert (fast(image.abduct(x, {"t": t}), {"t": t}) - x).abs().max() > 1e-3


def test_it_is_saved_and_shares_its_weights(tmp_path):
    whole = stirred(build(DDIM(Cosine(), 6)))
    fast = Reused(whole, keys=[0, 2])
    assert {id(p) for p in fast.parameters()} == {id(p) for p in whole.parameters()}
    save(fast, tmp_path / "m")
    again, (u, parents) = load(tmp_path / "m"), inputs(whole)
    assert again.keys == (0, 2)
    assert torch.equal(again(u, parents), fast(u, parents))
    with seeded(1):
        terms = fast.loss(torch.randn(4, 1, 8, 8), {"t": torch.zeros(4)})
    with seeded(1):
        own = whole.loss(torch.randn(4, 1, 8, 8), {"t": torch.zeros(4)})
    assert all(torch.equal(terms[k], own[k]) for k in own)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"VAE has the network NoneType and the sampler NoneType"):
        Reused(VAE(Variable("y", (3,))))
    with pytest.raises(ValueError, match="the sampler NoneType; reuse needs a denoiser of a UNet"):
        Reused(build(None))
    with pytest.raises(ValueError, match="the sampler Multistep; reuse needs"):
        Reused(build(Multistep(Cosine(), 5)))
    for keys in (0, -1, (), (1, 2), (0, 5), (0, 2, 2)):
        with pytest.raises(ValueError, match="are no keys among 5 levels: give their"):
            Reused(build(DDIM(Cosine(), 5)), keys)
    assert indices([0, 4], 5) == [0, 4]
