"""Walks through the noise whose evenness is known."""

import pytest
import torch

from subjunctive.mechanism import seeded
from subjunctive.metrics.interpolation import interpolation, lerp, slerp, steps_between, uniformity


@pytest.fixture(autouse=True)
def same_draws():
    with seeded(0):
        yield


def starts(rows=40, width=6):
    return torch.randn(2, rows, width).double().unbind()


# Ways between ------------------------------------------------------------------------------------


def test_the_arc_keeps_the_length_and_turns_by_even_angles():
    a, b = starts()
    a, b = (5 * v / v.norm(dim=1, keepdim=True) for v in (a, b))
    points = torch.stack([slerp(a, b, k / 7) for k in range(8)])
    torch.testing.assert_close(points.norm(dim=2), torch.full((8, 40), 5.0).double())
    cosine = (points[1:] * points[:-1]).sum(2) / 25
    whole = torch.arccos((a * b).sum(1) / 25)
    torch.testing.assert_close(cosine.arccos(), whole.expand(7, 40) / 7)
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)


def test_parallel_starts_are_joined_by_a_line():
    a = torch.randn(5, 2, 3)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.25), 1.5 * a)


# How even ----------------------------------------------------------------------------------------


def test_a_linear_generator_is_even_along_lines_and_a_bent_one_is_not():
    (a, b), matrix = starts(), torch.randn(6, 9).double()
    straight = interpolation(lambda u: u @ matrix, a, b, 8, lerp)
    assert straight.istd.value < 1e-12
    assert straight.relative.value < 1e-12
    length = ((b - a) @ matrix).norm(dim=1)
    assert straight.length.value == pytest.approx(float(length.mean()))
    # walks of other lengths move at other speeds: even each, together not
    assert straight.uniformity.value == pytest.approx(
        float(length.mean() ** 2 / length.square().mean())
    )
    bent = interpolation(lambda u: (u @ matrix) ** 3, a, b, 8, lerp)
    assert bent.istd.value > 0.1 * bent.length.value / 8
    assert bent.relative.value > 0.1


def test_a_turn_of_the_sphere_is_even_along_arcs():
    a, b = (v / v.norm(dim=1, keepdim=True) for v in starts())
    turn = torch.linalg.qr(torch.randn(6, 6).double())[0]
    found = interpolation(lambda u: u @ turn, a, b, 8)
    assert found.relative.value < 1e-6
    assert interpolation(lambda u: u @ turn, a, b, 8, lerp).relative.value < 1e-12
    stretched = interpolation(lambda u: u @ (turn * torch.arange(1.0, 7.0)), a, b, 8)
    assert stretched.relative.value > 0.05


def test_a_jump_is_found_however_small_the_walk_and_scale_does_not_matter_to_the_relative_one():
    a, b = torch.zeros(3, 1).double(), torch.ones(3, 1).double()

    def leap(u):
        return (u > 0.45).double() + 1e-3 * u

    found = interpolation(leap, a, b, 10, lerp)
    # one step of 1 + 1e-4 and nine of 1e-4
    assert found.istd.value == pytest.approx(0.3, rel=1e-6)
    assert found.relative.value == pytest.approx(0.3 / 0.1001, rel=1e-6)
    small = interpolation(lambda u: leap(u) / 50, a, b, 10, lerp)
    assert small.istd.value == pytest.approx(found.istd.value / 50)
    assert small.relative.value == pytest.approx(found.relative.value)
    assert small.uniformity.value == pytest.approx(found.uniformity.value)


def test_noise_in_parts_walks_part_by_part_and_rows_stay_in_their_place():
    (a, b), (c, d) = starts(5, 2), starts(5, 3)
    offset = 100 * torch.arange(5.0)[:, None]  # what a row's parents add
    moved = steps_between(
        lambda u: torch.cat([u["code"], u["start"]], 1) + offset,
        {"code": a, "start": c}, {"code": b, "start": d}, 4, lerp,
    )  # fmt: skip
    exact = torch.cat([b - a, d - c], 1).norm(dim=1) / 4
    torch.testing.assert_close(moved, exact[:, None].expand(5, 4))


def test_the_error_of_the_uniformity_is_its_spread_over_samples():
    drawn = torch.rand(400, 50, 4).double() + torch.rand(400, 50, 1)
    found = [uniformity(moved) for moved in drawn]
    spread = torch.tensor([f.value for f in found]).std()
    typical = torch.tensor([f.standard_error for f in found]).mean()
    assert float(typical / spread) == pytest.approx(1, abs=0.15)


def test_errors_teach():
    a, b = starts()
    with pytest.raises(ValueError, match="steps=1"):
        interpolation(lambda u: u, a, b, 1)
    with pytest.raises(ValueError, match="no walk moves"):
        interpolation(torch.zeros_like, a, b, 4)
