"""The mask of silent genes against masks that are known."""

import pytest
import torch
from torch import nn

from subjunctive.graph import Graph
from subjunctive.mechanism import draw
from subjunctive.mechanisms import LinearGaussian, Silent
from subjunctive.nn import Expressed
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Batch, Variable

X = Variable("x", (2,), loc=1.0, scale=0.5)


class Odds(nn.Module):
    """The same logit whatever the values."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, y, condition):
        return torch.full_like(y, self.logit)


def test_values_are_zero_as_often_as_the_mask_says_and_else_untouched():
    inner = LinearGaussian.of(X, bias=2.0, scale=0.1)
    silent = Silent(inner, Odds(1.0))
    u = draw(silent.prior(), 4000)
    x = silent(u, {})
    zero = X.restore(x) == 0
    assert float(zero.float().mean()) == pytest.approx(1 - 1 / (1 + 2.71828**-1), abs=0.03)
    assert torch.equal(x[~zero], inner(u["values"], {})[~zero])


def test_abducted_masks_follow_the_truncated_logistic():
    silent = Silent(LinearGaussian.of(X, bias=2.0), Odds(1.0))
    x = X.standardise(torch.tensor([[0.0, 1.5]])).expand(5000, 2)
    v = silent.abduct(x, {})["mask"]
    assert bool((v[:, 0] <= -1).all())
    assert bool((v[:, 1] > -1).all())
    for column, low, high in ((v[:, 0], 0.0, 0.268941), (v[:, 1], 0.268941, 1.0)):
        share = (column.sigmoid() - low) / (high - low)  # uniform
        assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(share.var()) == pytest.approx(1 / 12, abs=0.01)
    assert torch.allclose(silent(silent.abduct(x, {}), {}), x, atol=1e-6)


def test_an_expressed_gene_is_never_negative():
    silent = Silent(LinearGaussian.of(X, bias=-9.0), Odds(50.0))
    assert bool((X.restore(silent(draw(silent.prior(), 50), {})) > 0).all())


def test_the_mask_learns_what_is_zero():
    node = Variable("x", (2,))
    on = torch.rand(3000, 2) < torch.tensor([0.2, 0.7])
    rows = torch.where(on, 2 + 0.2 * torch.randn(3000, 2), 0.0)
    silent = Silent(LinearGaussian(node), Expressed(2, width=8), jitter=0.3)
    model = SCM(Graph.parse("x"), {"x": silent})
    fit(model, Batch({"x": rows}), steps=200, batch_size=500, lr=3e-2, ema=0.9, progress=False)
    up = silent.logits(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), {})
    assert bool((up[0] > 2).all())
    assert bool((up[1] < -2).all())


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="Silent needs a vector of numbers; 'x' is continuous"):
        Silent(LinearGaussian(Variable("x")), Odds(0.0))
    with pytest.raises(ValueError, match="Silent has jitter=0; a standard deviation is positive"):
        Silent(LinearGaussian(X), Odds(0.0), jitter=0)
    silent = Silent(LinearGaussian(X), Odds(0.0))
    with pytest.raises(ValueError, match="'x' has values below zero, -1 standardised for one"):
        silent.abduct(torch.tensor([[-3.0, 0.0]]), {})
