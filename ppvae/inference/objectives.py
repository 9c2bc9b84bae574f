"""What SVI maximises: each objective as a tensor program that can be captured, and as Pyro's own ELBO object where Pyro has one.

    "elbo"         E_q [log p(x, z) - log q(z | x)]
    "analytic_kl"  E_q log p(x | z) - KL(q(z | x) || p(z)), the divergence in closed form
    "iwae"         E log (1/K) sum_k w_k,  w_k = p(x, z_k) / q(z_k | x): rises with K to log p(x)   (Burda, Grosse & Salakhutdinov 2016)
    "dreg"         the same bound; its gradient for the guide is the doubly reparametrised one      (Tucker et al. 2019)

Each is a sum over rows, with the logarithm inside the sum, so a minibatch of any rows estimates it without bias. Law 7 holds the first two
equal to Pyro's; Law 9 speaks of the others, for which Pyro has no object that is right under minibatches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import pyro.infer as infer
from torch import Tensor
from torch.distributions import kl_divergence

from ppvae.data import Batch
from ppvae.messages import unknown
from ppvae.program.joint import (
    Program,
    Site,
    elbo_rows,
    is_row_site,
    log_joint,
    log_sum,
    log_weights,
    paired_traces,
    random_sites,
    total,
    unenumerated,
)

Rows = Callable[[Program, Program, Batch, int | None], Tensor]


@dataclass(frozen=True)
class Objective:
    """An objective of SVI.

    rows: (story, guide, batch, draws) -> nats per row, (B,) or (draws, B); its mean over everything is maximised.
    pyro: Pyro's ELBO class that says the same, for a story without and with enumerated sites; None where Pyro has none.
    particles: draws a row where the user asks for no number.  title: what the history's numbers are called.
    analytic: whether its KL is in closed form; None where it is no ELBO, so that there is no KL to weigh.
    """

    rows: Rows
    pyro: type | None = None
    pyro_enumerated: type | None = None
    particles: int = 1
    title: str = "ELBO"
    analytic: bool | None = None

    @property
    def sums_out(self) -> bool:
        """Whether it can sum out a site that the story enumerates."""
        return self.pyro_enumerated is not None or self.pyro is None

    def plain(self, enumerated: bool, particles: int) -> infer.Trace_ELBO | infer.TraceEnum_ELBO | None:
        """Pyro's own object for this objective; None where it has none."""
        kind = self.pyro_enumerated if enumerated else self.pyro
        return None if kind is None else kind(num_particles=particles, max_plate_nesting=1, vectorize_particles=particles > 1)


def analytic_kl_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None) -> Tensor:
    """E_q log p(x | z) - KL(q(z) || p(z)), the divergence in closed form: for guides whose sites are independent given the row.

    As in Pyro, a pair of distributions without a formula is left to its draws.
    """
    q, p, _ = paired_traces(program, guide, batch, draws)
    rows = total(p, batch) - total(q, batch)
    for name, site in random_sites(q).items():
        change = divergence(site, p.nodes[name], analytic=False) - divergence(site, p.nodes[name], analytic=True)
        rows = rows + (change.sum(-1) if is_row_site(site) else change.sum(-1) / batch.n_total)
    return rows


def divergence(site: Site, prior: Site, analytic: bool) -> Tensor:
    """KL(q || p) of one latent site, (..., G): by latent dimension where both distributions are independent over them, else G = 1.

    In closed form where asked for and known, else log q - log p at the draw.
    """
    q, p = by_dimension(site["fn"], prior["fn"])
    if analytic:
        try:
            found = kl_divergence(q, p)
        except NotImplementedError:
            return divergence(site, prior, analytic=False)
    else:
        found = q.log_prob(site["value"]) - p.log_prob(site["value"])
    return found.unsqueeze(-1) if q is site["fn"] else found


def by_dimension(q, p) -> tuple:
    """The two distributions with their one event dim taken as independent parts; as they are where that cannot be."""
    if all(getattr(fn, "reinterpreted_batch_ndims", None) == 1 and not fn.base_dist.event_shape for fn in (q, p)):
        return q.base_dist, p.base_dist
    return q, p


def reweighed_rows(
    program: Program, guide: Program, batch: Batch, draws: int | None, *, analytic: bool, weight: Tensor, free_bits: float
) -> Tensor:
    """The ELBO of each row in value; in gradient, with the KL of the rows' latents weighed and its first nats free,

        E_q log p(x | z) - weight * sum_j max(free_bits, mean over rows of KL_j)

    for latent dimensions j (beta-VAE, Higgins et al. 2017; free bits, Kingma et al. 2016, their eq. 15). Dimensions that the guide does not
    take as independent make one group, with as many free bits as it has dimensions.
    """
    q, p, _ = paired_traces(program, guide, batch, draws)
    sampled = total(p, batch) - total(q, batch)
    bound, change = sampled, batch.x.new_zeros(())
    for name, site in random_sites(q).items():
        if not is_row_site(site):
            continue
        drawn = divergence(site, p.nodes[name], analytic=False)
        by_group = divergence(site, p.nodes[name], analytic=True) if analytic else drawn
        bound = bound + drawn.sum(-1) - by_group.sum(-1)
        groups = by_group.shape[-1]
        mean = by_group.reshape(-1, groups).mean(0)
        # A KL estimated by draws may be negative, so without free bits there is no floor, not even 0.
        counted = mean.clamp(min=free_bits * site["fn"].event_shape.numel() / groups) if free_bits else mean
        change = change + mean.sum() - weight * counted.sum()
    return bound + change - change.detach()


def importance_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None) -> Tensor:
    """(B,): log (1/K) sum_k w_k of each row, K = draws. The N / B scale stays outside the logarithm."""
    k = draws or 1
    return log_weights(program, guide, batch, k).logsumexp(0) - log(k)


def doubly_reparametrised_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None) -> Tensor:
    """`importance_rows` in value, with the doubly reparametrised gradient for the guide.

    With v_k = w_k / sum w held fixed, theta's gradient is that of sum_k v_k log p(x, z_k), and the guide's comes through the draws alone,
    as that of sum_k v_k^2 log w(z_k): its signal-to-noise ratio grows with K, where that of "iwae" falls. What a function says through
    its draws alone is what it says less what it says at the same draws held fixed, so the story and the guide are evaluated twice.
    """
    k = draws or 1
    q, p, _ = paired_traces(program, unenumerated(guide), batch, k)
    held = {name: site["value"].detach() for name, site in random_sites(q).items()}
    weights = log_sum(p, batch) - total(q, batch)
    try:
        story, said = (log_joint(of, batch, held, k) for of in (program, unenumerated(guide)))
    except (KeyError, NotImplementedError) as error:  # how Pyro's flows say that they have no inverse
        raise ValueError("objective='dreg' scores draws anew, which a flow without an inverse cannot: use objective='iwae'") from error
    v = weights.detach().softmax(0)
    gradient = (v.square() * (weights - story + said) + v * story).sum(0)
    return weights.detach().logsumexp(0) - log(k) + gradient - gradient.detach()


OBJECTIVES = {
    "elbo": Objective(elbo_rows, infer.Trace_ELBO, infer.TraceEnum_ELBO, analytic=False),
    "analytic_kl": Objective(analytic_kl_rows, infer.TraceMeanField_ELBO, analytic=True),
    "iwae": Objective(importance_rows, particles=20, title="importance-weighted bound"),
    "dreg": Objective(doubly_reparametrised_rows, particles=20, title="importance-weighted bound"),
}


def objective(name: str) -> Objective:
    """The objective of this name; raises ValueError with the nearest names."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
