"""What a recording of a program would freeze: values that leave the tensors, for Python or for a shape.

A recording keeps the operations of one run, with every number that was none of its tensors. A number that Python read from a tensor, and a
shape made of values, would so stay as they were in that run. Where they come of constants alone they are the same in every run.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READ = "needs a tensor's value, as if, assert, .item(), .numpy() and iterating over a pyro.plate do; torch.where and range do not"
SHAPED = "makes a tensor whose shape depends on values, as x[mask], nonzero and unique do; torch.where does not"
READERS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}  # calls that are no operations
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Frozen(RuntimeError):
    """A value that varies from run to run has left the tensors of a recording; the message says how."""


class Operations(TorchDispatchMode):
    """Raises Frozen, within a recording, for operations that give Python a value, or make a shape of values, that varies.

    `read`: whether values that do not vary were taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = False

    def take(self, values: Sequence[Tensor], how: str) -> None:
        """Values leave the tensors."""
        if any(varies(value) for value in values):
            raise Frozen(how)
        self.read = True

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options, tensors = options or {}, [a for a in arguments if isinstance(a, Tensor)]
        if torch.Tag.data_dependent_output in operation.tags or operation is aten.equal.default:
            self.take(tensors, READ)
            with disable_proxy_modes_tracing():
                return operation(*arguments, **options)
        if operation in INDEXED:
            masks = [index for index in arguments[1] if is_mask(index)]
            if masks and (operation is aten.index.Tensor or not any(map(varies, masks))):  # what is put at a mask keeps its shape
                self.take(masks, SHAPED)
                arguments = (arguments[0], places(arguments[1]), *arguments[2:])
        elif torch.Tag.dynamic_output_shape in operation.tags:
            self.take(tensors, SHAPED)
        return operation(*arguments, **options)


class Calls(TorchFunctionMode):
    """The same for calls that read a tensor's memory, which are no operations."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, call: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if call in READERS:
            self.operations.take(arguments[:1], READ)
        return call(*arguments, **(options or {}))


def varies(value: Tensor) -> bool:
    """Whether a tensor met in a recording is made of the recording's arguments, of draws or of what it changes: not of constants alone."""
    mode = get_proxy_mode()
    assert mode is not None  # it is recording
    found = get_proxy_slot(value, mode.tracer, None)
    waiting = [] if found is None else [found.proxy.node]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder" or draws_or_changes(node.target):
            return True
        waiting += [before for before in node.all_input_nodes if before not in seen]
        seen.update(waiting)
    return False


def draws_or_changes(target: Any) -> bool:
    """Whether an operation is random or changes a tensor in place."""
    is_operation = isinstance(target, torch._ops.OpOverload)
    return is_operation and (torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable)


def is_mask(index: Tensor | None) -> TypeGuard[Tensor]:
    """Whether an index is a table of which places to take."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same indices with the places that each mask takes, as constants, which a compiler knows the number of."""
    with disable_proxy_modes_tracing():
        return [place for index in indices for place in (index.nonzero().unbind(-1) if is_mask(index) else (index,))]
