"""Milliseconds an EM iteration with missing entries, float64: PPCA beside ppca-py, the Gaussian mixture beside its own complete rows."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch

import ppvae
from benchmarks.em import clusters, em_steps
from benchmarks.timing import race

SHAPES = [(5_000, 100, 10), (20_000, 50, 5), (2_000, 784, 20)]  # rows, features, latents
STEPS = 10


def rows() -> Iterator[dict[str, object]]:
    """One row for each shape, share of missing entries and contestant."""
    random = np.random.default_rng(0)
    for n, d, latents in SHAPES:
        x = random.standard_normal((n, latents)) @ random.standard_normal((latents, d)) + random.standard_normal((n, d))
        for share in (0.1, 0.3, 0.6):
            holes = np.where(random.random(x.shape) < share, np.nan, x)
            peer = {"ppca-py": _ppca_py(holes, latents)} if find_spec("ppca") is not None else {}
            case = f"PPCA, {n:,} x {d}, {latents} latents, {share:.0%} missing"
            yield from race(case, peer | {"ppvae": _steps(ppvae.models.PPCA(latents), holes)}, {"ppca-py": 0.25}, steps=STEPS, rounds=3)
    x = clusters(50_000, 10, 8)
    holes = np.where(random.random(x.shape) < 0.2, np.nan, x)
    pair = {"complete": _steps(ppvae.models.GMM(8), x), "20% missing": _steps(ppvae.models.GMM(8), holes)}
    yield from race("GMM, 50,000 x 10, K=8", pair, {"complete": 5.0}, steps=STEPS, ours="20% missing")


def _steps(model: ppvae.Model, x: np.ndarray) -> Callable[[], None]:
    data = ppvae.Data(x)
    return em_steps(model, data, model.init(data, torch.Generator().manual_seed(0)), STEPS)


def _ppca_py(x: np.ndarray, latents: int) -> Callable[[], object]:
    """A fit of exactly as many iterations; with so large a tolerance it stops as soon as it may."""
    from ppca import PPCA

    return lambda: PPCA(n_components=latents, max_iter=STEPS + 1, min_iter=STEPS, rtol=1e9, rotate_to_orthogonal=False).fit(x)
