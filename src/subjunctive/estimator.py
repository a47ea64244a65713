"""A structural causal model of a table, in the manner of scikit-learn: fit, score, predict, ask.

    fit         theta_i <- argmin mean -log p(x_i | pa_i; theta_i)      every node i
    score       mean over rows of sum_i log p(x_i | pa_i)
    predict     E[y | pa(y)], or the k of the largest P(y = k | pa(y))
    transform   u ~ p(u | row), the noise of the nodes

A row may miss any value: a term i counts in the rows that saw x_i and all of pa_i, which is
consistent where a value's going missing does not depend on it, given its parents. This module
imports scikit-learn; `import subjunctive` does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import pandas
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.distributions import Independent, Normal

from subjunctive import mechanisms as families
from subjunctive.data.column import label
from subjunctive.data.table import Table
from subjunctive.effect import Effect, effect
from subjunctive.estimator_cases import AvailableCases, all_seen, cases, solved
from subjunctive.graph import Graph
from subjunctive.intervention import Checked, Intervention, as_do
from subjunctive.mechanism import Density, Mechanism, Parents, draw, each, evaluating, parts, seeded
from subjunctive.query import counterfactual, observe
from subjunctive.scm import SCM
from subjunctive.train import fit
from subjunctive.variable import Variable, known, nearest

Do = Mapping[str, Any]
Family = Callable[[Variable, Sequence[Variable]], Mechanism]
CONTINUOUS: dict[str, Family] = {
    "linear": families.LinearGaussian,
    "additive": families.AdditiveNoise,
    "flow": families.ConditionalFlow,
    "ridge": families.Ridge,
}
DISCRETE: dict[str, Family] = {"categorical": families.Categorical, "ordinal": families.Ordinal}
SIZE = 2**16  # rows times draws of a counterfactual that are in memory at once
ROWS = 64  # whose draws are in memory at once


class TabularSCM(TransformerMixin, BaseEstimator):
    """An SCM of a DataFrame with the methods that scikit-learn's pipelines and searches call.

    Arguments are checked by `fit`. All draws follow from `seed`; torch's generators are left alone.
    Where a question needs what a row misses, an `SCM` draws it, unless the row saw a node below it.

    Args:
        graph: a DAG or its arrows, "t -> y"; its nodes are columns of the table.
        mechanism: the family of continuous nodes: `linear` and `ridge`, which have a closed form,
            `additive`, `flow`, or a callable `(variable, parents) -> Mechanism`. Discrete nodes are
            `Categorical` or `Ordinal`.
        mechanisms: node -> a family or callable, where a node should have another one.
        categorical, ordinal, units: what the columns are, as for `data.table.Table`.
        steps, batch_size, lr: as for `fit`, where there is no closed form; a smaller table is one
            batch.
        outcome: the node that `predict` and `effect` are about; by default the name of y.
        seed, progress: of the weights, the training and all draws; whether to show bars.

    Attributes:
        model_, variables_: the fitted `SCM`, which all of the library takes; node -> `Variable`.
        history_: the losses of what gradients fitted, a DataFrame.
        outcome_, feature_names_in_, n_features_in_: the outcome's node or None; the columns of X.

    Example:
        >>> t = np.linspace(-1, 1, 200)
        >>> X = pandas.DataFrame({"t": t, "y": 2 * t + 0.1 * np.cos(40 * t)})
        >>> scm = TabularSCM("t -> y", mechanism="linear", outcome="y").fit(X)
        >>> round(float(scm.effect("t").estimate), 1), scm.counterfactual(X, {"t": 0.0}).shape
        (2.0, (200, 2))
    """

    def __init__(
        self,
        graph: Graph | str,
        *,
        mechanism: str | Family = "flow",
        mechanisms: Mapping[str, str | Family] | None = None,
        categorical: Sequence[str] = (),
        ordinal: Mapping[str, Sequence[Any]] | None = None,
        units: Mapping[str, str] | None = None,
        steps: int = 1000,
        batch_size: int = 256,
        lr: float = 1e-2,
        outcome: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.graph, self.outcome, self.seed, self.progress = graph, outcome, seed, progress
        self.mechanism, self.mechanisms = mechanism, mechanisms
        self.categorical, self.ordinal, self.units = categorical, ordinal, units
        self.steps, self.batch_size, self.lr = steps, batch_size, lr

    def fit(self, X: pandas.DataFrame, y: Any = None) -> TabularSCM:
        """Type the columns, build the SCM and fit its mechanisms.

        Args:
            X: a column a node, others are left out; None, NaN and NA are missing.
            y: the outcome's column, where X does not hold it: a Series, or an array.

        Raises:
            KeyError: for a name that is no node, with the nearest. ValueError: for what is no
                DataFrame, a column that cannot be fitted, or an argument out of range.
        """
        seed, steps, size = (_whole(n, getattr(self, n)) for n in ("seed", "steps", "batch_size"))
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr!r}")
        outcome = self.outcome if self.outcome is not None else getattr(y, "name", None)
        frame = _joined(X, y, outcome)
        about = {n: getattr(self, n) for n in ("graph", "categorical", "ordinal", "units")}
        table = Table(frame, valid=0.0, test=0.0, seed=seed, **about)
        graph = table.graph
        if outcome is not None:
            known(outcome, graph.nodes, "TabularSCM(outcome=)")
        with seeded(seed):
            model = SCM(graph, self._mechanisms(graph, table.variables)).eval()
            left = solved(model, table.train)
        self.history_ = pandas.DataFrame([])
        if left:
            rest: dict[str, Any] = {"lr": self.lr, "seed": seed, "progress": self.progress}
            rest |= {"steps": steps, "batch_size": min(size, len(frame))}
            self.history_ = fit(model, table.train, AvailableCases(left), **rest).history
        self.model_, self.variables_ = model, dict(model.variables)
        self.labels_ = {n: _labels(v, frame[n]) for n, v in self.variables_.items() if v.discrete}
        self.outcome_, self.n_features_in_ = outcome, X.shape[1]
        self.feature_names_in_ = np.array(list(X.columns), dtype=object)
        return self

    def _mechanisms(self, graph: Graph, variables: Mapping[str, Variable]) -> dict[str, Mechanism]:
        chosen = {n: _family(m, f"mechanisms[{n!r}]") for n, m in (self.mechanisms or {}).items()}
        continuous, built = _family(self.mechanism, "mechanism"), {}
        for node in chosen:
            known(node, graph.nodes, "TabularSCM(mechanisms=)")
        for node in graph.nodes:
            make = chosen.get(node) or DISCRETE.get(variables[node].kind, continuous)
            made = make(variables[node], [variables[p] for p in graph.parents(node)])
            if not isinstance(made, Mechanism):
                raise ValueError(f"the callable for {node!r} gave {made!r}, which is no Mechanism")
            built[node] = made
        return built

    @torch.no_grad()
    def score(self, X: pandas.DataFrame, y: Any = None) -> float:
        """Return the mean of log p(row), in nats and the user's units; higher is better."""
        with self._asking(X, "score", y) as (model, batch):
            total = torch.zeros(len(batch), dtype=torch.float64, device=model.origin.device)
            for name, rows, x, given in cases(model, batch):
                mechanism, variable = model.mechanisms[name], model.variables[name]
                if not isinstance(mechanism, Density):
                    raise ValueError(f"score() needs densities; that of {name!r} has none")
                size = 0.0 if variable.discrete else math.log(variable.scale)
                total[rows] += mechanism.log_prob(x, given).double() - size
        return float(total.mean())

    @torch.no_grad()
    def predict(self, X: pandas.DataFrame, draws: int = 512) -> pandas.Series:
        """Return E[outcome | its parents], or its most probable label, with the index of X.

        The mean is over draws of the outcome's own noise, the same for every row; Gaussian noise
        comes in pairs u, -u. Where a parent is missing, `observe` draws it given what the row saw
        of all nodes but the outcome, whose column may be absent, and what is below it.
        """
        outcome, draws = self._outcome("predict()"), _whole("draws", draws)
        with self._asking(X, "predict", spare=True) as (model, batch):
            mechanism, values = model.mechanisms[outcome], model.standard(batch)
            parents, below = model.graph.parents(outcome), model.graph.descendants(outcome)
            whole, found = all_seen(batch, parents), torch.zeros(len(X), dtype=torch.float64)
            u = _mirrored(mechanism.prior(), draws)
            for rows in filter(len, whole.nonzero()[:, 0].split(ROWS)):
                given = {p: values[p][rows] for p in parents}
                found[rows.cpu()] = _expected(mechanism, u, given, draws, len(rows)).double().cpu()
            if not bool(whole.all()):
                part = batch[~whole].only({*model.graph.nodes} - {outcome, *below})
                drawn = observe(model, part, draws=draws, progress=self.progress)[outcome]
                found[~whole.cpu()] = drawn.double().cpu()
        return self._frame({outcome: found}, X.index)[outcome]

    @torch.no_grad()
    def transform(self, X: pandas.DataFrame) -> pandas.DataFrame:
        """Return a draw of the noise that explains each row, for the nodes in the fit's X.

        A node of K categories has K columns, `node.0` and so on. A missing value is drawn first.
        """
        with self._asking(X, "transform") as (model, batch):
            noise = [u.double().cpu() for _, u in parts(self._own(model.abduct(batch)))]
        matrix = torch.cat([u.reshape(len(X), -1) for u in noise], 1).numpy()
        return pandas.DataFrame(matrix, X.index, self.get_feature_names_out())

    @torch.no_grad()
    def inverse_transform(self, X: pandas.DataFrame) -> pandas.DataFrame:
        """Return the rows that these noises make, in the columns of the fit's X."""
        names = self.get_feature_names_out()
        _check_columns(X, names, names, "inverse_transform(X)")
        columns = iter(torch.tensor(X[names].to_numpy(float)).T)
        with seeded(_whole("seed", self.seed)), evaluating(self.model_):
            noise = self.model_.noise(len(X))
            noise |= each(
                lambda u: torch.stack([next(columns) for _ in u[0].flatten()], 1).to(u).view_as(u),
                self._own(noise),
            )
            made = self._own(self.model_.predict(noise))
        return self._frame(made, X.index, self.feature_names_in_)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the noise's columns, nodes in the graph's order."""
        check_is_fitted(self, "model_")
        names = []
        with seeded(0):
            for name, u in parts(self._own(self.model_.noise(1))):
                names += [name] if u.dim() == 1 else [f"{name}.{k}" for k in range(u[0].numel())]
        if len({*names}) < len(names):
            raise ValueError(f"two noises would have the same name, of {names}; rename a column")
        return np.array(names, dtype=object)

    def sample(self, n: int, do: Do | None = None, seed: int | None = None) -> pandas.DataFrame:
        """Draw n rows, under `do`: node -> a value, a label or an `Intervention`.

        Without a `seed` it is the estimator's own, so that the same call gives the same rows.
        """
        check_is_fitted(self, "model_")
        n, seed = _whole("n", n), _whole("seed", self.seed if seed is None else seed)
        index = pandas.RangeIndex(n)
        values = self.model_.sample(n, self._do({} if do is None else do, index), seed)
        return self._frame(values, index, self.feature_names_in_)

    def counterfactual(self, X: pandas.DataFrame, do: Do, draws: int = 1) -> pandas.DataFrame:
        """Return what each row would have been under `do`: X's index and columns, and the outcome.

        `do` is as for `sample`, or one value a row. `draws` are of what a row leaves open; the
        answer is their mean or most frequent label. The outcome's column may be absent.
        """
        with self._asking(X, "counterfactual", spare=True) as (model, batch):
            acts, show = self._do(do, X.index), self.progress
            found = counterfactual(model, batch, acts, draws=draws, batch_size=SIZE, progress=show)
        return self._frame(found, X.index, X.columns)

    def effect(
        self, treatment: str, values: tuple[Any, Any] = (0.0, 1.0), outcome: str | None = None
    ) -> Effect:
        """Return E[outcome | do(treatment = b)] - E[outcome | do(treatment = a)], (a, b) = values.

        `float(answer.estimate)` is the number, `answer.interval()` tells its Monte-Carlo error.
        """
        outcome, seed = self._outcome("effect()", outcome), _whole("seed", self.seed)
        a, b = (self._do({treatment: v})[treatment] for v in values)
        return effect(self.model_, treatment, outcome, (a, b), seed=seed)

    def _outcome(self, where: str, given: str | None = None) -> str:
        check_is_fitted(self, "model_")
        outcome = self.outcome_ if given is None else given
        if outcome is None:
            raise ValueError(f"{where} needs an outcome, one of {[*self.variables_]}; name it")
        return str(outcome)

    @contextmanager
    def _asking(self, X: Any, what: str, y: Any = None, spare: bool = False) -> Iterator[Any]:
        """Give the model and rows with codes for labels, perhaps without the outcome; seeded."""
        check_is_fitted(self, "model_")
        outcome = self.outcome_ if self.outcome_ is not None else getattr(y, "name", None)
        frame, fitted = _joined(X, y, outcome), list(self.feature_names_in_)
        needed = [n for n in self._own(self.variables_) if not (spare and n == outcome)]
        _check_columns(frame, {**self.variables_, **dict.fromkeys(fitted)}, needed, f"{what}(X)")
        held: dict[str, Any] = {n: frame[n] for n in self.variables_ if n in frame}
        held |= {n: self._codes(n, held[n]) for n in self.labels_ if n in held}
        with seeded(_whole("seed", self.seed)), evaluating(self.model_):
            if self.labels_ or list(frame.columns) != list(held):
                frame = pandas.DataFrame(held, index=frame.index)
            yield self.model_, self.model_.batch(frame)

    def _do(self, do: Do, index: Any = None) -> Checked:
        """Return checked interventions, with codes for labels; a Series must have the index."""
        if not isinstance(do, Mapping):
            raise ValueError(f"do is a {type(do).__name__}: give node -> what is done to it")
        acts = {}
        for name, what in do.items():
            known(name, self.variables_, "do()")
            if isinstance(what, pandas.Series) and not what.index.equals(index):
                raise ValueError(f"do() gives {name!r} a Series whose index is not that of X")
            if name in self.labels_ and not isinstance(what, Intervention | Tensor):
                what = self._codes(name, np.ravel(np.asarray(what, dtype=object)))
            acts[name] = what
        return as_do(acts, self.variables_)

    def _codes(self, name: str, labels: Any) -> Any:
        """Return the codes of labels `(B,)` as floats, NaN where one is missing."""
        variable = self.variables_[name]
        code = {c: i for i, c in enumerate(variable.categories)}
        code |= {v: i for i, v in enumerate(self.labels_[name])}
        index, unique = pandas.factorize(np.asarray(labels, dtype=object))
        variable.encode([str(v) for v in unique if v not in code])  # raises if there is one
        return np.array([*(code[v] for v in unique), np.nan])[index]

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what belongs to the nodes in the fit's X."""
        return {n: values[n] for n in self.variables_ if n in self.feature_names_in_}

    def _frame(self, values: Any, index: Any, first: Iterable[str] = ()) -> pandas.DataFrame:
        """Return values in the user's units and labels, the nodes of `first` first."""
        columns = {}
        for name in dict.fromkeys(n for n in (*first, *values) if n in values):
            value, own = values[name].double().cpu().numpy(), self.labels_.get(name)
            columns[name] = value if own is None else own.take(value.astype(int)).set_axis(index)
        return pandas.DataFrame(columns, index=index)


def _whole(name: str, value: Any) -> int:
    """Return a number that must be whole; numpy's will do."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < (name != "seed"):
        raise ValueError(f"{name} must be a whole number, not below {name != 'seed':d}: {value!r}")
    return int(value)


def _family(choice: Any, name: str) -> Family:
    family = CONTINUOUS.get(choice, choice) if isinstance(choice, str) else choice
    if not callable(family):
        hint, given = nearest(str(choice), CONTINUOUS), ", ".join(CONTINUOUS)
        raise ValueError(f"{name} is {choice!r}, which is no callable and none of {given}.{hint}")
    return family


def _labels(variable: Variable, column: pandas.Series) -> pandas.Series:
    """Return the user's own values of the categories, of the column's dtype where it can be."""
    kind = column.dtype
    own = kind.categories if isinstance(kind, pandas.CategoricalDtype) else column.dropna().unique()
    found = {label(v): v for v in own}
    values = pandas.Series([found.get(c, c) for c in variable.categories], dtype=object)
    return values.astype(kind) if {*variable.categories} <= {*found} else values


def _joined(X: Any, y: Any, outcome: str | None) -> pandas.DataFrame:
    """Return X with y as its column `outcome`; X itself is not changed."""
    if not isinstance(X, pandas.DataFrame):
        hint = "before this one in a pipeline, a step with set_output(transform='pandas') makes one"
        raise ValueError(f"X is a {type(X).__name__}: give a DataFrame, a column a node; {hint}")
    if odd := [c for c in X.columns if not isinstance(c, str)]:
        raise ValueError(f"X has columns named {odd[:5]}, which are no texts: rename(columns=str)")
    if y is None:
        return X
    if outcome is None or outcome in X:
        why = "has no name" if outcome is None else f"is {outcome!r}, which X holds already"
        raise ValueError(f"y {why}: leave it out, or say which node it is, TabularSCM(outcome=...)")
    if np.shape(y) != (len(X),):
        raise ValueError(f"y has shape {np.shape(y)}; X has {len(X)} rows")
    column = pandas.Series(y, name=outcome)
    other = isinstance(y, pandas.Series) and not y.index.equals(X.index)
    if other and not len(y.index.symmetric_difference(X.index, sort=False)):
        raise ValueError("y has the index of X in another order: give y.loc[X.index]")
    return pandas.concat([X, column.set_axis(X.index)], axis=1)


def _check_columns(X: Any, allowed: Iterable[str], needed: Iterable[str], where: str) -> None:
    if not len(X) or not X.columns.is_unique:
        raise ValueError(f"{where} has no rows, or two columns of one name")
    for name in X.columns:
        known(name, allowed, where)
    for name in needed:
        if name not in X:
            raise KeyError(f"{where} lacks {name!r}, NaN where unseen.{nearest(name, X.columns)}")


def _mirrored(prior: Any, n: int) -> Any:
    """Draw n noises; Gaussian ones in pairs about the mean, which makes an affine mean exact."""
    if not (isinstance(prior, Independent) and isinstance(prior.base_dist, Normal)):
        return draw(prior, n)
    half = draw(prior, (n + 1) // 2)
    return torch.cat([half, 2 * prior.mean - half])[:n]


def _expected(mechanism: Mechanism, u: Any, given: Parents, draws: int, rows: int) -> Tensor:
    """Return the mean over u in the user's units, or the most probable code; `(rows,)`."""
    variable = mechanism.variable
    if variable.discrete and isinstance(mechanism, Density):
        codes = torch.arange(variable.width, device=mechanism.origin.device)
        return torch.stack([mechanism.log_prob(k.repeat(rows), given) for k in codes]).argmax(0)
    tiled = each(lambda t: t.repeat(rows, *[1] * (t.dim() - 1)), u)
    x = mechanism(tiled, {p: t.repeat_interleave(draws) for p, t in given.items()})
    x = x.reshape(rows, draws)
    return x.mode(1).values if x.dtype == torch.long else variable.restore(x.double().mean(1))
