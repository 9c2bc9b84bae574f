"""Principal component analysis as a limit (Roweis 1998, "EM algorithms for PCA and SPCA").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ N(W z_n + m, e I_D)      e -> 0

The story is PPCA's with the noise e not a parameter but a constant too small to matter. In the limit the posterior of z shrinks to the
point (W^T W)^-1 W^T (x - m), and EM alternates two least squares (his eq. 5): codes z from W, then W from the codes. Only the subspace is
then determined, since (W A)(A^-1 z) says the same for any A: W is reported with orthogonal columns, of squared length the variance
along them, in falling order, each with its largest entry positive; the codes have variance 1 in each direction.

PCA itself has no density: rows off the subspace are impossible, log p(x) runs to minus infinity as e -> 0. The scores here are those of
the story as it stands, with e at 10^-8 of the mean variance: -2 e log p(x) is, up to a constant, the squared distance from the subspace.
They rank fits of PCA with one L, and nothing else; to choose L or to compare with other models, use PPCA.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.exact import Statistics
from ppvae.linear_gaussian import LinearGaussianExact, check_table, degrees_of_freedom
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters

NOISE = 1e-8  # of the mean variance: far below any direction that is worth a latent, far above rounding


class PCAExact(LinearGaussianExact):
    """Roweis' EM with any pattern of missing entries, and the eigenvectors of complete data."""

    model: "PCA"

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> dict[str, Tensor]:
        """A constant."""
        return {}

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """Those of every linear Gaussian model, and the moments of the codes: "zz" (L+1, L+1), sums over rows with any entry."""
        posterior, seen = self.posterior(theta, batch), batch.observed.any(-1)
        u = torch.nn.functional.pad(posterior.mean, (0, 1), value=1.0)[seen]
        within = torch.nn.functional.pad(posterior.covariance.expand(batch.size, -1, -1)[seen].sum(0), (0, 1, 0, 1))
        return super().statistics(theta, batch) | {"zz": u.mT @ u + within}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        """Least squares for W and m; then the same line of thought in canonical form.

        Codes with any mean and covariance make a model with more parameters than PCA's, and the same marginals. Its M-step fits them too;
        taken back into W and m they leave codes of mean 0 and covariance I (parameter expansion: Liu, Rubin & Wu 1998, section 2).
        """
        values = super().maximize(theta, statistics)
        zz = statistics["zz"] / statistics["zz"][-1, -1]
        centre = zz[:-1, -1]
        spread = torch.linalg.cholesky(zz[:-1, :-1] - centre.outer(centre))
        return {"loadings": canonical(values["loadings"] @ spread), "mean": values["mean"] + values["loadings"] @ centre}

    def cannot_solve(self, data: Data) -> str | None:
        return None if data.complete else "pca has a closed form for complete data only"

    def solve(self, data: Data) -> dict[str, Tensor]:
        """The L leading eigenvectors of the covariance, stretched to the variance along them."""
        size = self.model.n_latents
        values, vectors = torch.linalg.eigh(data.batch().covariance)
        variance = (values[-size:] - NOISE * data.variance.mean()).clamp(min=0.0)
        return {"loadings": canonical(vectors[:, -size:] * variance.sqrt()), "mean": data.mean}


def canonical(loadings: Tensor) -> Tensor:
    """W V with orthogonal columns in falling order of length, the largest entry of each positive; W W^T is unchanged."""
    vectors, lengths, _ = torch.linalg.svd(loadings, full_matrices=False)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign() * lengths


@dataclass(frozen=True)
class PCA(Model):
    """PCA with `n_latents` = L < D components, for tables with any entries missing.

    Parameters of a fit: `loadings` (D, L), canonical; `mean` (D,); `noise_variance` (), the constant. `fit.transform` gives codes of
    variance 1. With rows on a subspace of L dimensions or fewer, EM has nothing to find beyond them.

    >>> import ppvae
    >>> fit = ppvae.fit(PCA(n_latents=2), ppvae.load_data("iris"))
    >>> (fit.params["loadings"] ** 2).sum(0).round(4)  # variance along each component, divisor N
    array([4.2001, 0.2411])
    """

    n_latents: int = 2

    exact = PCAExact
    no_density = (
        "PCA has no density, since its noise is a constant too small to matter; its scores rank fits with as many latents and nothing "
        "else, so use PPCA to choose n_latents, to compare models or to impute"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_latents=1)

    def check(self, data: Data) -> None:
        check_table(data, self.n_latents)
        free = (data.n_observed <= self.n_latents + 1).tolist()
        if not data.complete and any(free):
            scarce = few(c for c, loose in zip(data.columns, free, strict=True) if loose)
            raise ValueError(
                f"pca with n_latents={self.n_latents} fits {self.n_latents + 1} entries of a column exactly, whatever their codes, so its "
                f"loadings of {scarce} could be anything: leave such columns out, or use PPCA, whose noise keeps them in bounds"
            )

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        variance = data.variance.mean()
        start = torch.randn(data.n_features, self.n_latents, generator=generator, dtype=torch.float64).to(data.x)
        return Parameters(
            loadings=Constrained(canonical(start * (variance / self.n_latents).sqrt()), unit=variance.sqrt()),
            mean=Constrained(data.mean, unit=variance.sqrt()),
            noise_variance=Constrained(NOISE * variance, constraints.positive, unit=NOISE * variance),
        ).freeze("noise_variance")

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            loc = theta.mean + z @ theta.loadings.mT
            pyro.sample("x", dist.Normal(loc, theta.noise_variance.sqrt()).mask(batch.observed).to_event(1), obs=batch.x)

    def guide(self, data: Data) -> str:
        """Linear, as the projection onto the subspace is."""
        return "linear"

    def identifiable(self, theta: Parameters) -> dict[str, Tensor]:
        """The mean and W W^T: the subspace and the variances in it."""
        return {"mean": theta.mean, "shared_covariance": theta.loadings @ theta.loadings.mT}

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """D L + D, less the L (L - 1) / 2 of a rotation."""
        return degrees_of_freedom(theta, "noise_variance")
