"""Seconds to start: `ppvae --help`, and what `import ppvae` adds to importing torch and pyro. Each in a process of its own."""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import alternate

IMPORT = "import torch, pyro, time; began = time.perf_counter(); import ppvae; print(time.perf_counter() - began)"


def rows() -> Iterator[dict[str, object]]:
    """One row each, the median of several processes."""
    script = str(Path(sys.executable).with_name("ppvae"))
    found = alternate({"ppvae --help": lambda: subprocess.run([script, "--help"], check=True, capture_output=True)}, 7)
    yield {"what": "ppvae --help", "seconds": found["ppvae --help"].seconds, "target": 0.5}
    added = [float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True).stdout) for _ in range(7)]
    yield {"what": "import ppvae, beyond torch and pyro", "seconds": statistics.median(added), "target": 0.3}
