"""Methods of fitting, one file each, and the Fit that they return."""

from ppvae import submodule


def __getattr__(name: str):
    return submodule(__name__, name)
