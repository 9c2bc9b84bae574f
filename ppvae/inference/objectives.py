"""What SVI maximises: each objective as Pyro's own ELBO object, and as a tensor program that can be captured. Law 7 holds them equal."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro.infer as infer
from torch import Tensor
from torch.distributions import kl_divergence

from ppvae.data import Batch
from ppvae.messages import unknown
from ppvae.program.joint import Program, elbo_rows, paired_traces, random_sites, total

Rows = Callable[[Program, Program, Batch, int | None], Tensor]


@dataclass(frozen=True)
class Objective:
    """An objective of SVI.

    rows: (story, guide, batch, draws) -> nats per row, (B,) or (draws, B); its mean over everything is maximised.
    pyro: Pyro's ELBO class that says the same, for a story without and with enumerated sites.
    """

    rows: Rows
    pyro: type
    pyro_enumerated: type | None

    def plain(self, enumerated: bool, particles: int) -> infer.ELBO:
        """Pyro's own object for this objective."""
        kind = self.pyro_enumerated if enumerated else self.pyro
        if kind is None:
            raise ValueError("this objective does not sum out enumerated sites: use objective='elbo'")
        many = particles > 1
        return kind(num_particles=particles, max_plate_nesting=1, vectorize_particles=many)


def analytic_kl_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None) -> Tensor:
    """E_q log p(x | z) - KL(q(z) || p(z)), the divergence in closed form: for guides whose sites are independent given the row.

    As in Pyro, a pair of distributions without a formula is left to its draws.
    """
    q, p, _ = paired_traces(program, guide, batch, draws)
    rows = total(p, batch) - total(q, batch)
    for name, site in random_sites(q).items():
        prior = p.nodes[name]
        try:
            divergence = kl_divergence(site["fn"], prior["fn"])
        except NotImplementedError:
            continue
        rows = rows + (site["log_prob"] - prior["log_prob"]) / batch.scale - divergence
    return rows


OBJECTIVES = {
    "elbo": Objective(elbo_rows, infer.Trace_ELBO, infer.TraceEnum_ELBO),
    "analytic_kl": Objective(analytic_kl_rows, infer.TraceMeanField_ELBO, None),
}


def objective(name: str) -> Objective:
    """The objective of this name; raises ValueError with the nearest names."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
