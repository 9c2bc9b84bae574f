"""Finite latents summed out one after another: the log of a sum of products, at the cost that the story's structure allows.

A trace's log probabilities are factors over symbols: one for each plate, one for each enumerated site. pyro.markov hands the same dim of
tensors to several sites in turn, so dims do not tell sites apart; Pyro's packed tensors, which carry their symbols, do. To sum a site out
is to add the factors that speak of it and to take a log-sum-exp (variable elimination; Koller & Friedman 2009, section 9.3): K^2 a link
for a chain, K^(width + 1) for any other graph.

Factors are added before anything is exponentiated. Pyro's own contraction (`pyro.ops.einsum.torch_log`) exponentiates each factor by
itself, and loses what two factors that disagree by more than 745 nats say together.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

from pyro.ops import packed

Factor = Any  # a packed tensor: a Tensor with `_pyro_dims`, a string with the symbol of each of its dims
TABLE = 2**28  # numbers in the largest table of values side by side: 2 GiB in float64


def eliminated(factors: list[Factor], symbols: Iterable[str]) -> Factor:
    """log of the sum over `symbols` of exp(the sum of packed `factors`), packed. Raises ValueError where it would need a huge table."""
    size: dict[str, int] = {symbol: n for factor in factors for symbol, n in zip(factor._pyro_dims, factor.shape, strict=True)}
    of = {symbol: [f for f in factors if symbol in f._pyro_dims] for symbol in symbols if symbol in size}
    rest = [f for f in factors if not any(symbol in of for symbol in f._pyro_dims)]

    def cost(symbol: str) -> int:
        """How many numbers the factors of a symbol hold when they are added."""
        return prod(size[s] for s in set().union(*(f._pyro_dims for f in of[symbol])))

    costs = {symbol: cost(symbol) for symbol in of}
    while of:
        symbol = min(costs, key=lambda s: (costs[s], s))
        if costs[symbol] > TABLE:
            raise ValueError(
                f"summing out the finite latents takes a table of {costs[symbol]:.2g} numbers: use pyro.markov for chains, or fewer values"
            )
        del costs[symbol]
        spoken = of.pop(symbol)
        summed = added(spoken)
        dims = summed._pyro_dims
        out = summed.logsumexp(dims.index(symbol))
        out._pyro_dims = dims.replace(symbol, "")
        near = [s for s in out._pyro_dims if s in of]
        for other in near:
            of[other] = [f for f in of[other] if not any(f is s for s in spoken)] + [out]
        costs |= {other: cost(other) for other in near}
        if not near:
            rest.append(out)
    return added(rest)


def added(factors: list[Factor]) -> Factor:
    """The sum of packed factors, packed."""
    total, *others = packed.broadcast_all(*factors)
    dims = total._pyro_dims
    for factor in others:
        total = total + factor
    total._pyro_dims = dims
    return total
