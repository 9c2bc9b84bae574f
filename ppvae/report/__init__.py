"""Figures and the HTML report. Nothing is fitted here: these functions read a Fit, a Comparison or a Criticism and draw what it holds.

    convergence(comparison)   gaps(comparison)             how the methods arrived, and what each lost
    density(fit, data)        latent_space(fit, data)      what was fitted
    checks(criticism)         correlations(criticism)      does the model make data like these?
    latent_walk(fit, data)                                 rows decoded along lines through latent space
    reconstructions(fit, data)   samples(fit, n)           pictures, where a row is one
    generated(fit, data)                                   new pictures beside real ones
    bounds(found)             divergence()                 the bounds that EM climbs; KL between two Gaussians
    missingness(data)                                      which entries are missing together

Each returns a `matplotlib.figure.Figure` (`figure.savefig("figure.pdf")`) and raises ValueError, with the reason, where it does not apply.
Matplotlib is imported when the first of them is asked for.
"""

from importlib import import_module

_HOMES = {
    "convergence": "progress",
    "gaps": "progress",
    "density": "fitted",
    "latent_space": "fitted",
    "latent_walk": "walk",
    "bounds": "lower",
    "divergence": "lower",
    "checks": "predictive",
    "correlations": "predictive",
    "reconstructions": "images",
    "samples": "images",
    "generated": "images",
    "missingness": "holes",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"ppvae.report.figures.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
