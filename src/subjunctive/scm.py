"""A structural causal model: a graph, a mechanism for every node, and what explains the unseen.

    x_i = f_i(u_i, x_pa(i)),     u_i ~ p(u_i) independent,     i in topological order.

`predict` runs the equations on the *values* of the parents, so that an effect travels along every
path; `abduct` draws u ~ p(u | evidence). The evidence may miss any value in any row. A missing
value is drawn in topological order: from the encoder, q(missing | seen, mask), where it covers the
node; from the node's own mechanism where nothing below it was seen, which is exact. Noise then
follows from each mechanism's own `abduct`.

The SCM standardises at its border only: users give and get their own units, mechanisms see
standardised values, and `log_prob` carries the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from subjunctive.completion import Completion, Encoder, complete
from subjunctive.graph import Graph
from subjunctive.intervention import act, as_do
from subjunctive.mechanism import Density, Mechanism, Noise, draw, evaluating, seeded, where
from subjunctive.variable import Batch, Variable, known


@runtime_checkable
class Model(Protocol):
    """What a query needs: an SCM has it, and so may a joint flow or a simulator."""

    graph: Graph
    variables: dict[str, Variable]

    def noise(self, n: int) -> Noise:
        """Draw n rows of exogenous noise."""
        ...

    def abduct(self, evidence: Any) -> Noise:
        """Draw one noise a row of the evidence, from p(u | evidence)."""
        ...

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Compute every node, in the user's units, under interventions."""
        ...


class SCM(nn.Module):
    """A structural causal model over a directed acyclic graph.

    Args:
        graph: a DAG; a bidirected edge must be made an explicit latent root (`graph.canonical()`).
        mechanisms: node -> mechanism, built from the node's and its parents' `Variable`s.
        encoder: q(missing values | seen values), needed where a node is unseen above a seen one.

    Raises:
        ValueError: if graph and mechanisms do not fit each other.

    Reference: Causality (Pearl, 2009), chapter 7.

    Example:
        >>> from subjunctive.mechanisms.linear import LinearGaussian
        >>> t, y = Variable("t"), Variable("y", loc=10.0, scale=2.0)
        >>> mechanisms = {"t": LinearGaussian(t), "y": LinearGaussian(y, [t])}
        >>> model = SCM(Graph.parse("t -> y"), mechanisms)
        >>> model.sample(5, seed=0)["y"].shape
        torch.Size([5])
    """

    origin: Tensor

    def __init__(
        self, graph: Graph, mechanisms: Mapping[str, Mechanism], encoder: Encoder | None = None
    ) -> None:
        super().__init__()
        if not graph.is_dag:
            raise ValueError(
                "an SCM needs a DAG; this graph has undetermined or bidirected edges: "
                "orient them, or make a bidirected edge a latent root (graph.canonical())"
            )
        self.graph, self.encoder = graph, encoder
        self.variables = _check(graph, mechanisms)
        self.modules_in_order = nn.ModuleList([mechanisms[n] for n in graph.nodes])
        self.register_buffer("origin", torch.zeros(()), persistent=False)
        if encoder is not None:
            for name in (*encoder.nodes, *encoder.inputs):
                known(name, graph.nodes, "the encoder")

    @property
    def mechanisms(self) -> dict[str, Mechanism]:
        """Node -> mechanism; any name will do, `type` and `pH.1` too."""
        pairs = zip(self.graph.nodes, self.modules_in_order, strict=True)
        return {name: module for name, module in pairs}  # type: ignore[misc]

    @property
    def parts(self) -> list[nn.Module]:
        """What has losses of its own: each mechanism, and the encoder."""
        return [*self.modules_in_order, *([] if self.encoder is None else [self.encoder])]

    def batch(self, data: Any) -> Batch:
        """Check rows of evidence and bring them to this model's device and dtype.

        Raises:
            KeyError: for an unknown node. ValueError: for a wrong shape or kind, or a seen value
                that is not finite.
        """
        batch = Batch.of(data, list(self.variables.values())).to(self.origin.device)
        values = dict(batch.values)
        for name, value in batch.values.items():
            known(name, self.variables, "evidence")
            variable = self.variables[name]
            if tuple(value.shape[1:]) != variable.shape:
                raise ValueError(
                    f"evidence gives {name!r} values of shape {tuple(value.shape[1:])}; "
                    f"it has {variable.shape}, batch first"
                )
            if variable.discrete:
                value = variable.encode(torch.where(batch.mask(name), value, 0))
            else:
                value = value.to(self.origin.dtype)
                seen = value[batch.seen[name]] if name in batch.seen else value
                if not bool(torch.isfinite(seen).all()):
                    raise ValueError(
                        f"{name!r} has NaN or infinite values in rows that are not declared "
                        "missing; mask them: Batch(values, seen={...})"
                    )
            values[name] = value
        return Batch(values, batch.seen, batch.targets, batch.context)

    def standard(self, batch: Batch) -> dict[str, Tensor]:
        """Return the standardised values, zero where a row did not see the node."""
        values = {n: self.variables[n].standardise(v) for n, v in batch.values.items()}
        for name, mask in batch.seen.items():
            values[name] = where(mask, values[name], torch.zeros_like(values[name]))
        return values

    def noise(self, n: int) -> dict[str, Noise]:
        """Draw n rows of every node's noise from its prior."""
        return {name: draw(m.prior(), n) for name, m in self.mechanisms.items()}

    def predict(self, noise: Noise, do: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Run the equations in topological order.

        Args:
            noise: node -> noise, batch first.
            do: node -> value (in the user's units, a label, or one a row) or `Intervention`.

        Returns:
            node -> value `(B, *shape)` in the user's units.
        """
        interventions = as_do(do or {}, self.variables)
        rows = _rows(noise)
        mechanisms = self.mechanisms
        inner: dict[str, Tensor] = {}
        outer: dict[str, Tensor] = {}
        for name in self.graph.order:
            variable, parents = self.variables[name], self.graph.parents(name)

            def natural(
                mechanism: Mechanism | None = None,
                keep_noise: bool = True,
                name: str = name,
                variable: Variable = variable,
            ) -> Tensor:
                own = mechanisms[name] if mechanism is None else mechanism
                u = noise[name] if keep_noise else draw(own.prior(), rows)
                return variable.restore(own(u, {p.name: inner[p.name] for p in own.parents}))

            if name in interventions:
                seen = {p: outer[p] for p in parents}
                value = act(interventions[name], variable, natural, seen, rows)
                value = value.to(self.origin.device)
                outer[name] = value if variable.discrete else value.to(self.origin.dtype)
                inner[name] = variable.standardise(outer[name])
            else:
                u, given = noise[name], {p: inner[p] for p in parents}
                inner[name] = mechanisms[name](u, given)
                outer[name] = variable.restore(inner[name])
        return {name: outer[name] for name in self.graph.nodes}

    def complete(self, data: Any, reparametrised: bool = False) -> Completion:
        """Draw every missing value, in topological order.

        Raises:
            ValueError: if a row misses a node above one that it saw, and no encoder covers it.
        """
        return complete(self, self.batch(data), reparametrised)

    def abduct(self, evidence: Any) -> dict[str, Noise]:
        """Draw one noise a row from p(u | evidence): `explain` without the weights."""
        return self.explain(evidence)[0]

    def explain(self, evidence: Any) -> tuple[dict[str, Noise], Tensor | None]:
        """Draw one noise a row from p(u | evidence), and say what the draw weighs.

        Seen and completed values are explained by their mechanism's `abduct`; a node that a row did
        not see, with nothing seen below it, keeps its prior. The log-weights `(B,)` correct for an
        encoder that is not the exact posterior; they are None where a density is unknown.
        """
        batch = self.batch(evidence)
        completion = complete(self, batch, lazy=True)
        values, noise = dict(completion.values), {}
        for name in self.graph.order:
            mechanism = self.mechanisms[name]
            parents = {p: values[p] for p in self.graph.parents(name)}
            drawn = completion.inferred.get(name)
            explained = batch.mask(name) if drawn is None else batch.mask(name) | drawn
            if bool(explained.all()):
                noise[name] = mechanism.abduct(values[name], parents)
                continue
            u = draw(mechanism.prior(), len(batch))
            if bool(explained.any()):
                rows = {p: v[explained] for p, v in parents.items()}
                u = _scatter(u, mechanism.abduct(values[name][explained], rows), explained)
            if self.graph.children(name):
                x = mechanism(u, parents)
                values[name] = where(explained, values[name], x) if name in values else x
            noise[name] = u
        return noise, completion.log_weight

    def condition(self, given: Mapping[str, Any], n: int) -> tuple[dict[str, Noise], Tensor]:
        """Draw n weighted noises from p(u | given) by likelihood weighting.

        Nodes in `given` are clamped and weigh log p(value | parents); all others are drawn.

        Returns:
            the noise and its log-weights `(n,)`, not normalised.
        """
        row = self.batch(dict(given))
        if len(row) != 1:
            raise ValueError(f"condition() needs one value a node, got {len(row)} rows")
        clamped = {k: v.expand(n, *v.shape[1:]) for k, v in self.standard(row).items()}
        values: dict[str, Tensor] = {}
        noise: dict[str, Noise] = {}
        log_weight = torch.zeros(n, device=self.origin.device, dtype=self.origin.dtype)
        for name in self.graph.order:
            mechanism = self.mechanisms[name]
            parents = {p: values[p] for p in self.graph.parents(name)}
            if name in clamped:
                if not isinstance(mechanism, Density):
                    raise ValueError(
                        f"conditioning on {name!r} needs its density, which "
                        f"{type(mechanism).__name__} has not; condition on other nodes, or give it "
                        "a flow, a RealNVP if it is an image"
                    )
                values[name] = clamped[name]
                noise[name] = mechanism.abduct(values[name], parents)
                log_weight = log_weight + mechanism.log_prob(values[name], parents)
            else:
                noise[name] = draw(mechanism.prior(), n)
                values[name] = mechanism(noise[name], parents)
        return noise, log_weight

    @torch.no_grad()
    def sample(
        self, n: int, do: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Draw n rows from the model, under interventions where `do` is given."""
        if n < 1:
            raise ValueError(f"sample() needs n of at least 1, got {n}")
        with seeded(seed), evaluating(self):
            return self.predict(self.noise(n), do)

    def log_prob(self, data: Any, draws: int = 1) -> Tensor:
        """Return log p(seen values), in nats and the user's units, `(B,)`.

        Exact where what is missing has nothing seen below it; else the importance-weighted bound
        log mean_k p(seen, drawn_k) / q(drawn_k), which grows to the truth with `draws`.

        Raises:
            ValueError: if a seen node's mechanism has no density.
        """
        batch = self.batch(data)
        bounds = []
        for _ in range(draws):
            completion = complete(self, batch, lazy=True)
            total = torch.zeros(len(batch), device=self.origin.device, dtype=self.origin.dtype)
            for name, value in completion.values.items():
                mechanism, variable = self.mechanisms[name], self.variables[name]
                drawn = completion.inferred.get(name)
                counted = batch.mask(name) if drawn is None else batch.mask(name) | drawn
                if not isinstance(mechanism, Density):
                    raise ValueError(
                        f"log_prob needs every density; {name!r} is a {type(mechanism).__name__}, "
                        "which has none: give it a flow, a RealNVP if it is an image; see Density"
                    )
                term = mechanism.log_prob(
                    value, {p: completion.values[p] for p in self.graph.parents(name)}
                )
                if not variable.discrete:
                    size = math.prod(variable.shape) * math.log(variable.scale)
                    term = term - torch.where(batch.mask(name), size, 0.0)
                if drawn is not None:
                    term = term - torch.where(drawn, completion.log_q[name], 0.0)
                total = total + torch.where(counted, term, 0.0)
            bounds.append(total)
        return torch.stack(bounds).logsumexp(0) - math.log(draws)

    def loss(self, data: Any) -> dict[str, Tensor]:
        """Return named terms `(B,)`: seen rows pay the likelihood, unseen rows the KL, never both.

        `node.term`: a mechanism's own loss, in rows that saw the node. `node.label`: -log q(label |
        inputs) of the encoder, in rows that saw the label. `node.kl`: beta (log q - log p(drawn |
        parents)), in rows where the encoder drew it. Categories drawn by the encoder pass their
        gradient by the score function (`node.score`, whose value is zero).
        """
        batch = self.batch(data)
        done = complete(self, batch, reparametrised=True, lazy=True)
        terms: dict[str, Tensor] = {}
        beta = self.encoder.beta if self.encoder is not None else 1.0
        zero = torch.zeros((), device=self.origin.device, dtype=self.origin.dtype)
        for name, value in done.values.items():
            mechanism, seen = self.mechanisms[name], batch.mask(name)
            parents = {p: done.values[p] for p in self.graph.parents(name) if p in done.values}
            drawn = done.inferred.get(name)
            if name in done.log_q:
                terms[f"{name}.label"] = torch.where(seen & done.ready, -done.log_q[name], zero)
            if drawn is not None and bool(drawn.any()):
                if not isinstance(mechanism, Density):
                    raise ValueError(
                        f"{name!r} is missing in some rows: its mechanism must be a Density, such "
                        "as ConditionalFlow, or RealNVP for an image"
                    )
                gap = done.log_q[name] - mechanism.log_prob(value, parents)
                terms[f"{name}.kl"] = torch.where(drawn, beta * gap, zero)
            if bool(seen.all()):
                own = mechanism.loss(value, parents)
                terms.update({f"{name}.{k}": v for k, v in own.items()})
            elif bool(seen.any()):
                rows = {p: v[seen] for p, v in parents.items()}
                for key, term in mechanism.loss(value[seen], rows).items():
                    full = torch.zeros(len(batch), device=term.device, dtype=term.dtype)
                    terms[f"{name}.{key}"] = full.masked_scatter(seen, term)
        for name, drawn in done.inferred.items():
            if self.variables[name].discrete and bool(drawn.any()):
                cost = torch.stack([t.detach() for t in terms.values()]).sum(0)
                rest = torch.where(drawn, cost, zero).sum() - cost
                baseline = rest / max(int(drawn.sum()) - 1, 1) * (int(drawn.sum()) > 1)
                score = (cost - baseline) * done.log_q[name]
                terms[f"{name}.score"] = torch.where(drawn, score - score.detach(), zero)
        return terms

    def ancestral(self, nodes: Iterable[str]) -> SCM:
        """Return the smaller SCM over these nodes and their ancestors; it shares the mechanisms."""
        keep = {a for n in nodes for a in (n, *self.graph.ancestors(n))}
        kept = [n for n in self.graph.nodes if n in keep]
        return SCM(self.graph.subgraph(kept), {n: self.mechanisms[n] for n in kept})

    def save(self, directory: Any, overwrite: bool = False) -> None:
        """Write the model as safetensors and JSON; `subjunctive.load(directory)` reads it."""
        from subjunctive.store import save

        save(self, directory, overwrite=overwrite)


def _check(graph: Graph, mechanisms: Mapping[str, Mechanism]) -> dict[str, Variable]:
    """Refuse mechanisms that do not fit the graph; return the variables by node."""
    missing = [n for n in graph.nodes if n not in mechanisms]
    extra = [n for n in mechanisms if n not in graph.nodes]
    if missing or extra:
        raise ValueError(
            f"the graph's nodes and the mechanisms differ: no mechanism for {missing}, "
            f"no node for {extra}"
        )
    variables = {n: mechanisms[n].variable for n in graph.nodes}
    for name in graph.nodes:
        mechanism = mechanisms[name]
        if mechanism.variable.name != name:
            raise ValueError(f"the mechanism of {name!r} is built for {mechanism.variable.name!r}")
        have, need = {p.name for p in mechanism.parents}, set(graph.parents(name))
        if have != need:
            raise ValueError(
                f"the mechanism of {name!r} has parents {sorted(have)}, the graph says "
                f"{sorted(need)}"
            )
        for parent in mechanism.parents:
            if parent != variables[parent.name]:
                raise ValueError(
                    f"{name!r} was built with another {parent.name!r} than the graph's own: "
                    f"{parent} and {variables[parent.name]}; use one Variable for both"
                )
    return variables


def _rows(noise: Noise) -> int:
    while isinstance(noise, Mapping):
        noise = next(iter(noise.values()))
    return len(noise)


def _scatter(into: Noise, found: Noise, mask: Tensor) -> Noise:
    """Put the rows of `found` where the mask is true."""
    if isinstance(into, dict):
        return {k: _scatter(into[k], found[k], mask) for k in into}
    out = into.clone()
    out[mask] = found.to(out.dtype)
    return out
