"""What every test starts from: figures without a screen, one thread, and random draws that repeat."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # the tensors of tests are too small to share, and threads that wait for one another spin

import matplotlib
import pytest
import torch

matplotlib.use("agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """ppvae takes its seeds as arguments; this is for the draws that a test makes itself."""
    torch.manual_seed(0)
