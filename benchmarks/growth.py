"""Time and memory of a fit as rows grow: EM for a Gaussian mixture of 10 features, K=8, each size in a process of its own.

Memory is the peak of the process over what it held when the data stood ready; it is set beside the data's own size, 80 bytes a row.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

SIZES = (10_000, 100_000, 1_000_000)
STEPS = 10
CHILD = """
import json, resource, sys, threading, time
import ppvae
from benchmarks.em import clusters

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

n, steps = int(sys.argv[1]), int(sys.argv[2])
method = ppvae.EM(max_steps=steps, tolerance=0.0)
ppvae.fit(ppvae.models.GMM(8), clusters(1000, 10, 8), method)  # imports and first calls
data = ppvae.Data(clusters(n, 10, 8))
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
fit = ppvae.fit(ppvae.models.GMM(8), data, method)
seconds = time.perf_counter() - began
done.set()
watcher.join()
print(json.dumps({"seconds": seconds, "EM seconds": fit.seconds, "beyond": max(0, peak - before) / (80 * n)}))
"""


def rows() -> Iterator[dict[str, object]]:
    """One row a size; the ratios are to the size before, over ten times as many rows."""
    before: dict[str, float] = {}
    for n in SIZES:
        run = subprocess.run([sys.executable, "-c", CHILD, str(n), str(STEPS)], check=True, capture_output=True, text=True)
        found = json.loads(run.stdout)
        yield {
            "rows": n,
            "fit, s": found["seconds"],
            f"of it {STEPS} EM steps, s": found["EM seconds"],
            "time, of 10 times the size before": found["seconds"] / (10 * before["seconds"]) if before else None,
            "data and peak beyond, of the data's own": 1 + found["beyond"],
            "target": 1.5 if n == SIZES[-1] else None,
        }
        before = found
