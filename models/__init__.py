"""The model files: one story each. A new model is one new file here; the registry finds it by its name."""

from importlib import import_module

_HOME = {
    "Die": "die",
    "Gaussian": "gaussian",
    "PCA": "pca",
    "PPCA": "ppca",
    "FactorAnalysis": "factor_analysis",
    "MixturePPCA": "mixture_fa",
    "MixtureFA": "mixture_fa",
    "GMM": "gmm",
    "BayesianGMM": "bayesian_gmm",
    "VAE": "vae",
    "CVAE": "cvae",
    "LinearVAE": "linear_vae",
    "Autoencoder": "autoencoder",
}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)
