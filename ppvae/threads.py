"""How many threads an operation is worth."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

SMALL = 500_000  # entries: below this, threads cost more in waiting for one another than they save


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch's within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(entries: int) -> AbstractContextManager[None]:
    """One thread where each of many operations works on few entries; on a busy machine two would spin for each other."""
    return threads(1 if entries < SMALL else torch.get_num_threads())
