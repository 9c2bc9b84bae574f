"""Milliseconds a training step in float32: ppvae's captured and compiled step beside Pyro, PyTorch by hand, NumPyro, and the floor.

Everyone trains the same architecture on the same rows, gathered in shuffled order. Pyro runs as it ships, its checks included.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import ppvae
from benchmarks import numpyro_vae
from benchmarks.em import clusters
from benchmarks.timing import Contestants, race
from ppvae import guides
from ppvae.inference.method import Task, seeded
from ppvae.inference.svi import SVI, Training
from ppvae.networks import perceptron

STEPS, ROWS, PIXELS, BATCH, RATE = 100, 5_000, 784, 128, 1e-3
VAES = [
    (64, 5, {"PyTorch by hand": 0.65, "Pyro": 0.35, "NumPyro, scan": 1.0}),
    (400, 20, {"PyTorch by hand": 0.8, "Pyro": 0.55, "NumPyro, scan": 1.0, "matrix products alone": 1.4}),
]


def rows() -> Iterator[dict[str, object]]:
    """One row for each model and contestant."""
    images = np.random.default_rng(0).random((ROWS, PIXELS))
    for hidden, latents, targets in VAES:
        x = torch.as_tensor(images, dtype=torch.float32)
        contestants: Contestants = {
            "Pyro": _pyro(*_vae_in_pyro(hidden, latents), pyro.infer.Trace_ELBO(), x, BATCH),
            "PyTorch by hand": _by_hand(hidden, latents, x, fused=False, compiled=False),
            "PyTorch, fused Adam": _by_hand(hidden, latents, x, fused=True, compiled=False),
            "PyTorch, compiled": _by_hand(hidden, latents, x, fused=True, compiled=True),
            "matrix products alone": _products(hidden, latents),
            "ppvae": _ppvae(ppvae.models.VAE(latents, hidden=(hidden,)), images, BATCH),
        }
        if find_spec("numpyro") is not None:
            sizes = {"rows": ROWS, "pixels": PIXELS, "hidden": hidden, "latents": latents, "batch": BATCH}
            contestants["NumPyro, scan"] = numpyro_vae.apart(steps=STEPS, rate=RATE, **sizes)
        yield from race(f"VAE, {PIXELS}-{hidden}-z{latents}, batch {BATCH}", contestants, targets, steps=STEPS)
    x = clusters(ROWS, 4, 4)
    table = torch.as_tensor(x, dtype=torch.float32)
    pair = {
        "Pyro": _pyro(_gmm_in_pyro(4, 4), lambda x: None, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), table, 512),
        "ppvae": _ppvae(ppvae.models.GMM(4), x, 512),
    }
    yield from race("GMM enumerated, 4 features, K=4, batch 512", pair, {"Pyro": 0.15}, steps=STEPS)


def _ppvae(model: ppvae.Model, x: np.ndarray, batch: int) -> Callable[[], None]:
    """`STEPS` steps of SVI's own loop."""
    method = SVI(steps=10**9, batch_size=batch, compile=True)
    data = ppvae.Data(x).to(torch.float32)
    with seeded(0) as generator:
        theta = model.init(data, generator).to(torch.float32)
        training = Training(method, Task(model, data, theta, None, 0), data, None, guides.build(model, theta, data, None))

    def run() -> None:
        for _ in range(STEPS):
            training.advance(training.done)

    return run


def shuffled(x: Tensor, batch: int) -> Callable[[], Tensor]:
    """Batches of x in shuffled order."""
    order, at = torch.randperm(len(x)), 0

    def take() -> Tensor:
        nonlocal order, at
        if at + batch > len(x):
            order, at = torch.randperm(len(x)), 0
        at += batch
        return x[order[at - batch : at]]

    return take


def _by_hand(hidden: int, latents: int, x: Tensor, *, fused: bool, compiled: bool) -> Callable[[], None]:
    """A training loop as one writes it in PyTorch."""
    encoder, decoder = perceptron(PIXELS, (hidden,), 2 * latents), perceptron(latents, (hidden,), PIXELS)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], RATE, fused=fused)
    take = shuffled(x, BATCH)

    def loss(x: Tensor) -> Tensor:
        loc, raw = encoder(x).chunk(2, -1)
        scale = nn.functional.softplus(raw)
        z = loc + scale * torch.randn_like(loc)
        entropy = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        divergence = 0.5 * (loc.square() + scale.square() - 1).sum() - scale.log().sum()
        return (entropy + divergence) / len(x)

    loss_of = torch.compile(loss, dynamic=False) if compiled else loss

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(take()).backward()
            optimizer.step()

    return run


def _products(hidden: int, latents: int) -> Callable[[], None]:
    """The matrix products of a step and its gradient, and nothing else."""
    shapes = [(PIXELS, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, PIXELS)]
    layers = [(torch.randn(BATCH, i), torch.randn(i, o), torch.randn(BATCH, o)) for i, o in shapes]

    def run() -> None:
        for _ in range(STEPS):
            for n, (entering, weight, leaving) in enumerate(layers):
                entering @ weight
                entering.mT @ leaving
                if n:  # nobody asks for the gradient of the rows
                    leaving @ weight.mT

    return run


def _pyro(model: Callable, guide: Callable, elbo: pyro.infer.ELBO, x: Tensor, batch: int) -> Callable[[], None]:
    """`pyro.infer.SVI.step`."""
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), elbo)
    take = shuffled(x, batch)

    def run() -> None:
        for _ in range(STEPS):
            svi.step(take())

    return run


def _vae_in_pyro(hidden: int, latents: int) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    encoder, decoder = perceptron(PIXELS, (hidden,), 2 * latents), perceptron(latents, (hidden,), PIXELS)
    names = f"encoder {hidden}", f"decoder {hidden}"  # the store is global

    def model(x: Tensor) -> None:
        pyro.module(names[1], decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latents), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(names[0], encoder)
        with pyro.plate("rows", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))

    return model, guide


def _gmm_in_pyro(features: int, components: int) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        weights = pyro.param("weights", torch.full((components,), 1 / components), constraint=constraints.simplex)
        means = pyro.param("means", lambda: torch.randn(components, features))
        trils = pyro.param("trils", torch.eye(features).expand(components, -1, -1).clone(), constraint=constraints.lower_cholesky)
        with pyro.plate("rows", len(x)):
            k = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.MultivariateNormal(means[k], scale_tril=trils[k]), obs=x)

    return model
