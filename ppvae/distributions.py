"""Distributions for stories: normals and counts that take a mask, batched over rows. Usable in any Pyro program.

An entry that is not observed is marginalised: it is never read, and log_prob is that of the observed entries. `conditional` and
`complete` say what the missing entries may be. ±inf is never read as "missing": the score of such a value is not finite.

Besides, a Wishart for priors on precisions: torch's own looks at its values, so no program with it can be captured.
"""

from functools import partial
from math import log

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppvae.gaussian import LOG_2PI, masked_covariance
from ppvae.parameters import is_covariance

NO_SHAPE = torch.Size()


class Masked(TorchDistribution):
    """What distributions with a mask share: `observed` (..., D), or None where every entry is; validated as torch's own are."""

    observed: Tensor | None

    def expand(self, batch_shape, _instance=None):
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _mask(self, value: Tensor) -> Tensor:
        return value if self.observed is None else torch.where(self.observed, value, 0.0)

    def _validate(self, value: Tensor) -> None:
        """Raise ValueError for a value of another shape, and for an observed entry outside the support."""
        if self._validate_args:
            batch_shape(self.observed, value=(value, "D"))
            self._validate_sample(self._mask(value))

    def _full(self, scores: Tensor) -> Tensor:
        """Scores in the shape of the batch, also where a plate of draws has expanded it: an ELBO sums what it finds there."""
        return scores.expand(torch.broadcast_shapes(scores.shape, self.batch_shape))


class _PositiveDefinite(constraints.Constraint):
    """Torch's positive_definite, in any units."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return is_covariance(value)


class MaskedNormal(Masked):
    """What the masked normals share: a `loc` (..., D), a mask `observed` (..., D) or None, and conditioning by regression."""

    support = constraints.real_vector
    has_rsample = True
    loc: Tensor

    @property
    def covariance_matrix(self) -> Tensor:
        """(..., D, D), the covariance of all D entries."""
        raise NotImplementedError(f"{type(self).__name__} must define covariance_matrix, (..., D, D)")

    @property
    def mean(self) -> Tensor:
        """(..., D): of all D entries, whatever is observed; given the observed ones see `conditional`."""
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """(..., D): of each entry, whatever is observed."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1).expand(self._extended_shape())

    def conditional(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | x_observed] (..., D) and Cov[x | x_observed] (..., D, D): observed entries as they are, with no variance."""
        covariance = self.covariance_matrix
        if self.observed is None:
            shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
            return value.expand(*shape, -1), value.new_zeros(()).expand(*shape, *covariance.shape[-2:])
        gain = self._gain(covariance)
        mean = self.loc + (gain @ self._mask(value - self.loc).unsqueeze(-1)).squeeze(-1)
        hidden = (~self.observed).to(covariance.dtype)
        left = (covariance - gain @ covariance) * hidden.unsqueeze(-1) * hidden.unsqueeze(-2)
        return torch.where(self.observed, value, mean), left

    def complete(self, value: Tensor) -> Tensor:
        """A draw of the missing entries given the observed ones, (..., D), by Matheron's rule: a free draw, corrected by its own error."""
        if self.observed is None:
            return value.expand(*torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -1)
        free = self.rsample(value.shape[: max(0, value.ndim - 1 - len(self.batch_shape))])
        corrected = free + (self._gain(self.covariance_matrix) @ self._mask(value - free).unsqueeze(-1)).squeeze(-1)
        return torch.where(self.observed, value, corrected)

    def _gain(self, covariance: Tensor) -> Tensor:
        """C_.o C_oo^-1 (..., D, D), the regression of every entry on the observed ones; its columns of missing entries are 0."""
        assert self.observed is not None
        tril = torch.linalg.cholesky(masked_covariance(covariance, self.observed))
        seen = covariance * self.observed.to(covariance.dtype).unsqueeze(-2)
        return torch.cholesky_solve(seen.mT, tril).mT * self.observed.to(covariance.dtype).unsqueeze(-2)


class MaskedMultivariateNormal(MaskedNormal):
    """N(loc, covariance) scored on its observed entries alone.

    loc: (..., D).  covariance: (..., D, D).  observed: bool (..., D), or None when every entry is. Differentiable; a wholly missing row
    scores 0; a sample has all D entries. Raises ValueError for other shapes, for a mask that is not a tensor of booleans and, unless
    validation is off (validate_args=False), for a covariance that is not positive definite and for an observed NaN.

    >>> d = MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), torch.tensor([[True, False], [False, False]]))
    >>> [round(float(v), 4) for v in d.log_prob(torch.tensor([[0.0, 9.0], [9.0, 9.0]])).abs()]
    [0.9189, 0.0]
    """

    arg_constraints = {"loc": constraints.real_vector, "covariance": _PositiveDefinite()}  # noqa: RUF012

    def __init__(self, loc: Tensor, covariance: Tensor, observed: Tensor | None = None, validate_args: bool | None = None) -> None:
        shape = batch_shape(observed, loc=(loc, "D"), covariance=(covariance, "DD"))
        self.loc, self.covariance, self.observed = loc, covariance, observed
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def covariance_matrix(self) -> Tensor:
        return self.covariance

    def rsample(self, sample_shape=NO_SHAPE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (torch.linalg.cholesky(self.covariance) @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate(value)
        residual = self._mask(value - self.loc)
        if self.observed is None:
            covariance, seen = self.covariance, float(self.event_shape[0])
        else:
            covariance, seen = masked_covariance(self.covariance, self.observed), self.observed.sum(-1).to(residual)
        tril = torch.linalg.cholesky(covariance)
        logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self._full(-0.5 * (_whitened(tril, residual).square().sum(-1) + logdet + seen * LOG_2PI))


class MaskedLowRankNormal(MaskedNormal):
    """N(loc, factor factor^T + diag(diagonal)) scored on its observed entries alone, through L x L systems (Woodbury).

    loc: (..., D).  factor: (..., D, L).  diagonal: (..., D), positive.  observed: bool (..., D), or None when every entry is. Raises
    ValueError as `MaskedMultivariateNormal` does; for a `diagonal` that is not positive.

    >>> d = MaskedLowRankNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3), torch.tensor([[True, True, False]]))
    >>> dense = MaskedMultivariateNormal(torch.zeros(3), d.covariance_matrix, d.observed)
    >>> x = torch.tensor([1.0, -1.0, 5.0])
    >>> bool((d.log_prob(x) - dense.log_prob(x)).abs() < 1e-6)
    True
    """

    arg_constraints = {"loc": constraints.real_vector, "factor": constraints.real, "diagonal": constraints.positive}  # noqa: RUF012

    def __init__(
        self, loc: Tensor, factor: Tensor, diagonal: Tensor, observed: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        shape = batch_shape(observed, loc=(loc, "D"), factor=(factor, "DL"), diagonal=(diagonal, "D"))
        self.loc, self.factor, self.diagonal, self.observed = loc, factor, diagonal, observed
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def covariance_matrix(self) -> Tensor:
        return self.factor @ self.factor.mT + torch.diag_embed(self.diagonal)

    def rsample(self, sample_shape=NO_SHAPE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        normal = partial(torch.randn, dtype=self.loc.dtype, device=self.loc.device)
        z = normal((*shape[:-1], self.factor.shape[-1], 1))
        return self.loc + (self.factor @ z).squeeze(-1) + self.diagonal.sqrt() * normal(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate(value)
        residual = self._mask(value - self.loc)
        weighted = self.factor / self.diagonal.unsqueeze(-1)
        size = self.factor.shape[-1]
        eye = torch.eye(size, dtype=self.loc.dtype, device=self.loc.device)
        if self.observed is None:
            precision, seen = eye + self.factor.mT @ weighted, torch.ones_like(residual)
        else:  # one product serves all rows: sum over observed features of w w^T / psi
            pairs = (self.factor.unsqueeze(-1) * weighted.unsqueeze(-2)).flatten(-2)
            seen = self.observed.to(residual.dtype)
            precision = eye + (seen.unsqueeze(-2) @ pairs).squeeze(-2).unflatten(-1, (size, size))
        tril = torch.linalg.cholesky(precision)
        score = (residual.unsqueeze(-2) @ weighted).squeeze(-2)
        z = torch.cholesky_solve(score.unsqueeze(-1), tril)
        # The least of |r - W z|^2 / psi + |z|^2 is the quadratic form: a sum of squares, so nothing cancels.
        left = (residual - (self.factor @ z).squeeze(-1)) * seen
        quadratic = (left.square() / self.diagonal).sum(-1) + z.square().sum((-2, -1))
        logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (seen * self.diagonal.log()).sum(-1)
        return self._full(-0.5 * (quadratic + logdet + seen.sum(-1) * LOG_2PI))


class MaskedMultinomial(Masked):
    """Counts of K outcomes in a known number of throws, of which some counts may be missing.

    probabilities: (..., K), positive, summing to 1.  throws: (...), how many throws a sample has.  observed: bool (..., K), or None when
    every count is. A value is scored given the throws that its observed counts hold, T = sum of x_o:
    log Multinomial(x_o; T, p_o / sum of p_o). With nothing missing that is the multinomial itself; a wholly missing row scores 0.

    >>> d = MaskedMultinomial(torch.tensor([0.5, 0.25, 0.25]), torch.tensor(2.0), torch.tensor([[True] * 3, [True, True, False]]))
    >>> d.log_prob(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 9.0]])).exp()
    tensor([0.2500, 0.4444])
    """

    arg_constraints = {"probabilities": constraints.simplex}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, probabilities: Tensor, throws: Tensor, observed: Tensor | None = None, validate_args: bool | None = None) -> None:
        shape = batch_shape(observed, probabilities=(probabilities, "D"), throws=(throws, ""))
        self.probabilities, self.throws, self.observed = probabilities, throws, observed
        super().__init__(shape, probabilities.shape[-1:], validate_args=validate_args)

    @torch.no_grad()
    def sample(self, sample_shape=NO_SHAPE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        p = self.probabilities.expand(shape)
        left, counts = self.throws.to(p).expand(shape[:-1]), []
        remaining = p.flip(-1).cumsum(-1).flip(-1)
        for share in (p / remaining).clamp(max=1.0).unbind(-1):  # each face, of the throws that the faces before it left
            counts.append(torch.binomial(left, share.contiguous()))
            left = left - counts[-1]
        return torch.stack(counts, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate(value)
        counts = self._mask(value)
        seen = self.probabilities if self.observed is None else self.probabilities * self.observed
        total = counts.sum(-1)
        share = torch.where(total > 0, seen.sum(-1), 1.0).log()  # no throw, no outcome: nothing to score
        ways = torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1)
        scores = ways + (counts * self.probabilities.log()).sum(-1) - total * share
        return self._full(scores)


def batch_shape(observed: Tensor | None, **given: tuple[Tensor, str]) -> torch.Size:
    """The batch shape of parameters, each given with the letters of its last axes, such as (covariance, "DD"), and a mask (..., D) or None.

    Raises ValueError for what is no tensor, for an axis that is missing or differs from one of the same letter, for a mask that is not of
    booleans, and for leading axes that do not broadcast.
    """
    for name, (tensor, _) in given.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}: torch.as_tensor makes one")
    if observed is not None:
        if not isinstance(observed, Tensor) or observed.dtype is not torch.bool:
            kind = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
            raise ValueError(f"observed is a mask, a tensor of booleans (..., D), not {kind}: ~torch.isnan(x) makes one")
        given["observed"] = (observed, "D")
    sizes: dict[str, int] = {}
    for tensor, letters in given.values():
        axes = tensor.shape[tensor.ndim - len(letters) :]
        if tensor.ndim < len(letters) or any(sizes.setdefault(*pair) != pair[1] for pair in zip(letters, axes, strict=True)):
            raise ValueError(_misfit(given))
    try:
        return torch.broadcast_shapes(*(tensor.shape[: tensor.ndim - len(letters)] for tensor, letters in given.values()))
    except RuntimeError as error:
        raise ValueError(_misfit(given)) from error


def _misfit(given: dict[str, tuple[Tensor, str]]) -> str:
    wanted = ", ".join(f"{name} ({', '.join(['...', *letters])})" for name, (_, letters) in given.items())
    found = " and ".join(str(tuple(tensor.shape)) for tensor, _ in given.values())
    return f"shapes that do not go together: {wanted} came as {found}"


def _whitened(tril: Tensor, residual: Tensor) -> Tensor:
    """L^-1 r, (..., D). One triangular solve serves all rows that share a factor (a leading dim of tril before a dim of size 1)."""
    if tril.ndim == 2:
        return torch.linalg.solve_triangular(tril, residual.reshape(-1, residual.shape[-1]).mT, upper=False).mT.reshape(residual.shape)
    if tril.shape[-3] == 1 and residual.ndim >= 2:
        return torch.linalg.solve_triangular(tril.squeeze(-3), residual.mT, upper=False).mT
    return torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False).squeeze(-1)


class Wishart(TorchDistribution):
    """Wishart(df, scale) over precision matrices (..., D, D), of mean df * scale (Muirhead 1982, section 3.2).

    df: (...), above D - 1.  scale: (..., D, D). Reparametrised by Bartlett's decomposition.

    >>> d = Wishart(torch.tensor(3.0), torch.eye(2))
    >>> round(float(d.log_prob(torch.eye(2))), 4)
    -3.531
    """

    arg_constraints = {"df": constraints.positive, "scale": constraints.positive_definite}  # noqa: RUF012
    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, df: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df, self.scale = df.expand(shape), scale.expand(*shape, *scale.shape[-2:])
        super().__init__(shape, scale.shape[-2:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Wishart(self.df.expand(batch_shape), self.scale.expand(*batch_shape, *self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.df[..., None, None] * self.scale

    @property
    def expected_logdet(self) -> Tensor:
        """(...): E log det of a draw."""
        halves = (self.df.unsqueeze(-1) - self._order) / 2
        return halves.digamma().sum(-1) + self.event_shape[0] * log(2) + _logdet(self.scale)

    @property
    def _order(self) -> Tensor:
        return torch.arange(self.event_shape[0], dtype=self.df.dtype, device=self.df.device)

    def log_prob(self, value: Tensor) -> Tensor:
        trace = torch.cholesky_solve(value, torch.linalg.cholesky(self.scale)).diagonal(dim1=-2, dim2=-1).sum(-1)
        return self.log_density(_logdet(value), trace)

    def log_density(self, logdet: Tensor, trace: Tensor) -> Tensor:
        """(...): log_prob from the two statistics of a value, log det and tr(scale^-1 value), in which it is linear."""
        size = self.event_shape[0]
        constant = self.df / 2 * (size * log(2) + _logdet(self.scale)) + (self.df / 2).mvlgamma(size)
        return 0.5 * ((self.df - size - 1) * logdet - trace) - constant

    def rsample(self, sample_shape=NO_SHAPE) -> Tensor:
        shape = self._extended_shape(sample_shape)
        gamma = torch.distributions.Gamma((self.df.unsqueeze(-1) - self._order) / 2, self.df.new_tensor(0.5), validate_args=False)
        below = torch.randn(shape, dtype=self.df.dtype, device=self.df.device).tril(-1)
        root = torch.linalg.cholesky(self.scale) @ (below + gamma.rsample(sample_shape).sqrt().diag_embed())
        return root @ root.mT


def _logdet(matrix: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)
