"""fit: from a model, data and a method to a Fit."""

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ppvae import guides
from ppvae.data import Data, as_data
from ppvae.inference.closed_form import ClosedForm
from ppvae.inference.em import EM
from ppvae.inference.method import Method, Progress, Task, seeded
from ppvae.inference.result import Fit
from ppvae.inference.svi import SVI
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import sites_of
from ppvae.scores import threads_for


def fit(
    model: Model,
    data: object,
    method: Method | None = None,
    *,
    seed: int = 0,
    init: Mapping[str, Any] | None = None,
    guide: guides.Guide | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit a model to data.

    model: a Model.  data: a Data, or anything that Data takes.  method: EM(...), SVI(...), ClosedForm(); None: the best that the model
    allows (closed form, then EM, then SVI).  seed: of the start and of every draw.  init: {public name: constrained value} overrides
    the start.  guide: a module, a function of the batch or a family's name, for SVI.  dtype: float64, or float32 where theta
    holds networks.  progress: called with (done, total, note).

    Raises ValueError for data that the model cannot take, a method that it does not allow, and unknown names or values in `init`.

    >>> import ppvae
    >>> faithful = ppvae.load_data("faithful")
    >>> fitted = fit(ppvae.models.GMM(n_components=2), faithful, ppvae.EM())
    >>> fitted.status
    'converged: the last step gained less than 1e-10 nats per row'
    """
    data = prepare(model, as_data(data), device)
    theta = start(model, data, seed, init)
    data = data.to(dtype or precision(theta))
    method = method or best_method(model, data)
    return run(method, model, data, theta, seed=seed, guide=guide, progress=progress)


def prepare(model: Model, data: Data, device: str | torch.device | None) -> Data:
    """The data checked against the model, on the device of the fit."""
    if data.unobserved:
        raise ValueError(f"no entry of column {few(data.unobserved)} is observed: drop it")
    model.check(data)
    if device is not None:
        check_device(device)
    return data.to(device=device)


def precision(theta: Parameters) -> torch.dtype:
    """float32 where theta holds networks, whose training is noisy anyway; float64 for exact work."""
    return torch.float32 if any(True for _ in theta.children()) else torch.float64


def check_story(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError for a story that does not observe the rows."""
    sites = sites_of(partial(model.model, theta), data.batch(torch.arange(min(2, data.n_rows), device=data.device)))
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(f"{model.name}: the story observes nothing: add pyro.sample('x', ..., obs=batch.x) inside batch.rows")


def check_device(device: str | torch.device) -> None:
    """Raise ValueError for a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is not there: use 'cpu', or see torch.cuda.is_available()") from error


def best_method(model: Model, data: Data) -> Method:
    """The first of closed form, EM and SVI that the model allows."""
    return next(m for m in (ClosedForm(), EM(), SVI()) if m.refusal(model, data) is None)


def start(model: Model, data: Data, seed: int, init: Mapping[str, Any] | None = None) -> Parameters:
    """The start that every method of a seed shares."""
    with seeded(seed) as generator:
        theta = model.init(data, generator).to(dtype=data.dtype, device=data.device)
    if init:
        theta.assign(dict(init))
    return theta


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
    """One method from one start; `theta` is copied."""
    reason = method.refusal(model, data)
    if reason:
        raise ValueError(reason)
    theta = copy.deepcopy(theta).to(data.dtype)
    check_story(model, theta, data)
    began = time.perf_counter()
    with seeded(seed, data.device), threads_for(method.entries(data)):
        outcome = method.run(Task(model, data, theta, copy.deepcopy(guide), seed, progress or (lambda done, total, note: None)))
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
        trained_on=data.summary(),
    )
