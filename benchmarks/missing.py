"""Seconds per EM iteration with missing entries: PPCA beside ppca-py, the Gaussian mixture beside its own complete-data iteration."""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import torch

import ppvae
from benchmarks.timing import alternate

SHAPES = [(5_000, 100, 10), (20_000, 50, 5), (2_000, 784, 20)]


def rows() -> Iterator[dict[str, object]]:
    """One row for each shape and share of missing entries."""
    random = np.random.default_rng(0)
    for n, d, latents in SHAPES:
        x = random.standard_normal((n, latents)) @ random.standard_normal((latents, d)) + random.standard_normal((n, d))
        for share in (0.1, 0.3, 0.6):
            holes = np.where(random.random(x.shape) < share, np.nan, x)
            contestants = {"ppvae": _steps(ppvae.models.PPCA(latents), holes)}
            if find_spec("ppca") is not None:
                contestants = {"ppca-py": _ppca_py(holes, latents)} | contestants
            for who, found in alternate(contestants, 3).items():
                case = f"ppca, {n} x {d}, {latents} latents, {share:.0%} missing"
                yield {"case": case, "method": who, "ms an iteration": 1e3 * found.seconds / STEPS, "ratio": found.ratio}
    x = random.standard_normal((50_000, 10)) + 4 * random.standard_normal((8, 10))[random.integers(8, size=50_000)]
    holes = np.where(random.random(x.shape) < 0.2, np.nan, x)
    times = alternate({"complete": _steps(ppvae.models.GMM(8), x), "20% missing": _steps(ppvae.models.GMM(8), holes)}, 3)
    for who, found in times.items():
        yield {"case": "gmm, 50,000 x 10, K=8", "method": who, "ms an iteration": 1e3 * found.seconds / STEPS, "ratio": found.ratio}


STEPS = 10


def _steps(model: ppvae.Model, x: np.ndarray):
    """`STEPS` EM iterations from one start, the start's own time left out."""
    from ppvae.inference.em import sum_statistics
    from ppvae.inference.fit import start

    data = ppvae.Data(x)
    theta = start(model, data, 0)
    chunks = list(data.chunks(model.closed_forms.chunk_rows(data)))
    exact = model.closed_forms

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            theta.assign(exact.maximize(theta, sum_statistics(exact, theta, chunks)))

    return run


def _ppca_py(x: np.ndarray, latents: int):
    from ppca import PPCA

    return lambda: PPCA(n_components=latents, max_iter=STEPS, min_iter=STEPS, rtol=0.0).fit(x)
