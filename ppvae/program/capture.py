"""A Pyro program at compiled speed: run it once, keep the tensor operations, run those.

Pyro interprets its program again at every step. Here the program runs once under `make_fx`, which records the tensor operations of the
loss and its gradient as a flat graph; random draws are operations of the graph, so each call draws anew. The graph runs as it is, or
compiled by Inductor, the compiler behind `torch.compile`.

Sums into indexed places (the gradient of `means[k]`) stay PyTorch's own when the rest is compiled: with several threads, torch 2.13's
compiler for the CPU may write such sums to wrong places, past the end of their tensor too (pytorch/pytorch#191837).
"""

import logging
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.data import Batch

aten = torch.ops.aten
Loss = Callable[[Batch, Tensor], Tensor]
Graph = Callable[[list[Tensor], list[Tensor], Tensor], tuple[Tensor, Sequence[Tensor]]]
FROZEN = "it takes numbers out of tensors (tolist, numpy) or from elsewhere (a counter, Python's random), which a recording would freeze"


class CaptureError(RuntimeError):
    """The program cannot be recorded as a graph; the message says why."""


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, those that a graph takes."""
    return [t for t in (batch.x, batch.observed, batch.index, batch.context) if t is not None]


def batch_from(tensors: list[Tensor], like: Batch) -> Batch:
    """The batch whose tensors these are; its other facts are `like`'s. Where no entry is missing a graph holds no mask."""
    x, observed, index, *context = tensors
    if like.complete:
        observed = torch.ones_like(observed)
    return replace(like, x=x, observed=observed, index=index, context=context[0] if context else None)


def capture(module: nn.Module, loss: Loss, batch: Batch, weight: Tensor, other: Batch | None = None) -> Graph:
    """Record `loss(batch, weight)`, which reads the parameters of `module`, together with its gradient.

    Returns a graph (parameters, batch tensors, weight) -> (loss, gradients), for batches shaped as this one; `weight` () may change from
    call to call. The graph is held against the program on `other` rows, as many (None: the same rows). Raises CaptureError where the
    program branches on its data, samples a site that has no reparametrised gradient, or has values that a graph would freeze.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters() if p.requires_grad]
    frame = _Frame(module, loss, batch)

    def loss_and_gradients(values: list[Tensor], tensors: list[Tensor], weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = torch.func.functional_call(frame, {f"module.{n}": v for n, v in zip(names, values, strict=True)}, (tensors, weight))
        return value.detach(), torch.autograd.grad(value, values, materialize_grads=True)

    try:
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            graph = make_fx(loss_and_gradients)(parameters, tensors_of(batch), weight)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise CaptureError(_reason(error)) from error
    graph = without_detours(graph)
    if not _heeds(graph, loss_and_gradients, parameters, batch if other is None else other, weight):
        raise CaptureError(FROZEN)
    return graph


def _reason(error: Exception) -> str:
    """What stops a recording, in the story's terms where it is a value read from a tensor."""
    said = str(error).strip().splitlines()[0]
    if "value out of a tracing tensor" not in said:
        return said
    ours = (*torch.__path__, *pyro.__path__)
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.line and not f.filename.startswith(ours) and f.filename != __file__]
    where = f"line {own[-1].lineno}, `{own[-1].line}`, " if own else "it "
    return f"{where}reads a tensor's value (if, .item()), where torch.where would do"


def _heeds(graph: Graph, program: Graph, values: list[Tensor], batch: Batch, weight: Tensor) -> bool:
    """Whether the graph says what the program says of these rows, at other parameters and with other draws."""
    device = batch.x.device
    said = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), pyro.validation_enabled(False):
        torch.manual_seed(0)
        moved = [(v + 0.01 * torch.randn_like(v)).detach().requires_grad_() for v in values]
        for one in (graph, program):
            torch.manual_seed(1)
            said.append(one(moved, tensors_of(batch), weight)[0].detach())
    recorded, expected = said
    return torch.allclose(recorded, expected, rtol=torch.finfo(expected.dtype).eps ** 0.5, equal_nan=True)


def without_detours(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph without operations that change nothing when no gradient is recorded."""
    for node in graph.graph.nodes:
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def opaque(operation: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The same operation under a name of ours, which the compiler calls and does not look into."""
    schema = operation._schema
    name = schema.name.replace("aten::", "ppvae::")
    torch.library.define(name, str(schema).removeprefix(schema.name))
    torch.library.impl(name, ("cpu", "cuda"), operation)
    torch.library.register_fake(name, operation)
    return getattr(torch.ops.ppvae, operation.overloadpacket.__name__).default


SUMS = {op: opaque(op) for op in (aten.index_put.default, aten.index_add.default, aten.embedding_dense_backward.default)}


def with_opaque_sums(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with every sum into indexed places hidden from the compiler."""
    for node in graph.graph.nodes:
        node.target = SUMS.get(node.target, node.target)
    graph.recompile()
    return graph


def operations(graph: Graph) -> int:
    """How many tensor operations one call of a captured graph dispatches."""
    assert isinstance(graph, torch.fx.GraphModule)
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def no_compiler() -> str | None:
    """Why Inductor cannot generate code for the CPU here, None if it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds to import: only where something will be compiled
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        return str(error).strip().splitlines()[0]
    return None


def compiled(graph: Graph, *example: Any) -> Graph:
    """The graph compiled for arguments shaped as `example`; no random state is spent."""
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    assert isinstance(graph, torch.fx.GraphModule)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        fast = torch._inductor.compile(with_opaque_sums(graph), list(example))
        fast(*example)
    return fast


class _Frame(nn.Module):
    """Lets `functional_call` swap the parameters that a loss reads through its closure."""

    def __init__(self, module: nn.Module, loss: Loss, like: Batch) -> None:
        super().__init__()
        self.module, self.loss, self.like = module, loss, like

    def forward(self, tensors: list[Tensor], weight: Tensor) -> Tensor:
        return self.loss(batch_from(tensors, self.like), weight)
