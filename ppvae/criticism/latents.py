"""What became of the latents: has the model collapsed, and are its codes what the prior draws?

    mean_n KL(q(z | x_n) || p(z))  =  I(x; z)  +  KL(q(z) || p(z)),     q(z) = mean_n q(z | x_n)
    the rate                          what codes say of rows   how far codes, all together, are from the prior

(Hoffman & Johnson 2016, "ELBO surgery"). A collapsed latent has no rate; codes far from the prior make draws from the prior decode to
nothing like the data. A guide that is certain of its codes, an autoencoder's, has an infinite rate; the Gaussian with its codes' moments
can still be held against the prior.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.criticism.predictive import prior_predictive
from ppvae.data import Data, as_data
from ppvae.exact import Posterior
from ppvae.inference.method import seeded
from ppvae.program.joint import latent_sites

if TYPE_CHECKING:
    from ppvae.inference.result import Fit

ROWS = 2000  # a random choice of more: codes and rows are compared in pairs
ACTIVE = 0.01  # Burda et al. 2016: a unit is active where the variance of its posterior mean, in prior variances, is above this


@dataclass(frozen=True)
class Latents:
    """What `examine` found, in nats per row where nothing else is said.

    table: a row a latent dimension: latent, kl (to the prior, mean over rows), activity (the variance over rows of E[z | x], in prior
        variances), active (activity > 0.01), mean and sd (of all codes together; 0 and 1 are the prior's).
    rate, mutual_information, marginal_kl: the three terms above; the second with its standard error, and at most log N for N rows.
    gaussian_kl: KL(N(m, C) || N(0, I)), m and C the moments of all codes together.
    reconstruction: the root mean square error of E[x | z] at each row's mean code, in the data's units.
    generation, coverage: how far rows decoded from the prior lie from the nearest data row, and data rows from the nearest decoded one
        (medians), as multiples of how far data rows lie from each other's nearest. The first grows where what is decoded is unlike the
        data, the second also where it is all alike.
    """

    table: pd.DataFrame = field(repr=False)
    rate: float
    mutual_information: float
    mutual_information_se: float
    marginal_kl: float
    gaussian_kl: float
    reconstruction: float
    generation: float
    coverage: float

    @property
    def active(self) -> int:
        """How many latent dimensions say anything of the rows."""
        return int(self.table["active"].sum())

    @property
    def summary(self) -> str:
        """Has it collapsed? One sentence."""
        said = f"{self.active} of {len(self.table)} latents are active"
        if self.active == 0:
            return f"{said}: the posterior has collapsed onto the prior; try kl_warmup, free_bits, a weaker decoder or objective='iwae'"
        if self.active < len(self.table):
            return f"{said}: the others carry nothing, so fewer latents would do, or kl_warmup and free_bits may wake them"
        return f"{said}: nothing has collapsed"

    @property
    def scores(self) -> pd.Series:
        """The numbers of the whole code, to be set beside another fit's."""
        names = ("reconstruction", "rate", "mutual_information", "marginal_kl", "gaussian_kl", "generation", "coverage")
        return pd.Series({"active": float(self.active)} | {name: getattr(self, name) for name in names})


def examine(fit: "Fit", data: object, seed: int = 0) -> Latents:
    """The codes that a fit gives to rows (at most 2000 of them, chosen at random), the prior, and what lies between.

    Raises ValueError for a story without a single continuous latent a row, or whose prior over it is no independent normal.

    >>> import ppvae
    >>> iris = ppvae.load_data("iris")
    >>> found = examine(ppvae.fit(ppvae.models.PPCA(n_latents=2), iris), iris)
    >>> found.summary
    '2 of 2 latents are active: nothing has collapsed'
    """
    data = fit.take(as_data(data))
    with seeded(seed, data.device):
        few = data if data.n_rows <= ROWS else data.take(torch.randperm(data.n_rows)[:ROWS].sort().values)
        codes = _in_prior_units(fit, few)
        loc, tril = codes.loc[:, 0], codes.scale_tril[:, 0].expand(few.n_rows, -1, -1)
        variance = tril.square().sum(-1)
        kl = 0.5 * (variance + loc.square() - 1 - variance.log())
        whole = 0.5 * (variance + loc.square() - 1).sum(-1) - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        spread = loc.var(0, correction=0)
        information = _information(loc, tril)
    mean, covariance = loc.mean(0), torch.cov(loc.mT, correction=0).reshape(len(loc.mT), -1) + (tril @ tril.mT).mean(0)
    table = pd.DataFrame(
        {
            "latent": range(len(mean)),
            "kl": kl.mean(0).cpu().numpy(),
            "activity": spread.cpu().numpy(),
            "active": (spread > ACTIVE).cpu().numpy(),
            "mean": mean.cpu().numpy(),
            "sd": covariance.diagonal().sqrt().cpu().numpy(),
        }
    )
    rate = float(whole.mean())
    generation, coverage = _generation(fit, few, seed)
    gaussian_kl = 0.5 * (covariance.trace() + mean.square().sum() - len(mean) - covariance.logdet())
    return Latents(
        table=table,
        rate=rate,
        mutual_information=float(information.mean()),
        mutual_information_se=float(information.std() / len(information) ** 0.5) if np.isfinite(rate) else 0.0,
        marginal_kl=rate - float(information.mean()) if np.isfinite(rate) else np.inf,
        gaussian_kl=float(gaussian_kl),
        reconstruction=_reconstruction(fit, few),
        generation=generation,
        coverage=coverage,
    )


def _in_prior_units(fit: "Fit", data: Data) -> Posterior:
    """The codes of each row, moved and scaled so that the prior is N(0, I)."""
    sites = latent_sites(fit.program, data.batch())
    codes = fit.posterior(data) if len(sites) == 1 else None
    if codes is None or codes.latent is None or codes.component is not None:
        raise ValueError(f"{fit.model.name}: latents can be examined where the story has one site, continuous, a row; it has {len(sites)}")
    prior = sites[codes.latent]["fn"]
    while not isinstance(prior, dist.Normal) and hasattr(prior, "base_dist"):
        prior = prior.base_dist
    if not isinstance(prior, dist.Normal):
        raise ValueError(
            f"{fit.model.name}: latents can be examined where their prior is an independent normal; {codes.latent!r} has another"
        )
    mean, scale = (t.expand(data.n_rows, -1).detach() for t in (prior.mean, prior.stddev))
    return Posterior.gaussian((codes.loc[:, 0] - mean) / scale, codes.scale_tril[:, 0] / scale.unsqueeze(-1), codes.latent)


def _information(loc: Tensor, tril: Tensor) -> Tensor:
    """(N,): log q(z_n | x_n) - log q(z_n) at one draw of each row's code; inf where codes have no spread."""
    if not tril.diagonal(dim1=-2, dim2=-1).all():
        return loc.new_full((len(loc),), torch.inf)
    each = dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
    z = each.sample()
    everyone = torch.cat([each.log_prob(part.unsqueeze(1)).logsumexp(1) for part in z.split(256)]) - np.log(len(z))
    return each.log_prob(z) - everyone


def _reconstruction(fit: "Fit", data: Data) -> float:
    rows = torch.as_tensor(fit.decode(fit.transform(data), data.context), dtype=data.dtype, device=data.device)
    return float((rows - data.x)[data.observed].square().mean().sqrt())


def _generation(fit: "Fit", data: Data, seed: int) -> tuple[float, float]:
    (code,) = latent_sites(fit.program, data.batch())
    drawn = prior_predictive(fit.model, fit.theta, data.batch(), seed=seed)[code]
    rows = torch.as_tensor(fit.decode(drawn[0].flatten(1), data.context), dtype=data.dtype, device=data.device)
    between = _distances(data.x, data.observed, data)
    between.fill_diagonal_(torch.inf)
    made, unit = _distances(rows, torch.ones_like(data.observed), data), between.amin(1).median()
    return float(made.amin(1).median() / unit), float(made.amin(0).median() / unit)


def _distances(rows: Tensor, observed: Tensor, data: Data) -> Tensor:
    """(M, N): root mean square differences over the entries that both rows have; inf where there are none."""
    mine, theirs = observed.to(data.x), data.observed.to(data.x)
    squares = (rows * mine).square() @ theirs.mT - 2 * (rows * mine) @ data.x.mT + mine @ data.x.square().mT
    return torch.where(mine @ theirs.mT > 0, squares.clamp(min=0) / (mine @ theirs.mT), torch.inf).sqrt()
