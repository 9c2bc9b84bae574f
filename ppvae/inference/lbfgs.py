"""L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, algorithms 7.5 and 3.5), a step at a time, for a mean over rows."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MEMORY = 20  # steps whose curvature is remembered


def ascend(terms: Callable[[], Iterable[Tensor]], parameters: list[nn.Parameter]) -> Iterator[float]:
    """Climb the sum of `terms()`, scalar tensors that are differentiated one after another so that no graph outlives its term.

    Yields the sum where each step begins, then takes the step; the caller ends it.
    """
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=1, max_eval=25, history_size=MEMORY, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Any:
        optimizer.zero_grad()
        total = parameters[0].new_zeros(())
        with torch.enable_grad():
            for term in terms():
                (-term).backward()
                total = total - term.detach()
        for parameter in parameters:  # torch's L-BFGS takes no gradient that lies otherwise, as that of a transposed view does
            parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
        if not torch.isfinite(total):  # worse than anywhere, by a slope that says nothing: the line search then halves its step
            total = total.new_tensor(math.inf)
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, math.nan)
        return total

    while True:
        yield -float(evaluate())
        optimizer.step(evaluate)
