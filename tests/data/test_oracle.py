import pytest
import torch
from torch.distributions import Uniform

from subjunctive.data.oracle import Oracle
from subjunctive.graph import Graph
from subjunctive.intervention import Draw, Policy, Replace, Scale, Shift
from subjunctive.mechanism import Mechanism
from subjunctive.variable import Batch, Variable


@pytest.fixture
def chain() -> Oracle:
    """a -> b -> c, and a -> c: two hops and a short cut."""
    return Oracle(
        Graph.parse("a -> b; b -> c; a -> c"),
        {n: Variable(n) for n in "abc"},
        {
            "a": lambda u, pa: u,
            "b": lambda u, pa: 2 * pa["a"] + u,
            "c": lambda u, pa: pa["b"] - 3 * pa["a"] + u,
        },
        {n: torch.randn for n in "abc"},
    )


def facts(model: Oracle, n: int = 50) -> Batch:
    noise = model.noise(n)
    return Batch(model.predict(noise), context={f"u.{k}": u for k, u in noise.items()})


def test_doing_nothing_returns_the_factual(chain: Oracle) -> None:
    batch = facts(chain)
    again = chain.predict(chain.abduct(batch))
    assert all(torch.equal(again[n], batch.values[n]) for n in "abc")


def test_effects_travel_both_hops_and_leave_non_descendants(chain: Oracle) -> None:
    batch = facts(chain)
    noise = chain.abduct(batch)
    moved = chain.predict(noise, do={"a": Shift(1.0)})
    torch.testing.assert_close(moved["b"] - batch.values["b"], torch.full((50,), 2.0))
    torch.testing.assert_close(moved["c"] - batch.values["c"], torch.full((50,), -1.0))
    held = chain.predict(noise, do={"b": 0.0})
    assert torch.equal(held["a"], batch.values["a"])
    torch.testing.assert_close(held["c"], -3 * batch.values["a"] + noise["c"])


def test_soft_and_stochastic_interventions_see_the_intervened_parents(chain: Oracle) -> None:
    noise = chain.noise(2000)
    out = chain.predict(noise, do={"a": 1.0, "b": Scale(10.0)})
    torch.testing.assert_close(out["b"], 10 * (2 + noise["b"]))
    rule = chain.predict(noise, do={"a": Shift(5.0), "b": Policy(lambda pa: -pa["a"])})
    torch.testing.assert_close(rule["b"], -(noise["a"] + 5))
    drawn = chain.predict(noise, do={"b": Draw(Uniform(0.0, 1.0))})["b"]
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert abs(float(torch.corrcoef(torch.stack([drawn, noise["a"]]))[0, 1])) < 0.1


class Half(Mechanism):
    """x = pa / 2 + u, standardised."""

    def prior(self) -> torch.distributions.Distribution:
        return self.standard_normal()

    def forward(self, u, parents):
        return parents["a"] / 2 + u

    def abduct(self, x, parents):
        return x - parents["a"] / 2

    def loss(self, x, parents):
        return {"none": torch.zeros(len(x))}


@pytest.mark.parametrize("keep", [True, False])
def test_a_replaced_mechanism_keeps_the_noise_only_if_it_says_so(keep: bool) -> None:
    variables = {"a": Variable("a", loc=3.0, scale=2.0), "b": Variable("b", loc=-1.0, scale=4.0)}
    model = Oracle(
        Graph.parse("a -> b"),
        variables,
        {"a": lambda u, pa: u, "b": lambda u, pa: pa["a"] + u},
        {"a": torch.randn, "b": torch.randn},
    )
    noise = model.noise(20)
    out = model.predict(noise, {"b": Replace(Half(variables["b"], [variables["a"]]), keep)})["b"]
    kept = ((noise["a"] - 3) / 2 / 2 + noise["b"]) * 4 - 1
    assert torch.allclose(out, kept, atol=1e-5) is keep


def test_missing_noise_and_missing_parts_are_named(chain: Oracle) -> None:
    batch = facts(chain)
    with pytest.raises(KeyError, match=r"u\.b"):
        chain.abduct(Batch(batch.values, context={"u.a": batch.context["u.a"]}))
    with pytest.raises(KeyError, match="Did you mean"):
        chain.predict(chain.noise(1), do={"aa": 0.0})
    graph, variables = Graph.parse("a -> b"), {"a": Variable("a"), "b": Variable("b")}
    with pytest.raises(ValueError, match=r"equations .* missing \['b'\], unknown \['z'\]"):
        Oracle(
            graph,
            variables,
            {"a": lambda u, pa: u, "z": lambda u, pa: u},
            {"a": torch.randn, "b": torch.randn},
        )
