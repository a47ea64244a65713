import numpy as np
import pytest
import torch

from subjunctive.metrics.distance import changed, l1, l2, mae


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(2, 5, 3, 4, 4, generator=draw).unbind(0)


def test_distances_agree_with_numpy_norms() -> None:
    a, b = pair()
    difference = (a - b).numpy().reshape(5, -1)
    np.testing.assert_allclose(l1(a, b), np.linalg.norm(difference, 1, axis=1), rtol=1e-5)
    np.testing.assert_allclose(l2(a, b), np.linalg.norm(difference, axis=1), rtol=1e-5)
    np.testing.assert_allclose(mae(a, b), np.abs(difference).mean(1), rtol=1e-5)


def test_a_mask_without_channels_holds_for_every_channel_and_excludes_the_rest() -> None:
    a, b = pair()
    mask = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[2] = False
    found = mae(a, b, mask)
    assert bool(found[2].isnan())
    for row in (0, 1, 3, 4):
        at = mask[row].numpy()
        expected = np.abs((a - b)[row].numpy()[:, at]).mean()
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)
    spoilt = torch.where(mask[:, None], a, 99.0)
    torch.testing.assert_close(mae(spoilt, b, mask)[0], found[0])


def test_scalars_have_their_own_absolute_error() -> None:
    torch.testing.assert_close(
        mae(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 4.0])), torch.tensor([2.0, 1.0])
    )


def test_a_pixel_changes_if_any_of_its_channels_does() -> None:
    x = torch.zeros(1, 2, 2, 2)
    truth = x.clone()
    truth[0, 1, 0, 1], truth[0, 0, 1, 1] = 0.5, 0.01
    assert changed(truth, x, tolerance=0.02).tolist() == [[[False, True], [False, False]]]


def test_a_mask_of_another_shape_is_refused() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="mask"):
        mae(a, b, torch.ones(5, dtype=torch.bool))
