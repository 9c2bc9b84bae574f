"""Seconds to start: `ppvae --help`, and what `import ppvae` adds to importing torch and pyro. Each in a process of its own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.timing import alternate


def rows() -> Iterator[dict[str, object]]:
    """One row each."""
    script = str(Path(sys.executable).with_name("ppvae"))
    times = alternate(
        {
            "ppvae --help": _process(script, "--help"),
            "import torch, pyro": _process(sys.executable, "-c", "import torch, pyro"),
            "import torch, pyro, ppvae": _process(sys.executable, "-c", "import torch, pyro, ppvae"),
        },
        7,
    )
    yield {"what": "ppvae --help", "seconds": times["ppvae --help"].seconds, "target": 0.5}
    pairs = zip(times["import torch, pyro, ppvae"].rounds, times["import torch, pyro"].rounds, strict=True)
    added = sorted(with_it - without for with_it, without in pairs)
    yield {"what": "import ppvae, beyond torch and pyro", "seconds": added[len(added) // 2], "target": 0.3}


def _process(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, capture_output=True)
