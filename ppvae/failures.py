"""Code of a user's own that fails: one sentence with what failed, at which line of its file, and why."""

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path

from ppvae.messages import why

MISTAKES = (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)  # what such code may raise

REMEDIES = {  # for what Pyro says
    "to find key in intermediates cache": "this flow has no inverse, so it draws and cannot score rows: use it in a guide, or a coupling",
    "Shape mismatch inside plate": "features are not rows: add .to_event(1) to the distribution",
    "must be Tensor, not Batch": "a guide is called with a batch: read batch.x, and sample inside `with batch.rows:`",
    "Multiple sample sites named 'rows'": "put all sites under one `with batch.rows:`, or keep the plate: rows = batch.rows",
}


def failure(what: str, function: Callable[..., object], error: Exception) -> ValueError:
    """The error to raise in the place of `error`, with a remedy where one is known. function: the user's, in which it began."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _file(function) and frame.line]
    line = f" at line {own[-1].lineno}, `{own[-1].line}`" if own else ""
    said = why(error)
    if "NoneType" in said and _without_context(function, error):
        return ValueError(
            f"{what} reads the context of the data{line}, and they have none: give Data(x, context=...), or its columns, --context"
        )
    remedy = next((f" ({remedy})" for sign, remedy in REMEDIES.items() if sign in said), "")
    return ValueError(f"{what} fails{line}: {type(error).__name__}: {said}{remedy}")


def _without_context(function: Callable[..., object], error: Exception) -> bool:
    """Whether the line that failed, in the user's function, reads the context of data or a batch without one."""
    frames = [(frame, lines) for frame, lines in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == _file(function)]
    if not frames or "context" not in linecache.getline(frames[-1][0].f_code.co_filename, frames[-1][1]):
        return False
    held = frames[-1][0].f_locals.values()
    return any(hasattr(value, "observed") and getattr(value, "context", 0) is None for value in held)


def is_refusal(function: Callable[..., object], error: Exception) -> bool:
    """Whether the error is a sentence meant for the user: a ValueError that this function's file or ppvae itself raises."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(Path(__file__).parent) or last.filename == _file(function)
    return isinstance(error, ValueError) and ours and (last.line or "").startswith("raise ")


def _file(function: Callable[..., object]) -> str | None:
    """Where a function's code is, under what decorates it; None for what is torch's or not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None or function.__module__.startswith("torch.") else code.co_filename
