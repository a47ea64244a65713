import pytest
import torch
from torch import Tensor

from subjunctive.mechanism import Density, Mechanism, draw
from subjunctive.mechanisms import AdditiveNoise, LinearGaussian, Tied
from subjunctive.variable import Variable

X = [Variable(f"x[{t}]", loc=1.0, scale=2.0) for t in range(4)]
ARM = Variable("arm", kind="categorical", categories=("a", "b"))


def chain(slope=0.8, scale=0.6):
    step = LinearGaussian.of(X[1], [X[0]], weights=[slope], scale=scale)
    return [step, Tied(step, X[2], [X[1]]), Tied(step, X[3], [X[2]])]


def test_slices_share_one_set_of_parameters():
    slices = chain()
    assert len({id(p) for m in slices for p in m.parameters()}) == 3
    with torch.no_grad():
        slices[0].weight.fill_(5.0)
    assert slices[2](torch.zeros(1), {"x[2]": torch.ones(1)}).item() == 5.0


def test_gradients_of_the_slices_add_up():
    slices = chain()
    rows = torch.randn(4, 50)
    grads = []
    for chosen in ([0], [1], [2], [0, 1, 2]):
        terms = [slices[i].loss(rows[i + 1], {f"x[{i}]": rows[i]})["nll"] for i in chosen]
        grads.append(torch.autograd.grad(torch.stack(terms).sum(), slices[0].weight)[0])
    assert torch.allclose(grads[3], grads[0] + grads[1] + grads[2], atol=1e-3)
    assert not torch.allclose(grads[0], grads[1])


def test_an_unrolled_chain_stays_in_its_stationary_law():
    x = torch.randn(40000)  # x' = 0.8 x + 0.6 u keeps a variance of one
    for t, m in enumerate(chain()):
        x = m(draw(m.prior(), 40000), {f"x[{t}]": x}).detach()
    assert float(x.var()) == pytest.approx(1.0, abs=0.03)


def test_tied_is_a_density_where_its_mechanism_is():
    class Coin(Mechanism):
        def prior(self):
            return self.standard_normal()

        def forward(self, u, parents):
            return u + parents[self.parents[0].name]

        def abduct(self, x, parents):
            return x - parents[self.parents[0].name]

        def loss(self, x, parents) -> dict[str, Tensor]:
            return {"square": self.abduct(x, parents) ** 2}

    plain = Tied(Coin(X[1], [X[0]]), X[2], [X[1]])
    assert type(plain) is Tied
    assert not isinstance(plain, Density)
    assert isinstance(Tied(plain, X[3], [X[2]]), Tied)
    two, one = torch.full((1,), 2.0), {"x[1]": torch.ones(1)}
    assert plain(plain.abduct(two, one), one).item() == 2.0
    assert plain.loss(two, one)["square"].item() == 1.0
    assert isinstance(chain()[1], Density)


def test_parents_match_by_position():
    step = LinearGaussian.of(X[2], [X[1], X[0]], weights=[10.0, 1.0])
    later = Tied(step, X[3], [X[2], X[1]])
    parents = {"x[1]": torch.tensor([3.0]), "x[2]": torch.tensor([7.0])}
    assert later(torch.zeros(1), parents).item() == 73.0


def test_a_stand_in_must_be_alike():
    step = AdditiveNoise(X[1], [X[0]])
    with pytest.raises(ValueError, match=r"'x\[2\]' has 2 parents, the mechanism tied to it 1"):
        Tied(step, X[2], [X[1], X[0]])
    with pytest.raises(ValueError, match=r"'arm' stands in for 'x\[0\]', but their kind differs"):
        Tied(step, X[2], [ARM])
    with pytest.raises(ValueError, match=r"'y'.*scale differs \(1.0, 2.0\)"):
        Tied(step, Variable("y", loc=1.0), [X[1]])
