"""Where numbers lie in memory changes no fit: gradients and parameters in another order, and parameters that are views of a table."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import ppvae
from ppvae.inference.lbfgs import ascend
from ppvae.inference.objectives import OBJECTIVES
from ppvae.inference.svi import Adam
from ppvae.parameters import Constrained, Parameters

IRIS = ppvae.load_data("iris").take(torch.arange(0, 150, 5))
LAYOUTS = ("contiguous", "transposed", "view")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers (R, C), another way round in memory or within a larger table."""
    rows, columns = values.shape
    room = {"contiguous": values, "transposed": values.new_zeros(columns, rows).mT, "view": values.new_zeros(rows, columns + 3)[:, 2:-1]}
    return room[layout].copy_(values)


class Loadings(nn.Module):
    def __init__(self, weight: Tensor, layout: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(laid_out(weight, layout))

    def forward(self, z: Tensor) -> Tensor:
        flat = self.weight.reshape(-1)  # a view of some layouts, a copy of others: no recording of one serves the other
        return torch.einsum("...l,dl->...d", z, flat.reshape(self.weight.shape))


@dataclass(frozen=True)
class Factors(ppvae.Model):
    """PPCA whose loadings are a parameter or, laid out in some way, a network's; W z written as a product or as an einsum."""

    einsum: bool = False
    layout: str | None = None

    def init(self, data, generator):
        loadings = torch.randn(data.n_features, 2, generator=generator, dtype=torch.float64)
        held = loadings if self.layout is None else Loadings(loadings, self.layout)
        return Parameters(loadings=held, mean=data.mean, noise_variance=Constrained(data.variance.mean(), constraints.positive))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))
            if self.layout is not None:
                loc = theta.loadings(z)
            else:
                loc = torch.einsum("...l,dl->...d", z, theta.loadings) if self.einsum else z @ theta.loadings.mT
            pyro.sample("x", dist.Normal(theta.mean + loc, theta.noise_variance.sqrt()).mask(batch.observed).to_event(1), obs=batch.x)


def reached(model: Factors, method) -> float:
    options = {"guide": "linear"} if isinstance(method, ppvae.SVI | ppvae.VariationalEM) else {}
    return float(ppvae.fit(model, IRIS, method, dtype="float64", **options).log_likelihood(IRIS).mean())


METHODS = [
    *(ppvae.SVI(steps=20, objective=name, particles=2, compile=compile) for name in OBJECTIVES for compile in ("auto", False)),
    ppvae.SVI(steps=20, beta=0.5, kl_warmup=0.5, free_bits=0.1),
    ppvae.VariationalEM(rounds=3, e_steps=5, m_steps=5),
    ppvae.VariationalEM(rounds=3, e_steps=5, m_steps=5, compile=False),
    ppvae.DirectML(steps=10),
    ppvae.DirectML("naive", steps=30, draws=10),
    ppvae.MonteCarloEM(steps=2),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.describe())
def test_a_product_and_its_einsum_end_alike(method):
    """The gradient of an einsum lies transposed. 20 steps of Adam in the wrong order end up to a nat per row elsewhere."""
    assert reached(Factors(einsum=True), method) == pytest.approx(reached(Factors(), method), abs=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("method", METHODS[:2] + METHODS[-5:], ids=lambda method: method.describe())
def test_a_parameter_may_lie_as_it_likes(method, layout):
    assert reached(Factors(layout=layout), method) == pytest.approx(reached(Factors(layout="contiguous"), method), abs=1e-7)


def test_what_is_compiled_lies_as_the_parameters_do():
    captured, compiled = ppvae.SVI(steps=20), ppvae.SVI(steps=20, compile=True)
    assert reached(Factors(layout="view"), compiled) == pytest.approx(reached(Factors(layout="contiguous"), captured), abs=1e-7)


@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_parameter", LAYOUTS)
def test_adam_reads_places_not_memory(of_parameter, of_gradient):
    """One step of Adam is rate times the sign of the gradient, to eps."""
    gradient = torch.tensor([[1.0, -2.0, 3.0], [-4.0, -5.0, 6.0]], dtype=torch.float64)
    weight = nn.Parameter(laid_out(torch.zeros_like(gradient), of_parameter))
    weight.grad = laid_out(gradient.clone(), of_gradient)
    Adam([weight]).move(0.25)
    torch.testing.assert_close(weight.detach(), -0.25 * gradient.sign(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_l_bfgs_reads_places_not_memory(layout):
    """To the top of a quadratic, whatever the order."""
    goal = torch.tensor([[1.0, -2.0, 3.0], [-4.0, -5.0, 6.0]], dtype=torch.float64)
    weight = nn.Parameter(laid_out(torch.zeros_like(goal), layout))
    steps = ascend(lambda: [-torch.einsum("ij,ij,ij->", weight - goal, weight - goal, goal.abs())], [weight])
    for _ in range(12):
        next(steps)
    torch.testing.assert_close(weight.detach(), goal, rtol=1e-6, atol=1e-6)


def test_two_views_of_one_table_stay_one():
    """Decoder and encoder tied by a transposed view: each gradient moves the table that both are, as with PyTorch's own Adam."""
    found = []
    for made in (Adam, lambda views: torch.optim.Adam(views, lr=0.1, betas=(0.9, 0.99))):
        table = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        tied = nn.Parameter(table.detach().mT)
        table.grad, tied.grad = torch.ones(2, 3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64).reshape(3, 2) - 2.5
        adam = made([table, tied])
        adam.move(0.1) if isinstance(adam, Adam) else adam.step()
        assert torch.equal(table.detach(), tied.detach().mT)
        found.append(table.detach().clone())
    torch.testing.assert_close(*found)


def test_entries_that_share_memory_are_refused():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(1, dtype=torch.float64).expand(2))

        def forward(self, batch):
            with batch.rows:
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    said = "'loc' share memory, so that none can be trained by itself: give it a .clone"
    with pytest.raises(ValueError, match=said):
        ppvae.fit(type("Factors", (Factors,), {"guide": lambda self, data: Shift()})(), IRIS, ppvae.SVI(steps=1))
    with pytest.raises(ValueError, match=said):
        Parameters(shift=Shift())
