"""Seconds to the same likelihood: factor analysis beside scikit-learn's FactorAnalysis (lapack), closed-form PPCA beside its PCA.

Each contestant first runs to its end; then the iterations after which it is within `GAP` of the best are timed, start included.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA, FactorAnalysis

import ppvae
from benchmarks.timing import Contestants, race

GAP = 1e-3  # nats per row
METHODS = {f"ppvae, {name or 'plain EM'}": ppvae.EM(acceleration=name) for name in (None, "squarem", "anderson")}


def rows() -> Iterator[dict[str, object]]:
    """One row for each table and contestant."""
    for name, x, latents in tables():
        data, model = ppvae.Data(x), ppvae.models.FactorAnalysis(latents)
        climbs = {title: ppvae.fit(model, data, method).history.set_index("step").log_likelihood for title, method in METHODS.items()}
        theirs = np.array(_scikit_learn(x, latents, 3000).loglike_) / len(x)
        climbs["scikit-learn"] = pd.Series(theirs, 1 + np.arange(len(theirs)))
        goal = max(climb.max() for climb in climbs.values()) - GAP
        steps = {title: max(1, int((climb >= goal).idxmax())) for title, climb in climbs.items()}
        for title, method in METHODS.items():
            short = replace(method, max_steps=steps[title], tolerance=0.0)
            pair: Contestants = {
                "scikit-learn": partial(_scikit_learn, x, latents, steps["scikit-learn"]),
                title: partial(ppvae.fit, model, data, short),
            }
            case = f"FactorAnalysis({latents}), {name}, {steps[title]} steps, {steps['scikit-learn']} of scikit-learn"
            yield from race(case, pair, {"scikit-learn": 0.5}, rounds=3, ours=title)
        for title, table in (("ppvae, from the array", x), ("ppvae, a Data again", data)):  # a Data keeps its means and products
            pair = {"scikit-learn": partial(PCA(latents).fit, x), title: partial(ppvae.fit, ppvae.models.PPCA(latents), table)}
            yield from race(f"PPCA({latents}), {name}", pair, {"scikit-learn": 1.0}, rounds=9, ours=title)


def tables() -> Iterator[tuple[str, np.ndarray, int]]:
    """(name, rows, latents)."""
    digits = ppvae.load_data("digits").numpy()
    yield "digits, 1,797 x 61", digits[:, digits.std(0) > 0], 10
    random = np.random.default_rng(0)
    for n, d, latents in ((20_000, 50, 5), (5_000, 200, 10)):
        noise = random.standard_normal((n, d)) * random.uniform(0.5, 2.0, d)
        yield f"{n:,} x {d}", random.standard_normal((n, latents)) @ random.standard_normal((latents, d)) + noise, latents


def _scikit_learn(x: np.ndarray, latents: int, steps: int) -> FactorAnalysis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge
        return FactorAnalysis(latents, tol=1e-6, max_iter=steps, svd_method="lapack").fit(x)
