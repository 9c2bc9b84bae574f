"""What is recorded, what the compiler is given, and the optimiser: each against PyTorch's own."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits

import ppvae
from ppvae.inference.svi import Adam
from ppvae.program.capture import SHARED, capture, compiled, tensors_of

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
X = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4])])
aten = torch.ops.aten
CROSS_ENTROPY = aten.binary_cross_entropy_with_logits.default


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_curves_in_shared_words_are_right_to_rounding(dtype):
    """Relative to the value, far in the tail too: a scale that is a softplus must not become 0."""
    x, eps = X.to(dtype), torch.finfo(dtype).eps
    exactly = x.double()
    right = torch.logaddexp(exactly, torch.zeros_like(exactly))
    right = torch.where(exactly > 20, exactly, right)  # as PyTorch has it
    near = partial(torch.testing.assert_close, atol=1e-36, rtol=4 * eps)  # some four roundings
    near(SHARED[aten.softplus.default](x).double(), right)
    near(SHARED[aten.sigmoid.default](x).double(), exactly.sigmoid())
    for share in (0.0, 0.3):
        ours = SHARED[CROSS_ENTROPY](x, torch.full_like(x, share), None, None, 0).double()
        scale = 1 + exactly.abs()  # a difference of terms of this size
        assert ((ours - (torch.logaddexp(exactly, torch.zeros_like(exactly)) - share * exactly)).abs() < 4 * eps * scale).all()


def test_unusual_curves_are_left_to_pytorch():
    x = X.double()
    gradient = torch.linspace(1, 2, len(x)).double()
    theirs = gradient * torch.where(x > 20, 1.0, x.sigmoid())
    torch.testing.assert_close(SHARED[aten.softplus_backward.default](gradient, x, 1.0, 20.0), theirs, rtol=1e-15, atol=1e-40)
    assert SHARED[aten.softplus_backward.default](gradient, x, 2.5, 20.0) is NotImplemented
    assert SHARED[aten.softplus.default](x, 2.5) is NotImplemented
    assert SHARED[CROSS_ENTROPY](x, x, None, x, 0) is NotImplemented
    assert SHARED[CROSS_ENTROPY](x, x) is NotImplemented


class Curves(torch.nn.Module):
    """A loss with every curve that has other words, in its usual and its unusual form, and with draws."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-3, 3, 6).reshape(3, 2))

    def loss(self, batch, chosen):
        rows = batch.take(chosen)
        x = rows.x @ self.weight.mT
        noise = torch.randn_like(x) - torch.randn_like(x)  # two draws that a compiler might take for one
        coin = binary_cross_entropy_with_logits(x, x.detach().sigmoid().square(), reduction="none")
        weighed = binary_cross_entropy_with_logits(x, coin.detach().tanh(), pos_weight=x.new_full((3,), 2.0))
        return (functional.softplus(x) * noise + functional.softplus(x, beta=2.5) + coin + x.sigmoid()).mean() + weighed


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_compiled_says_what_was_recorded(dtype):
    data = ppvae.Data(np.random.default_rng(0).standard_normal((40, 2))).to(dtype)
    module, table, chosen = Curves().to(dtype), data.batch(), torch.arange(3, 36)
    arguments = list(module.parameters()), tensors_of(table), chosen
    graph = capture(module, module.loss, table, chosen)
    fast = compiled(graph, *arguments)
    for rows in (chosen, chosen.flip(0) - 3):  # the rows are arguments, and their order matters to the draws
        found = []
        for one in (graph, fast):
            torch.manual_seed(0)
            value, (gradient,) = one(arguments[0], arguments[1], rows)
            found.append((value, gradient))
        (value, gradient), (expected, its) = found
        tolerance = 100 * torch.finfo(dtype).eps  # sums of a hundred terms of order 1
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(gradient, its, rtol=tolerance, atol=tolerance)


def test_a_constant_mask_is_recorded_as_the_places_that_it_takes():
    """How many they are a compiler can know; values and gradients stay."""
    module, table, mask = Curves().double(), ppvae.Data(np.eye(4, 2)).batch(), torch.tensor([True, False, True])

    def loss(batch):
        weight = module.weight.clone()
        weight[mask] = weight[mask].exp()
        return (batch.x @ weight.mT)[:, mask].square().sum()

    graph = capture(module, loss, table)
    assert {constant.dtype for constant in graph.buffers()} == {torch.long}
    value, (gradient,) = graph(list(module.parameters()), tensors_of(table))
    expected = loss(table)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, module.weight)[0])


def test_adam_is_adam():
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in ((3,), (2, 2))] for _ in range(2))
    mine, reference = Adam(ours), torch.optim.Adam(theirs, betas=(0.9, 0.99))
    for step in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        rate = 0.1 / (1 + step)
        mine.move(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
