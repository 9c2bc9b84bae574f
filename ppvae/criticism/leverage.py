"""How far each row pulls the fit towards itself, for leave-one-out scores without a refit.

    theta ~ N(theta_hat, (G^T G)^+),  G (N, P): row n holds the score, the gradient of log p(x_n | theta)
    log p(x_n | theta) ~= log p(x_n | theta_hat) + a_n - a_n^2 / 2,  a = G (theta - theta_hat) ~ N(0, H),  H = G G^+

The first line is the large-sample law of a maximum likelihood estimate; the second expands to second order with each row's curvature
-g g^T (the information equality). H is the hat matrix: its diagonal holds the rows' leverages, its trace is the number of identifiable
parameters, and directions in which the likelihood is flat (a rotation of the latents) drop out by themselves. So the mean of
log p(x_n | theta) falls by half a leverage, and a leave-one-out score built on these draws tends to l - tr H, Akaike's criterion.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.parameters import Parameters

# Each row of a chunk is one backward pass through the chunk, all passes batched: the cost grows with the chunk, the overhead falls.
ROWS_PER_CHUNK = 128

# Scores this far below the largest are a direction in which the likelihood is flat.
FLAT = 1e-6
ROUNDING = 1e-12  # of the largest parameter's scores


LogMarginal = Callable[[Parameters, Batch], Tensor]


def log_likelihood_draws(log_marginal: LogMarginal, theta: Parameters, data: Data, draws: int, seed: int = 0) -> Tensor:
    """(S, N) nats: log p(x_n | theta_s), theta_s drawn around `theta`, in float64 whatever the fit's own precision."""
    value, scores = row_scores(log_marginal, theta, data)
    size = scores.norm(dim=0)  # each parameter has units of its own, of which H knows nothing; what is all rounding moves nothing
    scores = torch.where(size > ROUNDING * size.max(), scores / size, 0.0)
    left, sizes, _ = torch.linalg.svd(scores, full_matrices=False)
    basis = left[:, sizes > FLAT * sizes.max()]
    generator = torch.Generator(data.device).manual_seed(seed)
    steps = torch.randn(draws, basis.shape[1], generator=generator, dtype=value.dtype, device=value.device)
    change = steps @ basis.mT
    return value + change - change.square() / 2


def row_scores(log_marginal: LogMarginal, theta: Parameters, data: Data) -> tuple[Tensor, Tensor]:
    """log p(x_n | theta) (N,) and its gradient in all P unconstrained parameters (N, P), float64: squares of small units, and their
    derivatives, soon leave float32's range."""
    theta = copy.deepcopy(theta).double().requires_grad_(True)  # a fit's own theta takes no gradients
    data = data.to(torch.float64)
    parameters = list(theta.parameters())
    values, scores = [], []
    for batch in data.chunks(ROWS_PER_CHUNK):
        value = log_marginal(theta, batch)
        each_row = torch.eye(batch.size, dtype=value.dtype, device=value.device)
        gradients = torch.autograd.grad(value, parameters, each_row, is_grads_batched=True, allow_unused=True, materialize_grads=True)
        values.append(value.detach())
        wide = (g.expand(batch.size, *p.shape) for g, p in zip(gradients, parameters, strict=True))  # the zeros of one that is not used
        scores.append(torch.cat([g.reshape(batch.size, -1) for g in wide], 1))
    return torch.cat(values), torch.cat(scores)
