import pytest
import torch

from subjunctive.metrics.disentangle import concentration, dci


def codes(n: int = 600, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_concentration_is_one_minus_the_entropy_in_the_base_of_its_columns() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    bits = torch.tensor([1.5, 0.0, 1.5849625])
    torch.testing.assert_close(concentration(weights), 1 - bits / 1.5849625)


def test_a_permuted_and_rescaled_copy_is_perfect() -> None:
    z = codes()
    found = dci(z, {"a": -3 * z[:, 2], "b": z[:, 0] ** 3, "c": 100 * z[:, 1]}, trees=20)
    assert found.disentanglement > 0.97
    assert found.completeness > 0.97
    assert min(found.informativeness.values()) > 0.9
    assert found.importance.argmax(0).tolist() == [2, 0, 1]


def test_a_rotation_is_informative_but_not_disentangled() -> None:
    z = codes()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))
    mixed = dci(z @ turn, {k: z[:, i] for i, k in enumerate("abc")}, trees=20)
    assert mixed.disentanglement < 0.6
    assert mixed.completeness < 0.6
    assert min(mixed.informativeness.values()) > 0.6


def test_a_factor_spread_over_two_codes_costs_completeness_alone() -> None:
    z = codes()
    factors = {"a": z[:, 0] + z[:, 1], "b": z[:, 2]}
    found = dci(z, factors, trees=20)
    assert found.disentanglement > 0.95
    assert found.completeness == pytest.approx(1 - 0.5 * 0.6309, abs=0.05)  # log 2 / log 3


def test_noise_informs_of_nothing_on_held_out_rows() -> None:
    z = codes()
    other = torch.randn(600, 2, generator=torch.Generator().manual_seed(8))
    found = dci(z, {"a": other[:, 0], "kind": (other[:, 1] > 0).long()}, trees=20)
    assert found.informativeness["a"] < 0.05
    assert 0.35 < found.informativeness["kind"] < 0.65


def test_rescaling_a_code_changes_nothing() -> None:
    z = codes(300)
    factors = {"a": z[:, 0] + 0.5 * z[:, 1], "b": z[:, 2]}
    scaled = dci(z * torch.tensor([1000.0, 1.0, 0.001]), factors, trees=10)
    torch.testing.assert_close(dci(z, factors, trees=10).importance, scaled.importance)


def test_one_factor_or_code_is_refused() -> None:
    z = codes()
    with pytest.raises(ValueError, match="at least two"):
        dci(z, {"a": z[:, 0]})
    with pytest.raises(ValueError, match="600 rows"):
        dci(z, {"a": z[:, 0], "b": z[:10, 0]})
