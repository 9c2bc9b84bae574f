"""A Pyro program at compiled speed: run it once, keep the tensor operations, run those.

Pyro interprets its program again at every step. Here the program runs once under `make_fx`, which records the tensor operations of the
loss and its gradient as a flat graph; random draws are operations of the graph, so each call draws anew. The graph runs as it is, or
compiled by Inductor, the compiler behind `torch.compile`.

What is compiled is changed in two places first. Sums into indexed places (the gradient of `means[k]`) stay PyTorch's own: with several
threads, torch 2.13's compiler for the CPU may write such sums to wrong places, past the end of their tensor too (pytorch/pytorch#191837).
And the curves of networks and coins are said in words that a value and its gradient share: one exponential and a cheap logarithm.
"""

import logging
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.data import Batch
from ppvae.program.frozen import Calls, Frozen, Operations

aten = torch.ops.aten
Loss = Callable[..., Tensor]
Graph = Callable[..., tuple[Tensor, Sequence[Tensor]]]
FROZEN = "run again it is another: it takes numbers from outside the tensors (a counter, Python's random), which a recording would freeze"
KEPT = "it reads the value of a tensor and changes its buffers as it runs: a recording would keep the value that it read"
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)  # ValueError: a user's mistake


class CaptureError(RuntimeError):
    """The program cannot be recorded as a graph; the message says why."""


class CompileError(RuntimeError):
    """The graph cannot be compiled here; the message says why."""


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, those that a graph takes."""
    return [t for t in (batch.x, batch.observed, batch.index, batch.context) if t is not None]


def batch_from(tensors: list[Tensor], like: Batch) -> Batch:
    """The batch whose tensors these are; its other facts are `like`'s. Where no entry is missing a graph holds no mask."""
    x, observed, index, *context = tensors
    if like.complete:
        observed = observed.new_ones(()).expand(observed.shape)
    return replace(like, x=x, observed=observed, index=index, context=context[0] if context else None)


def capture(module: nn.Module, loss: Loss, batch: Batch, *more: Tensor, other: Sequence[Tensor] | None = None) -> Graph:
    """Record `loss(batch, *more)`, which reads the parameters of `module`, together with its gradient.

    Returns a graph (parameters, batch tensors, *more) -> (loss, gradients), for tensors shaped as these; their values may change from call
    to call. The graph is held against the program at `other` in the place of `more` (None: the same). Raises CaptureError where the
    program branches on its data, samples a site that has no reparametrised gradient, or has values that a graph would freeze; and for a
    program that fails, whose own failure a plain run will show.
    """
    parameters = [laid_out_as(p, p).requires_grad_() for p in module.parameters() if p.requires_grad]
    changes = [b._version for b in module.buffers()]
    watch = Operations()

    def loss_and_gradients(values: list[Tensor], tensors: list[Tensor], *more: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with in_place_of_parameters(module, values):
            value = loss(batch_from(tensors, batch), *more)
        return value.detach(), torch.autograd.grad(value, values, materialize_grads=True)

    def watched(*arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        with watch, Calls(watch):
            return loss_and_gradients(*arguments)

    try:
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), lent_folder():
            graph = without_detours(make_fx(watched)(parameters, tensors_of(batch), *more))
        if watch.read and changes != [b._version for b in module.buffers()]:
            raise CaptureError(KEPT)
        if not _heeds(module, graph, loss_and_gradients, parameters, tensors_of(batch), more if other is None else other):
            raise CaptureError(FROZEN)
    except FAILURES as error:
        raise CaptureError(_reason(error)) from error
    return graph


def laid_out_as(like: Tensor, values: Tensor) -> Tensor:
    """A copy of the values that lies in memory as `like` does: what is recorded of one layout may not be right for another."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device).copy_(values.detach())


@contextmanager
def in_place_of_parameters(module: nn.Module, values: Sequence[Tensor]) -> Iterator[None]:
    """The module with these tensors where its trained parameters are, in their order.

    torch.func.functional_call puts its own in for good where one network is found under two names, as in flows and tied encoders.
    """
    by_place = dict(zip((p for p in module.parameters() if p.requires_grad), values, strict=True))
    kept = [(part._parameters, name, p) for part in module.modules() for name, p in part._parameters.items() if p in by_place]
    try:
        for slots, name, parameter in kept:
            slots[name] = by_place[parameter]  # type: ignore[assignment]  # a plain tensor, as functional_call does
        yield
    finally:
        for slots, name, parameter in kept:
            slots[name] = parameter


def first_line(error: Exception) -> str:
    """What an error says before it goes on."""
    return str(error).strip().partition("\n")[0]


def _reason(error: Exception) -> str:
    """What stops a recording, with its line where values leave the tensors."""
    said = first_line(error) or type(error).__name__
    if not isinstance(error, Frozen):
        return said
    ours = (*torch.__path__, *pyro.__path__, str(Path(__file__).parents[1]))
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.line and not f.filename.startswith(ours)]
    return f"line {own[-1].lineno}, `{own[-1].line}`, {said}" if own else f"it {said}"


def _heeds(module: nn.Module, graph: Graph, program: Graph, values: list[Tensor], tensors: list[Tensor], more: Sequence[Tensor]) -> bool:
    """Whether the graph says what the program says of these rows, at other parameters and with other draws, and leaves the same buffers."""
    device = tensors[0].device
    begun = [b.clone() for b in module.buffers()]
    said: list[list[Tensor]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), pyro.validation_enabled(False):
        torch.manual_seed(0)
        moved = [laid_out_as(v, v + 0.01 * torch.randn_like(v)).requires_grad_() for v in values]
        for one, gradients in ((graph, False), (program, True)):
            with torch.no_grad():
                for buffer, before in zip(module.buffers(), begun, strict=True):
                    buffer.copy_(before)
            torch.manual_seed(1)
            with torch.set_grad_enabled(gradients):
                said.append([one(moved, tensors, *more)[0], *module.buffers()])
            said[-1] = [found.detach().clone() for found in said[-1]]
    near = torch.finfo(said[0][0].dtype).eps ** 0.5
    return all(torch.allclose(recorded, expected, rtol=near, equal_nan=True) for recorded, expected in zip(*said, strict=True))


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
        node.meta.clear()  # what the recording knew of its tensors, which the compiler works out anew
    graph.recompile()
    return graph


def operations(graph: Graph) -> int:
    """How many tensor operations one call of a captured graph dispatches."""
    assert isinstance(graph, torch.fx.GraphModule)
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def unwritable() -> str | None:
    """A sentence for a folder named for what Inductor writes that cannot be written; None where it can, or none is named."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"the folder that TORCHINDUCTOR_CACHE_DIR names, {folder}, cannot be written ({error.strerror})"
    return None


@contextmanager
def lent_folder() -> Iterator[None]:
    """A folder that can be written in the place of one that cannot, for recording, which imports Inductor."""
    if unwritable() is None:
        yield
        return
    named = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    with tempfile.TemporaryDirectory() as lent:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = lent
        try:
            yield
        finally:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = named


def lacking(device: torch.device) -> str | None:
    """What Inductor lacks to generate code for this device here, None where nothing."""
    bad_folder = unwritable()
    if bad_folder:
        return bad_folder
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        return f"there is no C++ compiler ({first_line(error)})"
    return "there is no Triton, which compiles for GPUs" if device.type == "cuda" and not has_triton() else None


def compiled(graph: Graph, parameters: Sequence[Tensor], tensors: Sequence[Tensor], *more: Tensor) -> Graph:
    """The graph compiled for arguments shaped as these; no random state is spent. Raises CompileError where that cannot be done.

    On a GPU a call is one CUDA graph, which reads `parameters` and `tensors` where they lie: others given in their place are copied there.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    many, few = len(parameters), len(parameters) + len(tensors)

    def flat(*arguments: Tensor) -> tuple[Tensor, ...]:
        value, gradients = graph(list(arguments[:many]), list(arguments[many:few]), *arguments[few:])
        return value, *gradients

    example: list[Any] = [*parameters, *tensors, *(m.clone() for m in more)]
    device = example[0].device
    missing, on_gpu = lacking(device), device.type == "cuda"
    if missing:
        raise CompileError(missing)
    options = {} if on_gpu else {"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"}
    options["fallback_random"] = True  # the draws of the program, not others of the compiler's
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[device] if on_gpu else []), torch.no_grad():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        try:
            lean = with_opaque_sums(make_fx(flat, decomposition_table=SHARED)(*example))
            fast = torch._inductor.compile(lean, example, options=options)
        except (RuntimeError, OSError) as error:  # of Inductor, since the graph has run
            by = "" if on_gpu else f" with the C++ compiler {get_cpp_compiler()}"
            raise CompileError(f"Inductor fails{by} ({first_line(error)})") from error
        fast(*example)
        if on_gpu:
            fast = replayed(fast, example)

    def run(parameters: Sequence[Tensor], tensors: Sequence[Tensor], *more: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        value, *gradients = fast(*parameters, *tensors, *more)
        return value, gradients

    return run


def replayed(run: Callable[..., Sequence[Tensor]], held: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """All kernels of `run(*held)` launched at once, as a CUDA graph; other arguments are copied to where `held` lie."""
    aside = torch.cuda.Stream()  # first uses, as of cuBLAS, must not fall into a recording
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run(*held)
    torch.cuda.current_stream().wait_stream(aside)
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        found = run(*held)

    def replay(*given: Tensor) -> Sequence[Tensor]:
        for here, there in zip(held, given, strict=True):
            if here is not there:
                here.copy_(there)
        recording.replay()
        return [out.clone() for out in found]  # the next replay writes here again

    return replay


def _small(x: Tensor) -> Tensor:
    """exp(-|x|), of which softplus, the sigmoid and the cross-entropy are made."""
    return x.abs().neg().exp()


def _log1p(small: Tensor) -> Tensor:
    """log(1 + e) of e in [0, 1]; in float32 e times a polynomial, right to rounding at a third of the library's time."""
    if small.dtype != torch.float32:
        return small.log1p()
    u, value = 2 * small - 1, LOG1P[-1]
    for coefficient in LOG1P[-2::-1]:
        value = value * u + coefficient
    return value * small


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x > threshold, x, x.clamp(min=0) + _log1p(_small(x))) if beta == 1 else NotImplemented


def _sigmoid(x: Tensor) -> Tensor:
    small = _small(x)
    return torch.where(x > 0, 1.0, small) / (1 + small)


def _softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    return gradient * torch.where(x > threshold, 1.0, _sigmoid(x)) if beta == 1 else NotImplemented


def _cross_entropy(logits: Tensor, x: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1) -> Tensor:
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return logits.clamp(min=0) - logits * x + _log1p(_small(logits))


LOG1P = Chebyshev.interpolate(lambda e: np.log1p(e) / e, 9, domain=[0, 1]).convert(kind=Polynomial, domain=[0, 1]).coef.tolist()
SHARED: dict[Any, Callable[..., Any]] = {
    aten.sigmoid.default: _sigmoid,
    aten.softplus.default: _softplus,
    aten.softplus_backward.default: _softplus_backward,
    aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}
