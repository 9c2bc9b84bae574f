"""Where an amortized fit loses: parameters, approximation, amortization (Cremer, Li & Duvenaud 2018, "Inference suboptimality").

    l(best) - ELBO(fit) = [l(best) - l(fit)]                     parameters
                        + [l(fit) - best ELBO of the family]     approximation
                        + [best ELBO of the family - ELBO(fit)]  amortization

each per row, in nats. With exact answers the split is exact; without them the best member of the family is found row by row, and
l(fit) is an importance-sampled lower bound.
"""

import copy
from dataclasses import dataclass
from math import hypot, nan

import numpy as np
import torch

from ppvae.data import Data
from ppvae.exact import ExactGuide
from ppvae.guides import Amortized, PerRow
from ppvae.inference.method import Task, seeded
from ppvae.inference.result import Fit
from ppvae.inference.svi import SVI
from ppvae.program.read import read_guide
from ppvae.scores import Scores, sampled_elbo
from ppvae.threads import threads_for

ROWS = 512  # where the best of the family is searched for row by row, so many rows stand for all
REFINEMENT = SVI(steps=600, batch_size=None, learning_rate=0.03, compile=False, particles=4)


@dataclass(frozen=True)
class Gaps:
    """Nats per row, each with its standard error (0 where exact, NaN where there is no answer)."""

    parameters: float
    approximation: float
    amortization: float
    parameters_se: float = 0.0
    approximation_se: float = 0.0
    amortization_se: float = 0.0

    @property
    def total(self) -> float:
        parts = np.array([self.parameters, self.approximation, self.amortization])
        return nan if np.isnan(parts).all() else float(np.nansum(parts))


def gaps(fit: Fit, data: Data, best_log_likelihood: float | None, evidence: Scores, bound: Scores) -> Gaps:
    """The three parts for one fit.

    evidence, bound: the fit's log-likelihood and ELBO of each row of `data`.  best_log_likelihood: nats per row of the best exact fit, or
    None where no method is exact: the parameters' part is then unknown (NaN). Where there is no formula for the family's best, the other
    two parts are means over the `ROWS` rows that are searched, not over all. A "linear" guide's family is every Gaussian: what its one
    covariance for all rows costs counts as amortization. Where all rows share latents, what is lost is KL(q || p) / N; it is all
    approximation, unless the rows have an encoder besides.
    """
    if fit.shared:
        lost = fit.kl(data)
        divergence = float(lost.mean())
        parts = (nan, divergence) if fit.encodes else (divergence, 0.0 * divergence)
        return Gaps(nan, *parts, nan, *(lost.mean_standard_error if part else 0.0 for part in parts))
    parameters, unknown = (nan, nan) if best_log_likelihood is None else (best_log_likelihood - float(evidence.mean()), 0.0)
    loss = float(np.mean(np.asarray(evidence) - np.asarray(bound)))
    loss_se = hypot(evidence.mean_standard_error, bound.mean_standard_error)
    family = family_loss(fit, data)
    if family is not None:
        return Gaps(parameters, family, loss - family, unknown, 0.0, loss_se)
    refined = refined_elbo(fit, data)
    if refined is None:  # the guide is no readable family: the two parts cannot be told apart
        return Gaps(parameters, nan, loss, unknown, nan, loss_se)
    elbo, rows = refined
    part = evidence[rows], bound[rows]
    approximation, amortization = (float(np.mean(np.asarray(a) - np.asarray(b))) for a, b in ((part[0], elbo), (elbo, part[1])))
    errors = [hypot(a.mean_standard_error, elbo.mean_standard_error) for a in part]
    return Gaps(parameters, approximation, amortization, unknown, errors[0], errors[1])


def family_loss(fit: Fit, data: Data) -> float | None:
    """l(fit) less the best ELBO of the guide's family, exactly; None where there is no formula for it.

    A family that holds the posterior loses nothing. The best diagonal Gaussian for a Gaussian of precision P has variances 1 / P_ii, and
    loses (sum log P_ii - log det P) / 2.
    """
    exact = fit.exact_on(data)
    if exact is None:
        return None
    if isinstance(fit.guide, ExactGuide):
        return 0.0
    lost = []
    with torch.no_grad():
        for batch in data.chunks(exact.chunk_rows(data)):
            q, p = read_guide(fit.guide, batch), exact.posterior(fit.theta, batch)
            if q is None:
                return None
            if not fit.model.guided_component:
                reduced = p.without_component()
                if reduced is None:
                    return None
                p = reduced
            if q.latent is None or not _is_diagonal(fit, q.scale_tril):
                lost.append(batch.x.new_zeros(batch.size))
                continue
            tril = p.scale_tril[:, 0]
            root = torch.linalg.inv(tril) if tril.shape[-1] else tril
            precision = (root.mT @ root).diagonal(dim1=-2, dim2=-1)
            loss = 0.5 * precision.log().sum(-1) + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            lost.append(loss.expand(batch.size))
    return float(torch.cat(lost).mean())


def _is_diagonal(fit: Fit, tril: torch.Tensor) -> bool:
    if isinstance(fit.guide, Amortized):
        return fit.guide.family.name == "diagonal"
    return bool((tril.tril(-1) == 0).all())


def refined_elbo(fit: Fit, data: Data) -> tuple[Scores, np.ndarray] | None:
    """The ELBO of up to `ROWS` rows under the best member of the guide's family for each row, and which rows; None for an unreadable guide.

    Theta is held; each row's own Gaussian starts at what the guide says and is improved by gradient steps.
    """
    if fit.numbered:  # a part of the rows would be read as others
        return None
    with seeded(fit.seed):
        rows = torch.randperm(data.n_rows)[:ROWS].sort().values
    part = data.take(rows)
    with torch.no_grad():
        q = read_guide(fit.guide, part.batch())
    if q is None or q.latent is None or q.component is not None or not q.scale_tril.any():  # a point has no family around it
        return None
    tril = q.scale_tril[:, 0]
    spread = tril.diagonal(dim1=-2, dim2=-1) if _is_diagonal(fit, tril) else tril
    free = PerRow(q.latent, q.loc[:, 0], spread, q.event_shape).to(part.x)
    theta = copy.deepcopy(fit.theta).requires_grad_(False)
    with seeded(fit.seed, part.device), threads_for(REFINEMENT.entries(part, theta)):
        outcome = REFINEMENT.run(Task(fit.model, part, theta, free, fit.seed))
        return sampled_elbo(fit.program, outcome.guide, part, 200), rows.numpy()
