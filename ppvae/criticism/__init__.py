"""Does the fitted model make data like the data, and what does it lose? Predictive draws and checks, evidence, scores for ArviZ."""

from ppvae import submodule


def __getattr__(name: str):
    return submodule(__name__, name)
