"""Timing side by side: contestants take turns, so that a busy moment of the machine hits all of them; medians and ratios are kept."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant: the median over rounds, and of its ratios to the first contestant of each round."""

    seconds: float
    ratio: float


def alternate(contestants: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, Timing]:
    """Each contestant once a round, in turn, after one round that does not count."""
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    first = next(iter(taken.values()))
    return {
        name: Timing(statistics.median(seconds), statistics.median(s / f for s, f in zip(seconds, first, strict=True)))
        for name, seconds in taken.items()
    }


def floor() -> dict[str, float]:
    """This machine's rates: matrix products in GFLOP/s (float64, float32) and memory in GB/s, the best of several tries."""
    rates = {}
    for dtype in (torch.float64, torch.float32):
        a = torch.randn(1024, 1024, dtype=dtype)
        seconds = alternate({"product": lambda a=a: a @ a}, 10)["product"].seconds
        rates[f"GFLOP/s {str(dtype).removeprefix('torch.')}"] = 2 * 1024**3 / seconds / 1e9
    long = torch.randn(2**25)
    other = torch.empty_like(long)
    rates["GB/s copy"] = 2 * long.numel() * 4 / alternate({"copy": lambda: other.copy_(long)}, 10)["copy"].seconds / 1e9
    return rates
