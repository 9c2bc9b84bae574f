"""Seconds to the stated accuracy, and per step, for each model and method, beside scikit-learn."""

import time
import warnings
from collections.abc import Iterator

import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

import ppvae
from benchmarks.timing import alternate

CASES = [
    ("ppca, iris, 2 latents", ppvae.models.PPCA(2), "iris", 0.001),
    ("gmm, faithful, 2 components", ppvae.models.GMM(2), "faithful", 0.001),
    ("ppca, digits, 10 latents", ppvae.models.PPCA(10), "digits", 0.01),
]


def rows() -> Iterator[dict[str, object]]:
    """One row a method: its gap to the best log-likelihood (nats per row), seconds and steps to the target, seconds a step."""
    for title, model, name, target in CASES:
        data = ppvae.load_data(name)
        methods = [
            m for m in (ppvae.ClosedForm(), ppvae.EM(), ppvae.EM(acceleration="anderson"), ppvae.SVI()) if m.refusal(model, data) is None
        ]
        ppvae.fit(model, data, ppvae.SVI(steps=10))  # imports and first calls
        fits = [ppvae.fit(model, data, method) for method in methods]
        best = max(float(fit.log_likelihood(data).mean()) for fit in fits)
        for method, fit in zip(methods, fits, strict=True):
            reached = fit.history[best - fit.history.log_likelihood <= target]
            at = reached.iloc[0] if len(reached) else None
            yield {
                "case": title,
                "method": method.describe(),
                "gap": best - float(fit.log_likelihood(data).mean()),
                "target": target,
                "seconds to target": None if at is None else float(at.seconds),
                "steps to target": None if at is None else int(at.step),
                "seconds": fit.seconds,
                "ms a step": 1e3 * fit.seconds / fit.steps,
            }
        peer = _peer(model, data.numpy())
        began = time.perf_counter()
        gap = best - peer()
        seconds = time.perf_counter() - began
        yield {"case": title, "method": "scikit-learn", "gap": gap, "target": target, "seconds to target": seconds, "seconds": seconds}
    images = ppvae.load_data("digits", rescale=True)
    vae = ppvae.fit(ppvae.models.VAE(5), images, ppvae.SVI(steps=1000))
    yield {
        "case": "vae, digits in [0, 1], 5 latents",
        "method": vae.method.describe(),
        "seconds": vae.seconds,
        "ms a step": 1e3 * vae.seconds / vae.steps,
    }
    yield from _side_by_side()


def _peer(model: ppvae.Model, x: np.ndarray):
    """scikit-learn's fit of the same model, as a function that gives its log-likelihood per row (with the likelihood's own divisor n)."""

    def fit() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(model, ppvae.models.PPCA):
                return float(PCA(model.n_latents).fit(x).score(x))
            return float(GaussianMixture(model.n_components, tol=1e-10, max_iter=5000, reg_covar=0, random_state=0).fit(x).score(x))

    return fit


def _side_by_side() -> Iterator[dict[str, object]]:
    """Whole fits in turn: ratios to scikit-learn."""
    for title, model, name, _ in CASES:
        data = ppvae.load_data(name)
        x = data.numpy()
        times = alternate({"scikit-learn": _peer(model, x), "ppvae": lambda model=model, data=data: ppvae.fit(model, data)}, 7)
        for who, found in times.items():
            ratio = found.over(times["scikit-learn"])
            yield {"case": title, "method": f"whole fit, best method, {who}", "seconds": found.seconds, "ratio": ratio}
