"""Latent-variable models as Pyro programs: fitted by exact EM and by amortized SVI, compared, and checked against the data.

Everything is imported on first use, so that `import ppvae` and `ppvae --help` are quick.
"""

from importlib import import_module
from importlib.util import find_spec

_HOME = {
    "Data": "ppvae.data",
    "load_data": "ppvae.registry",
    "load_model": "ppvae.registry",
    "Model": "ppvae.model",
    "Exact": "ppvae.exact",
    "Posterior": "ppvae.exact",
    "Parameters": "ppvae.parameters",
    "Constrained": "ppvae.parameters",
    "fit": "ppvae.inference.fit",
    "Fit": "ppvae.inference.result",
    "EM": "ppvae.inference.em",
    "SVI": "ppvae.inference.svi",
    "ClosedForm": "ppvae.inference.closed_form",
    "CAVI": "ppvae.inference.cavi",
    "NUTS": "ppvae.inference.nuts",
    "OnlineEM": "ppvae.inference.online_em",
    "DirectML": "ppvae.inference.direct_ml",
    "VariationalEM": "ppvae.inference.variational_em",
    "MonteCarloEM": "ppvae.inference.monte_carlo_em",
    "compare": "ppvae.comparison",
    "Comparison": "ppvae.comparison",
    "check": "ppvae.criticism.checks",
    "Criticism": "ppvae.criticism.checks",
    "coverage": "ppvae.imputation",
    "examine": "ppvae.criticism.latents",
    "pool": "ppvae.imputation",
    "load": "ppvae.saving",
}
_MODULES = ("models", "laws", "report", "guides", "distributions", "datasets")

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        value = submodule("ppvae", name)
    globals()[name] = value
    return value


def submodule(package: str, name: str):
    """A package's module of that name, imported on first use. Raises AttributeError where there is none."""
    if name.startswith("_") or find_spec(f"{package}.{name}") is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return import_module(f"{package}.{name}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version("ppvae")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0.0.0"


def __dir__() -> list[str]:
    return sorted(__all__)
