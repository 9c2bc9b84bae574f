"""Timing side by side: contestants take turns, so that a busy moment of the machine hits all of them; medians and ratios are kept."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Contestants = dict[str, Callable[[], object]]
SETTLE = 0.1  # seconds between turns: the threads of one library spin for a while before they sleep, at the next one's cost


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant in each round."""

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median over rounds."""
        return statistics.median(self.rounds)

    def over(self, other: "Timing") -> float:
        """The median over rounds of the ratio to another's time in the same round."""
        return statistics.median(mine / its for mine, its in zip(self.rounds, other.rounds, strict=True))


def alternate(contestants: Contestants, rounds: int = 5) -> dict[str, Timing]:
    """Each contestant once a round, in turn, after one round that does not count."""
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            time.sleep(SETTLE)
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def race(
    case: str, contestants: Contestants, targets: dict[str, float], *, steps: int = 1, rounds: int = 5, ours: str = "ppvae"
) -> Iterator[dict[str, object]]:
    """One row a contestant: milliseconds a step, what `ours` takes relative to it, and the ratio aimed at. A run takes `steps` steps."""
    times = alternate(contestants, rounds)
    for name, found in times.items():
        ratio = None if name == ours else times[ours].over(found)
        yield {"case": case, "contestant": name, "ms": 1e3 * found.seconds / steps, "ours / it": ratio, "target": targets.get(name)}


def floor() -> dict[str, float]:
    """This machine's rates: matrix products in GFLOP/s (float64, float32) and memory in GB/s, the medians of several tries."""
    rates = {}
    for dtype in (torch.float64, torch.float32):
        a = torch.randn(1024, 1024, dtype=dtype)
        rates[f"GFLOP/s {str(dtype).removeprefix('torch.')}"] = 2 * 1024**3 / _median(lambda a=a: a @ a) / 1e9
    long = torch.randn(2**25)
    other = torch.empty_like(long)
    rates["GB/s copy"] = 2 * long.numel() * 4 / _median(lambda: other.copy_(long)) / 1e9
    return rates


def _median(run: Callable[[], object]) -> float:
    return alternate({"it": run}, 10)["it"].seconds
