"""One run of a story or a guide on a few rows: what is wrong with it comes out as one sentence, before anything is fitted."""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine

from ppvae.data import Batch
from ppvae.failures import MISTAKES, failure
from ppvae.program.joint import Program, Site, random_sites


def tried(
    model: str, part: str, program: Program, function: Callable[..., object], batch: Batch,
    wrong: Callable[[dict[str, Site]], str | None], untrained: str,
) -> poutine.Trace:  # fmt: skip
    """The program's trace on a batch of its own, log probabilities computed.

    model, part: "gmm", "the story", as a sentence names them.  function: the user's, which `program` calls.  wrong: what cannot be scored
    about the sites, as a sentence.  untrained: where a pyro.param called {} belongs instead.
    Raises ValueError for such sites, and, with the line, for a program that fails, that changes the rows or has parameters of its own.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), pyro.validation_enabled(True), pyro.get_param_store().scope():
        try:
            trace = poutine.trace(program).get_trace(batch)
            found = wrong(random_sites(trace))
            if found is None:
                trace.compute_log_prob()
        except MISTAKES as error:
            raise failure(f"{model}: {part}", function, error) from error
    if found is not None:
        raise ValueError(f"{model}: {found}")
    spoilt = next((name for name in ("x", "context") if getattr(getattr(batch, name), "_version", 0)), None)
    if spoilt is not None:
        raise ValueError(f"{model}: {part} changes batch.{spoilt} in place, and so the data: change a copy, batch.{spoilt}.clone()")
    given = next((name for name, site in trace.nodes.items() if site["type"] == "param"), None)
    if given is not None:
        name, module, _ = given.partition("$$$")
        kind = "module" if module else "param"
        raise ValueError(f"{model}: {part} has a pyro.{kind} {name!r}, which no method trains: {untrained.format(name)}")
    return trace
