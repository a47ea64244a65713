r"""The game of DEAR: a bidirectional GAN whose prior is a structural causal model.

Data and model each have a joint law of a picture x, its causes pa and its code z,

    q(x, pa, z) = p_data(x) E(pa | x) E(z | x, pa)        labels that a row saw stand for E(pa | x)
    p(x, pa, z) = p_F(pa) N(z; 0, I) [x = G(z, pa)]       p_F the SCM of the causes

and KL(q || p) is to fall. A critic D that minimises E_q softplus(-D) + E_p softplus(D) is at its
best D = log q / p, and with it the gradient of KL(q || p) comes apart by player:

    encoders    grad E_q[ D(x, pa, z) ],            through the draws of pa and z
    generator   -grad E_p[ s D(G(z, pa), pa, z) ],  through x;  s = exp(D), kept within 1/c and c
    SCM         -E_q[ grad log p_F(pa) ]

The last is exact. (The paper's SCM has no density: there its gradient is the critic's, too, through
the draws of pa. Here each node has one, and the likelihood of what the encoder draws, or the row
saw, is the same gradient without the critic's noise, for categories as well.) Supervision is the
likelihood of the labels that were seen, under E(pa | x).

Beside the game stands the mechanism's `cycle` (x -> z -> x), which bounds what a critic of pairs
leaves free; with its weight at zero the game is the paper's. A penalty on the critic's slope at the
data (R1) keeps it from running ahead. (What else would seem to help, reading causes and code from
the model's own pictures, does not: the encoders then agree with a generator that is still wrong.)

Reference: Weakly Supervised Disentangled Generative Causal Representation Learning (Shen, Liu,
Dong, Lian, Chen and Zhang, 2022), https://arxiv.org/abs/2010.02637; the penalty: Which Training
Methods for GANs do actually Converge? (Mescheder, Geiger and Nowozin, 2018),
https://arxiv.org/abs/1801.04406
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjunctive.mechanism import Density, Mechanism, Parents
from subjunctive.mechanisms.gan import GAN
from subjunctive.mechanisms.gated import Gated, hold
from subjunctive.mechanisms.linear import context
from subjunctive.nn import MLP, Beside, ConvEncoder
from subjunctive.scm import SCM
from subjunctive.train import Objective, Player
from subjunctive.variable import Batch, Variable, known


def critic(
    variable: Variable,
    parents: Sequence[Variable],
    latent: int,
    widths: Sequence[int] | None = None,
    shuffle: int = 2,
) -> nn.Module:
    """Return a plain critic, called with x and the parents' matrix beside the code; `(B, 1)`.

    Args:
        variable, parents: the node's and its parents'.
        latent: the code's width.
        widths: of the convolutions, (16, 32, 64) by default, or of the hidden layers, (64, 64).
        shuffle: factor by which pixels are unshuffled before the first convolution.
    """
    beside = sum(p.width for p in parents) + latent
    if len(variable.shape) == 3:
        channels, height, width = variable.shape
        widths = tuple(widths or (16, 32, 64))
        features = 2 * widths[-1]
        looks = ConvEncoder(channels, (height, width), features, widths, shuffle, False)
        return Beside(nn.Sequential(looks, nn.SiLU()), MLP(features + beside, 1, (features,) * 2))
    hidden = (64, 64) if widths is None else tuple(widths)
    return Beside(nn.Flatten(), MLP(variable.width + beside, 1, hidden))


class Adversarial(Objective):
    """Train an SCM, one node of which is a `GAN`, by the game of DEAR.

    The other nodes need a density. Rows may miss labels that the model's encoder covers; they may
    not miss the GAN's node. Gates among the causes (`Gated`) pay a price an edge.

    Reference: Weakly Supervised Disentangled Generative Causal Representation Learning (Shen, Liu,
    Dong, Lian, Chen and Zhang, 2022), https://arxiv.org/abs/2010.02637

    Args:
        node: whose mechanism is a `GAN`.
        critic: called with x and parents' matrix and code, `(B, C + latent)`; gives one number a
            row. See `critic`.
        game: weight of what encoders and generator owe the critic.
        label: weight of the likelihood of labels under the encoder.
        penalty: of the critic's squared slope in x at the data, paid in every `lazy`-th step.
        clip: c; s = exp(D) is kept within 1/c and c.
        price: nats a row that an edge behind a gate must be worth.
        rest: steps at the start in which mechanisms learn under gates that do not.
        rate: learning rate of the critic; that of `fit` if None.

    Raises:
        ValueError: for weights that are negative or a clip below 1; and, in training, for a model
            that has no such node, or rows that miss it.

    Example:
        >>> from subjunctive.graph import Graph
        >>> from subjunctive.mechanisms import LinearGaussian
        >>> t, x = Variable("t"), Variable("x", (4,))
        >>> model = SCM(Graph.parse("t -> x"), {"t": LinearGaussian(t), "x": GAN(x, [t], 2)})
        >>> game = Adversarial("x", critic(x, [t], 2))
        >>> [player.name for player in game.players(model)]
        ['critic', 'model']
    """

    def __init__(
        self,
        node: str,
        critic: nn.Module,
        game: float = 1.0,
        label: float = 1.0,
        penalty: float = 1.0,
        lazy: int = 4,
        clip: float = 2.0,
        price: float = 0.02,
        rest: int = 200,
        rate: float | None = None,
    ) -> None:
        super().__init__()
        weights = {"game": game, "label": label, "penalty": penalty, "price": price}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"Adversarial needs {name} of at least 0, got {value}")
        if clip < 1 or lazy < 1:
            raise ValueError(f"Adversarial needs clip >= 1 and lazy >= 1, got {clip} and {lazy}")
        self.node, self.critic = node, critic
        self.game, self.label, self.penalty = game, label, penalty
        self.lazy, self.clip, self.price, self.rest, self.rate = lazy, clip, price, rest, rate

    def players(self, model: nn.Module) -> list[Player]:
        """Return the critic, then the model."""
        betas = (0.5, 0.99)
        return [
            Player("critic", self.critic.parameters(), lr=self.rate, betas=betas),
            Player("model", model.parameters(), betas=betas),
        ]

    def loss(self, model: nn.Module, batch: Batch, player: str, step: int) -> dict[str, Tensor]:
        """Return the player's terms, `(B,)` each."""
        scm, gan = self._fits(model)
        batch = scm.batch(batch)
        if self.node not in batch.values or not bool(batch.mask(self.node).all()):
            raise ValueError(f"Adversarial needs rows that saw {self.node!r}; not all did")
        hold(scm, step < self.rest)
        if player == "critic":
            with torch.no_grad():
                values = scm.complete(batch).values
                real = self._real(gan, values)
                fake, parents, z = self._fake(scm, gan, len(batch))
            return self._critic(gan, real, (fake, parents, z), step)
        return self._model(scm, gan, batch)

    def _critic(
        self, gan: GAN, real: tuple[Tensor, Parents, Tensor], fake: tuple[Tensor, Parents, Tensor],
        step: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        x, parents, z = real
        due = self.training and self.penalty > 0 and step % self.lazy == 0
        x = x.detach().requires_grad_(due)
        said = self._say(gan, x, parents, z)
        terms = {"true": F.softplus(-said), "false": F.softplus(self._say(gan, *fake))}
        if due:
            slope = torch.autograd.grad(said.sum(), x, create_graph=True)[0]
            size = slope.square().reshape(len(x), -1).sum(1)
            terms["slope"] = self.lazy * self.penalty / 2 * size
        return terms

    def _model(self, scm: SCM, gan: GAN, batch: Batch) -> dict[str, Tensor]:
        done = scm.complete(batch, reparametrised=True)
        x, parents, z = self._real(gan, done.values)
        fake, causes, code = self._fake(scm, gan, len(batch))
        score = self._say(gan, fake, causes, code)
        s = score.detach().exp().clamp(1 / self.clip, self.clip)
        terms = {
            "encoder": self.game * self._say(gan, x, parents, z),
            "generator": -self.game * s * score,
            f"{self.node}.cycle": gan.cycle * gan.missed(x, gan.generate(z, parents)),
        }
        price = [part.edges().sum() for part in scm.modules()
                 if isinstance(part, Gated) and part.raw is not None and not part.held]  # fmt: skip
        for name, value in done.values.items():
            if name in done.log_q:
                known_label = batch.mask(name) & done.ready
                terms[f"{name}.label"] = torch.where(
                    known_label, -self.label * done.log_q[name], 0.0
                )
            if name != self.node:
                own = self._density(scm, name)
                above = {p.name: done.values[p.name].detach() for p in own.parents}
                terms[f"{name}.prior"] = -own.log_prob(value.detach(), above)
        if price:
            terms["edges"] = (self.price * torch.stack(price).sum()).expand(len(batch))
        return terms

    def _real(self, gan: GAN, values: Parents) -> tuple[Tensor, Parents, Tensor]:
        """Return the data's pictures, their causes and their codes, drawn by the encoder."""
        x, parents = values[self.node], {p.name: values[p.name] for p in gan.parents}
        return x, parents, gan.posterior(x, parents).rsample()

    def _fake(self, scm: SCM, gan: GAN, rows: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the model's pictures, their causes, drawn from the SCM as numbers, and codes."""
        above = scm.ancestral([p.name for p in gan.parents]) if gan.parents else None
        causes: dict[str, Tensor] = {}
        if above is not None:
            with torch.no_grad():
                drawn = above.predict(above.noise(rows))
            causes = {n: above.variables[n].standardise(v) for n, v in drawn.items()}
        z = torch.randn(rows, gan.latent).to(gan.origin)
        return gan.generate(z, causes), causes, z

    def _say(self, gan: GAN, x: Tensor, parents: Parents, z: Tensor) -> Tensor:
        """Return D(x, pa, z), `(B,)`."""
        beside = torch.cat([context(gan, parents, len(x)), z], dim=1)
        said: Tensor = self.critic(x, beside)
        if said.numel() != len(x):
            raise ValueError(f"the critic gave {tuple(said.shape)}; it says one number a row, "
                             f"({len(x)}, 1)")  # fmt: skip
        return said.reshape(len(x)).float()

    def _density(self, scm: SCM, name: str) -> Density:
        own: Mechanism = scm.mechanisms[name]
        if not isinstance(own, Density):
            raise ValueError(
                f"{name!r} is a {type(own).__name__}, which has no density; beside the GAN of "
                f"{self.node!r} every node needs one"
            )
        return own

    def _fits(self, model: nn.Module) -> tuple[SCM, GAN]:
        if not isinstance(model, SCM):
            raise ValueError(f"Adversarial trains an SCM, got a {type(model).__name__}")
        known(self.node, model.graph.nodes, "Adversarial")
        gan = model.mechanisms[self.node]
        if not isinstance(gan, GAN):
            raise ValueError(f"Adversarial trains a GAN at {self.node!r}, which has a "
                             f"{type(gan).__name__}")  # fmt: skip
        return model, gan
