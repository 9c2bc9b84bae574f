"""NumPyro's VAE for `benchmarks.svi`, one jitted scan over the steps, in a process of its own.

JAX and PyTorch each keep a pool of threads, and in one process they have been seen to end it ("double free or corruption"). So this
module is a program too: `python -m benchmarks.numpyro_vae SETTINGS`, with the settings as JSON, takes its steps once for every line that it
reads, and answers each with a line.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np


def apart(**settings: float) -> Callable[[], object]:
    """`scan(**settings)` in a process of its own, which ends with this one."""
    command = [sys.executable, "-m", "benchmarks.numpyro_vae", json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answered = process.stdin, process.stdout

    def run() -> None:
        asked.write("\n")
        if not answered.readline():
            raise RuntimeError(f"NumPyro's process ended with exit status {process.wait()}: its own message stands above")

    return run


def scan(steps: int, rows: int, pixels: int, hidden: int, latents: int, batch: int, rate: float) -> Callable[[], object]:
    """One jitted scan over `steps` steps."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as nd

    x = jnp.asarray(np.random.default_rng(0).random((rows, pixels)), dtype=jnp.float32)
    sizes = {"encoder": (pixels, hidden, 2 * latents), "decoder": (latents, hidden, pixels)}

    def network(name: str, values):
        for n, (i, o) in enumerate(pairwise(sizes[name])):
            weight = numpyro.param(f"{name} weight {n}", lambda key, i=i, o=o: jax.random.normal(key, (i, o)) / i**0.5)
            bias = numpyro.param(f"{name} bias {n}", jnp.zeros(o))
            values = (jax.nn.softplus(values) if n else values) @ weight + bias
        return values

    def model(x) -> None:
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", nd.Normal(jnp.zeros(latents), 1.0).to_event(1))
            numpyro.sample("x", nd.Bernoulli(logits=network("decoder", z)).to_event(1), obs=x)

    def guide(x) -> None:
        with numpyro.plate("rows", len(x)):
            loc, raw = jnp.split(network("encoder", x), 2, -1)
            numpyro.sample("z", nd.Normal(loc, jax.nn.softplus(raw)).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(rate), numpyro.infer.Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0), x[:batch])

    @jax.jit
    def many(state, key):
        order = jax.random.permutation(key, len(x))
        batches = jnp.arange(steps)[:, None] * batch % (len(x) - batch) + jnp.arange(batch)
        return jax.lax.scan(lambda state, index: svi.update(state, x[order[index]]), state, batches)

    def run() -> object:
        nonlocal state
        state, losses = many(state, jax.random.PRNGKey(1))
        return losses.block_until_ready()

    return run


if __name__ == "__main__":
    run = scan(**json.loads(sys.argv[1]))
    for _ in sys.stdin:
        run()
        print(flush=True)
