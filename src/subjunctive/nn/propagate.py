r"""A condition that travels over a network of genes before it reaches them.

A knock-out is a mark at a node, k in {0, 1}^N. Over a network of signed arrows A, A[i, j] that of
i -> j, scaled so that what arrives at a node sums to at most one, every node carries numbers

    h_0 = k s,    h_{l+1} = h_0 + tanh(A^T h_l W)

where s and W are learned. There is no bias: what no mark reaches stays at zero. A gene's output is

    F_g = (1 - q_g) f_g(x) + q_g f'(x_g, f_g(x), h_g),    q_g = tanh(<h_g, w>)^2

with f a network of all genes and f' a small one that is *the same for all genes*, as s, W and w are:
what was never knocked out in training is silenced as the others are, and reaches the genes downstream
by the same rule. f is given, beside x, a table's row for the condition, one number a gene, which fits
the conditions that were seen more closely (`own`). In half of the rows of training it is withheld, so
that f also learns to do without; the row of a condition that was never seen stays zero, the same.
"""  # noqa: E501

from __future__ import annotations

import torch
from torch import Tensor, nn

from subjunctive.nn.mlp import MLP
from subjunctive.nn.residual import Residual
from subjunctive.nn.unet import Sines


class Propagate(nn.Module):
    """Turn a condition's one-hot columns into numbers a gene, over a network.

    Args:
        marks: `(K, N)`, which of the network's nodes each condition touches, and how much.
        network: signed arrows `(N, N)`; `network[i, j]` is i -> j.
        genes: the nodes that are measured, in the data's order.
        depth: how many arrows an effect can follow.
        width: numbers a node carries.

    Raises:
        ValueError: if marks and network do not go together, or a gene is no node.

    Example:
        >>> chain = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
        >>> marks = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # nothing; the second node
        >>> reached = Propagate(marks, chain, [0, 1, 2])(torch.eye(2)) != 0  # (2, 3, 8)
        >>> reached.all(2).tolist()
        [[False, False, False], [False, True, True]]
    """

    arrows: Tensor
    touched: Tensor

    def __init__(
        self,
        marks: Tensor,
        network: Tensor,
        genes: list[int],
        depth: int = 3,
        width: int = 8,
    ) -> None:
        super().__init__()
        nodes = marks.shape[-1]
        if marks.dim() != 2 or tuple(network.shape) != (nodes, nodes):
            raise ValueError(
                f"Propagate has marks {tuple(marks.shape)} and a network {tuple(network.shape)}; "
                "give marks (K, N) and a network (N, N) of the same N nodes"
            )
        if not genes or min(genes) < 0 or max(genes) >= nodes or depth < 1:
            raise ValueError(
                f"Propagate reads {len(genes)} genes of {nodes} nodes, with depth {depth}; give "
                "numbers of nodes, at least one, and a depth of at least 1"
            )
        self.marks, self.network, self.genes = marks, network, list(genes)
        self.depth, self.width = depth, width
        total = network.abs().sum(0).clamp(min=1.0)  # of what arrives at a node
        self.register_buffer("arrows", (network / total).T.contiguous(), persistent=False)
        self.register_buffer("touched", marks.clone(), persistent=False)
        self.start = nn.Parameter(torch.randn(width))
        self.hop = nn.Linear(width, width, bias=False)

    def effects(self) -> Tensor:
        """Return what every condition brings to every gene, `(K, G, width)`."""
        first = self.touched[:, :, None] * self.start
        h = first
        for _ in range(self.depth):
            h = first + torch.tanh(self.arrows @ self.hop(h))
        return h[:, self.genes]

    def forward(self, one_hot: Tensor) -> Tensor:
        """Map conditions `(B, K)` to what they bring to genes, `(B, G, width)`."""
        return torch.einsum("bk,kgw->bgw", one_hot, self.effects().to(one_hot.dtype))


class Knocked(nn.Module):
    """A denoiser's network of genes, under knock-outs that travelled to them.

    Args:
        genes: how many.
        condition: the width of the condition as it is given.
        propagate: of the condition's first columns; None where nothing is knocked out.
        width, blocks: of the residual network of all genes.
        own: whether that network reads a table of the conditions that were seen.

    Raises:
        ValueError: when it is called with a condition of another width.

    Example:
        >>> network = Knocked(3, condition=1, width=8)
        >>> network(torch.ones(5, 3), torch.zeros(5), torch.ones(5, 1)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        genes: int,
        condition: int,
        propagate: Propagate | None = None,
        width: int = 128,
        blocks: int = 2,
        own: bool = True,
    ) -> None:
        super().__init__()
        self.genes, self.condition, self.propagate = genes, condition, propagate
        self.width, self.blocks, self.own = width, blocks, own
        self.taken, inputs = 0, genes
        self.sines = Sines(32)
        if propagate is not None:
            self.taken, carried = len(propagate.marks), propagate.width
            self.gate = nn.Parameter(torch.randn(carried) / carried**0.5)
            self.level = nn.Linear(32, 4)  # of the noise, as the small network sees it
            self.local = MLP(carried + 6, 1, hidden=(32,))
            if own:
                inputs = 2 * genes
                self.table = nn.Parameter(torch.zeros(self.taken, genes))
        self.embed = nn.Sequential(
            nn.Linear(32 + condition - self.taken, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.network = Residual(inputs, genes, width, width, blocks, image=False)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """Map noisy rows `(B, G)`, noise levels `(B,)` and conditions `(B, F)` to rows."""
        if condition.shape[-1] != self.condition:
            raise ValueError(
                f"Knocked was built with condition={self.condition} and got one of width "
                f"{condition.shape[-1]}; build it with condition={condition.shape[-1]}"
            )
        condition, waves = condition.to(x), self.sines(noise.to(x))
        e = self.embed(torch.cat([waves, condition[:, self.taken :]], 1))
        if self.propagate is None:
            y: Tensor = self.network(x, e)
            return y
        h, seen = self.propagate(condition[:, : self.taken]), x
        if self.own:
            row = condition[:, : self.taken] @ self.table
            if self.training:
                row = row * (torch.rand_like(row[:, :1]) < 0.5)
            seen = torch.cat([x, row], 1)
        y = self.network(seen, e)
        level = self.level(waves)[:, None].expand(-1, self.genes, -1)
        q = torch.tanh(h @ self.gate).square()
        near: Tensor = self.local(torch.cat([x[:, :, None], y[:, :, None], h, level], 2))[:, :, 0]
        return y + q * (near - y)


class Expressed(nn.Module):
    """Logits of every gene's being expressed, from all genes' values.

    A line in each gene's own value, and a residual network of all of them. What was done to the
    cell reaches the mask through its values alone.

    Args:
        genes: how many.
        width: of the residual network.

    Example:
        >>> Expressed(3)(torch.ones(5, 3), torch.zeros(5, 0)).shape
        torch.Size([5, 3])
    """

    def __init__(self, genes: int, width: int = 64) -> None:
        super().__init__()
        self.genes, self.width = genes, width
        self.slope = nn.Parameter(torch.full((genes,), 4.0))
        self.bias = nn.Parameter(torch.zeros(genes))
        self.network = Residual(genes, genes, 0, width, 1, image=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map values `(B, G)` above zero to logits `(B, G)`; the condition is not read."""
        rest: Tensor = self.network(x, condition)
        return self.slope * x + self.bias + rest
