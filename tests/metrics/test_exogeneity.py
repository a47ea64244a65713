import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from subjunctive.metrics.exogeneity import PENALTIES, _out_of_fold, exogeneity, residual_share


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_independent_noise_passes_at_the_stated_level() -> None:
    draw = torch.Generator().manual_seed(0)
    wrong = []
    for seed in range(40):
        u, t = torch.randn(100, 5, generator=draw), torch.randn(100, generator=draw)
        leak = exogeneity(u, {"t": t}, permutations=39, seed=seed)[""].leaks["t"]
        wrong.append(leak.p_value <= 0.05)
    assert np.mean(wrong) < 0.05 + 4 * (0.05 * 0.95 / 40) ** 0.5


@pytest.mark.parametrize(
    "leaking",
    [
        lambda e, t: e + t[:, None],
        lambda e, t: e * torch.exp(0.7 * t)[:, None],
        lambda e, t: torch.stack([torch.cos(2 * t), torch.sin(2 * t)], 1) + 0.1 * e[:, :2],
    ],
    ids=["linear", "scale", "nonlinear"],
)
def test_a_residual_that_carries_the_parents_is_caught(leaking: object) -> None:
    t, e = normal(300), normal(300, 20, seed=1)
    u = leaking(e, t)  # type: ignore[operator]
    found = exogeneity({"residual": u, "other": e}, {"t": t, "s": normal(300, seed=2)})
    leak = found["residual"].leaks["t"]
    assert leak.value > 0.2 > leak.null
    assert leak.p_value < 0.02
    assert found["residual"].leaks["s"].value < 0.1
    assert found["other"].leaks["t"].value < 0.1


def test_the_r2_of_a_sum_is_its_share_of_variance() -> None:
    t, e = normal(2, 500, seed=3).unbind(0)
    leak = exogeneity(t + e, {"t": t}, permutations=20)[""].leaks["t"]
    assert leak.value == pytest.approx(0.5, abs=4 * leak.standard_error)
    assert leak.standard_error < 0.06


def test_predictions_out_of_fold_agree_with_scikit_learn() -> None:
    features, y = normal(60, 3, seed=4).double(), normal(60, 1, 2, seed=5).double()
    fold = torch.arange(60) % 3
    kernel = torch.exp(-torch.cdist(features, features).square())
    centre = torch.stack([y[fold != k].mean(0) for k in fold.tolist()])
    found = _out_of_fold(kernel, y, centre, fold)
    for k in range(3):
        held, kept = (fold == k).numpy(), (fold != k).numpy()
        inner = kernel.numpy()[np.ix_(kept, kept)]
        level = float(np.linalg.eigvalsh(inner).mean())
        mean = y.numpy()[kept].mean(0)
        for guess, penalty in zip(found, PENALTIES, strict=True):
            ridge = KernelRidge(alpha=penalty * level, kernel="precomputed")
            ridge.fit(inner, (y.numpy()[kept] - mean)[:, 0])
            expected = mean + ridge.predict(kernel.numpy()[np.ix_(held, kept)])[:, None]
            np.testing.assert_allclose(guess[fold == k].numpy(), expected, atol=1e-8)


def test_noise_that_does_not_follow_its_prior_is_caught() -> None:
    noise = {"right": normal(400, 2), "wide": 1.5 * normal(400, 2, seed=1)}
    prior = {"right": normal(400, 2, seed=2), "wide": normal(400, 2, seed=3)}
    found = exogeneity(noise, {}, prior)
    assert found["right"].fit.p_value > 0.05  # type: ignore[union-attr]
    assert found["wide"].fit.value > found["wide"].fit.null  # type: ignore[union-attr]
    assert found["wide"].variance == pytest.approx(2.25, rel=0.15)
    assert found["wide"].mean == pytest.approx(0.0, abs=0.2)


def test_parts_that_are_no_numbers_are_left_out_and_constants_refused() -> None:
    noise = {"index": torch.arange(40), "u": normal(40)}
    assert list(exogeneity(noise, {"t": normal(40, seed=1)}, permutations=5)) == ["u"]
    with pytest.raises(ValueError, match="'t' is constant"):
        exogeneity(noise, {"t": torch.ones(40)})
    with pytest.raises(ValueError, match="folds"):
        exogeneity(normal(10), {"t": normal(10, seed=1)})


def test_the_residual_share_is_the_sobol_total_index() -> None:
    a, r, again = normal(3, 20_000, seed=6).double().unbind(0)

    def x(r: torch.Tensor) -> torch.Tensor:  # an interaction counts for the total index
        return a + r + 2 * a * r

    found = residual_share(x(r), x(again))  # Var = 1 + 1 + 4; all but that of a hangs on r
    assert found.value == pytest.approx(5 / 6, abs=4 * found.standard_error + 0.02)
    assert found.standard_error < 0.05
