"""Milliseconds an EM iteration of a Gaussian mixture: float64 beside scikit-learn, float32 beside pomegranate. Starts are left out."""

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

import ppvae
from benchmarks.timing import race
from ppvae.inference.em import sum_statistics
from ppvae.parameters import Parameters
from ppvae.scores import threads_for

CASES = [(200_000, 2, 5, 0.2), (200_000, 10, 8, 0.2), (50_000, 32, 16, 0.35), (20_000, 64, 10, 0.35)]  # rows, features, K, target
STEPS = 3


def rows() -> Iterator[dict[str, object]]:
    """One row for each shape, type and contestant."""
    for n, d, k, target in CASES:
        x = clusters(n, d, k)
        case = f"GMM, {n:,} x {d}, K={k}"
        yield from race(f"{case}, float64", _scikit_learn(x, k) | {"ppvae": _ppvae(x, k)}, {"scikit-learn": target}, steps=STEPS)
        if find_spec("pomegranate") is not None:
            mine = {"ppvae": _ppvae(x.astype(np.float32), k)}
            yield from race(f"{case}, float32", _pomegranate(x, k) | mine, {"pomegranate": 0.7}, steps=STEPS)


def clusters(n: int, d: int, k: int) -> np.ndarray:
    """(n, d): k round clusters of standard deviation 1, their centres drawn with standard deviation 3."""
    random = np.random.default_rng(0)
    return random.standard_normal((n, d)) + 3 * random.standard_normal((k, d))[random.integers(k, size=n)]


def em_steps(model: ppvae.Model, data: ppvae.Data, theta: Parameters, steps: int) -> Callable[[], None]:
    """That many EM iterations from where theta stands, as `ppvae.EM` takes them."""
    exact = model.closed_forms
    batches = exact.batches(data)

    @torch.no_grad()
    def run() -> None:
        with threads_for(data.x.numel()):
            for _ in range(steps):
                theta.assign(exact.maximize(theta, sum_statistics(exact, theta, batches)))

    return run


def _ppvae(x: np.ndarray, k: int) -> Callable[[], None]:
    model = ppvae.models.GMM(k)
    data = ppvae.Data(x).to(torch.float32 if x.dtype == np.float32 else torch.float64)
    theta = model.init(data, torch.Generator())
    theta.assign({"weights": torch.full((k,), 1 / k), "means": data.x[:k], "covariances": torch.eye(x.shape[1]).expand(k, -1, -1)})
    return em_steps(model, data, theta.to(data.dtype), STEPS)


def _scikit_learn(x: np.ndarray, k: int) -> dict[str, Callable[[], None]]:
    """Its own E- and M-step, from the same start."""
    d = x.shape[1]
    start = {"weights_init": np.full(k, 1 / k), "means_init": x[:k], "precisions_init": np.stack([np.eye(d)] * k)}
    peer = GaussianMixture(k, max_iter=1, reg_covar=0, init_params="random_from_data", random_state=0, **start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge
        peer.fit(x)

    def run() -> None:
        for _ in range(STEPS):
            _, log_responsibilities = peer._e_step(x)
            peer._m_step(x, log_responsibilities)

    return {"scikit-learn": run}


def _pomegranate(x: np.ndarray, k: int) -> dict[str, Callable[[], None]]:
    """Its `summarize` and `from_summaries`, from the same start."""
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    table = torch.as_tensor(x, dtype=torch.float32)
    peer = GeneralMixtureModel([Normal(table[i].clone(), torch.eye(x.shape[1])) for i in range(k)])

    def run() -> None:
        for _ in range(STEPS):
            peer.summarize(table)
            peer.from_summaries()

    return {"pomegranate": run}
