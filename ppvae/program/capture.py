"""A Pyro program at compiled speed: run it once, keep the tensor operations, run those.

Pyro interprets its program again at every step. Here the program runs once under `make_fx`, which records the tensor operations of the
loss and its gradient as a flat graph; random draws are operations of the graph, so each call draws anew. The graph runs as it is, or
compiled by Inductor, the compiler behind `torch.compile`.

Sums into indexed places (the gradient of `means[k]`) stay PyTorch's own when the rest is compiled: with several threads, torch 2.13's
compiler for the CPU may write such sums to wrong places, past the end of their tensor too (pytorch/pytorch#191837).
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.data import Batch

aten = torch.ops.aten
Loss = Callable[[Batch, Tensor], Tensor]
Graph = Callable[[list[Tensor], list[Tensor], Tensor], tuple[Tensor, list[Tensor]]]


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


def capture(module: nn.Module, loss: Loss, batch: Batch, weight: Tensor) -> Graph:
    """Record `loss(batch, weight)`, which reads the parameters of `module`, together with its gradient.

    Returns a graph (parameters, batch tensors, weight) -> (loss, gradients), for batches shaped as this one; `weight` () may change from
    call to call. Raises CaptureError where the program branches on its data or samples a site that has no reparametrised gradient.
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
        raise CaptureError(str(error).strip().splitlines()[0]) from error
    return without_detours(graph)


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
