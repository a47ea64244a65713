"""How far an answer lies from the truth, row by row.

    MAE = mean_j |x_j - x*_j|,     L1 = sum_j |x_j - x*_j|,     L2 = (sum_j (x_j - x*_j)^2)^1/2,

over all entries j, or over those that a mask names: the pixels that truly change,
`|x*_j - x_j| > tolerance`, or a region of the picture. Most pixels of most pictures do not change
under most interventions: over all of them a copy of the factual looks good.
"""

from __future__ import annotations

from torch import Tensor


def _entries(difference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return masked entries `(B, D)`, zero where left out, and how many count, `(B,)`."""
    flat = difference.reshape(len(difference), -1)
    if mask is None:
        return flat, flat.new_full((len(flat),), flat.shape[1])
    if mask.dim() == difference.dim() - 1:
        mask = mask[:, None]
    if mask.dim() != difference.dim():
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; values of shape {tuple(difference.shape)} "
            "need the same, or one without channels"
        )
    mask = mask.expand_as(difference).reshape(len(flat), -1)
    return flat * mask, mask.sum(1).to(flat.dtype)


def mae(answer: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean absolute error a row, `(B,)`; NaN where the mask leaves nothing.

    Args:
        answer, truth: `(B, *shape)`, in the same unit.
        mask: boolean, of the same shape, or `(B, H, W)` for every channel alike.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> mae(x, y), mae(x, y, changed(y, x))
        (tensor([0.2500]), tensor([1.]))
    """
    entries, count = _entries((answer - truth).abs(), mask)
    return entries.sum(1) / count


def l1(answer: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the sum of absolute errors a row, `(B,)`."""
    return _entries((answer - truth).abs(), mask)[0].sum(1)


def l2(answer: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the Euclidean distance a row, `(B,)`."""
    return _entries((answer - truth).square(), mask)[0].sum(1).sqrt()


def wrong(answer: Tensor, truth: Tensor) -> Tensor:
    """Return 1 for rows whose category is not the true one, else 0, `(B,)`."""
    return (answer != truth).double()


def changed(truth: Tensor, factual: Tensor, tolerance: float = 0.02) -> Tensor:
    """Return which pixels truly change in any channel, boolean `(B, H, W)` (or `(B,)`, `(B, D)`).

    Args:
        truth: the true counterfactual, `(B, C, H, W)`.
        factual: of the same shape.
        tolerance: how small a change counts as none; 0.02 is 5 of 255.
    """
    moved = (truth - factual).abs() > tolerance
    return moved.any(1) if moved.dim() == 4 else moved
