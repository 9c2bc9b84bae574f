"""What every test starts from: one thread a process would be unfair to no one, so torch gets two, and random draws repeat."""

import random

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seeded():
    """ppvae takes its seeds as arguments; this is for the draws that a test makes itself."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
