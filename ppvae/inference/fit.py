"""fit: from a model, data and a method to a Fit."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ppvae import guides
from ppvae.data import Data, as_data
from ppvae.inference.cavi import CAVI
from ppvae.inference.closed_form import ClosedForm
from ppvae.inference.em import EM
from ppvae.inference.method import TURN, Method, Progress, Task, seeded, undisturbed
from ppvae.inference.result import Fit
from ppvae.inference.svi import SVI
from ppvae.messages import check_object, either, few, unknown
from ppvae.model import Model, ask, check_model
from ppvae.parameters import Parameters, detached
from ppvae.program.story import check_story
from ppvae.program.values import reads_numbers, some_rows
from ppvae.ranges import check_columns
from ppvae.threads import threads, threads_for


@torch.inference_mode(False)  # else the start would hold tensors that take no gradient
def fit(
    model: Model,
    data: object,
    method: Method | str | None = None,
    *,
    seed: int = 0,
    init: Mapping[str, Any] | None = None,
    guide: guides.Guide | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit a model to data.

    model: a Model.  data: a Data, or anything that Data takes.  method: EM(...), SVI(...), ClosedForm(); None: the best that the model
    allows (closed form, EM, CAVI, SVI).  seed: of the start and of every draw.  init: {public name: constrained value} overrides
    the start.  guide: a module, a function of the batch or a family's name, for SVI and its relatives.  dtype: "float64" or "float32"
    (None: float64, or float32 where theta holds networks).  progress: called with (done, total, note).

    Raises ValueError for data that the model cannot take, a context that it does not read, a method that it does not allow or that takes
    no guide, and unknown names or values in `init`.

    >>> import ppvae
    >>> faithful = ppvae.load_data("faithful")
    >>> fitted = fit(ppvae.models.GMM(n_components=2), faithful, ppvae.EM())
    >>> fitted.status
    'converged: the last step gained less than 1e-10 nats per row'
    """
    check_model(model)
    if isinstance(method, str):
        from ppvae.registry import load_methods

        named = load_methods(method)
        if len(named) > 1:
            raise ValueError(f"fit takes one method, not {few(m.name for m in named)}: choose one, or use ppvae.compare for all of them")
        method = named[0]
    if method is not None:
        check_method(method)
    data = prepare(model, as_data(data), device)
    theta = start(model, data, seed, init)
    data = rounded(data, precision(theta, dtype))
    method = method or best_method(model, data)
    check_guide(guide, [method])
    check_init(init, theta, [method])
    return run(method, model, data, theta, seed=seed, guide=guide, progress=progress)


@threads(1)
def prepare(model: Model, data: Data, device: str | torch.device | None) -> Data:
    """The data checked against the model, on the device of the fit."""
    if data.unobserved:
        raise ValueError(f"no entry is observed in {few(data.unobserved)}: leave such columns out")
    if data.x.is_inference():
        raise ValueError("the data were made under torch.inference_mode, whose tensors take no part in gradients: make them outside it")
    check_columns(data, data.dtype)
    ask(model, "check", data)
    if device is not None:
        check_device(device)
    return data.to(device=device)


@threads(1)
def rounded(data: Data, dtype: torch.dtype) -> Data:
    """The data in the precision of the fit. Raises ValueError where it is too coarse for them."""
    check_columns(data, dtype)
    return data.to(dtype)


DTYPES = {"float64": torch.float64, "float32": torch.float32}


def precision(theta: Parameters, dtype: torch.dtype | str | None = None) -> torch.dtype:
    """What is asked for; else float32 where theta holds networks, whose training is noisy anyway, and float64 for exact work.

    Raises ValueError for anything but float64 and float32, as torch's or NumPy's own or by name.
    """
    if dtype is None:
        return torch.float32 if any(True for _ in theta.children()) else torch.float64
    name = getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def check_device(device: str | torch.device) -> None:
    """Raise ValueError for a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {str(device)!r} is not there: use 'cpu', or see torch.cuda.is_available()") from error


def best_method(model: Model, data: Data) -> Method:
    """The first of closed form, EM, CAVI and SVI that the model allows."""
    return next(m for kind in (ClosedForm, EM, CAVI, SVI) if (m := kind()).refusal(model, data) is None)


def check_method(method: object) -> None:
    """Raise ValueError for what is no method."""
    check_object(method)
    if not isinstance(method, Method):
        raise ValueError(f"a method is an object such as ppvae.EM(), or a word such as 'em', not {method!r}")


def check_guide(guide: guides.Guide | None, methods: Sequence[Method]) -> None:
    """Raise ValueError for a guide that none of the methods would use."""
    if guide is not None and not any(method.guided for method in methods):
        raise ValueError(f"{few(method.name for method in methods)} takes no guide: leave it out, or use a method such as SVI")


def check_init(init: Mapping[str, Any] | None, theta: Parameters, methods: Sequence[Method]) -> None:
    """Raise ValueError for a start that no method would start from."""
    moved = [name for name in init or {} if name in theta.trainable]
    if moved and all(isinstance(method, ClosedForm) for method in methods):
        raise ValueError(f"closed_form finds {few(moved)} from the data alone, whatever init says: leave it out, or use EM")


def refuse(method: Method, model: Model, data: Data) -> None:
    """Raise ValueError where the method cannot fit this model to these data; where no settings could help, name the methods that can."""
    reason = method.refusal(model, data)
    if reason is None:
        return
    if type(method)().refusal(model, data) is None:
        raise ValueError(reason)
    from ppvae.registry import methods

    able = [entry.class_name for entry in methods().values() if entry.load()().refusal(model, data) is None]
    raise ValueError(f"{reason}: use {either(able)}")


@threads(1)
def start(model: Model, data: Data, seed: int, init: Mapping[str, Any] | None = None) -> Parameters:
    """The start that every method of a seed shares."""
    with seeded(seed) as generator:
        theta = ask(model, "init", data, generator)
    if not isinstance(theta, Parameters):
        raise ValueError(f"{model.name}: init must return ppvae.Parameters, not {type(theta).__name__}")
    theta = theta.to(dtype=data.dtype, device=data.device)
    theta.check()
    if init is not None and not isinstance(init, Mapping):
        raise ValueError(f"init gives values by name, such as {{{theta.names[0]!r}: ...}}, not {init!r}")
    if init:
        theta.assign(dict(init))
    return theta


def _copied(guide: guides.Guide | None) -> guides.Guide | None:
    return copy.deepcopy(detached(guide) if isinstance(guide, torch.nn.Module) else guide)


def run(
    method: Method,
    model: Model,
    data: Data,
    theta: Parameters,
    *,
    seed: int,
    guide: guides.Guide | None = None,
    progress: Progress | None = None,
) -> Fit:
    """One method from one start; `theta` becomes the fit's own."""
    with TURN, undisturbed():
        theta = theta.to(data.dtype)
        check_story(model, theta, data)
        refuse(method, model, data)  # which may run the story
        began = time.perf_counter()
        with seeded(seed, data.device), threads_for(method.entries(data, theta)):
            outcome = method.run(Task(model, data, theta, _copied(guide), seed, progress or (lambda done, total, note: None)))
        for trained in (theta, outcome.guide):
            trained.eval()  # dropout belongs to training
        programs, few_rows = (partial(model.model, theta), outcome.guide), some_rows(data.batch())
        digest = data.digest if any(reads_numbers(program, few_rows) for program in programs) else None
    seconds = outcome.history[-1]["seconds"] if outcome.history else time.perf_counter() - began
    return Fit(
        model=model,
        method=method,
        theta=theta,
        guide=outcome.guide,
        history=outcome.frame(),
        status=outcome.status,
        converged=outcome.converged,
        seconds=seconds,
        steps=outcome.steps,
        seed=seed,
        engine=outcome.engine,
        trained_on=replace(data.summary(), digest=digest),
    )
