"""Gaussian algebra without loops, against the textbook's formulas row by row: to 1e-8 relative, rounding times a condition of some 10^4."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from ppvae.data import Batch
from ppvae.distributions import MaskedMultivariateNormal
from ppvae.gaussian import (
    component_densities,
    conditional_matrices,
    expected_moments,
    factor_log_marginal,
    factor_moments,
    factor_posterior,
    factor_regression,
    inverse_tril,
    log_density,
    masked_covariance,
    whitened,
)
from ppvae.patterns import BLOCK, Patterns
from ppvae.sweep import expected_outer, outer_moments, sweep

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


class Case:
    """Random rows (B, D) with random holes, one of them whole and one empty, and K random Gaussians."""

    def __init__(self, seed: int, rows: int = 12, features: int = 4, components: int = 3, missing: float = 0.4) -> None:
        random = torch.Generator().manual_seed(seed)
        self.x = 5 + 2 * torch.randn(rows, features, generator=random, dtype=torch.float64)
        self.observed = torch.rand(rows, features, generator=random) >= missing
        self.observed[0], self.observed[-1] = True, False
        self.means = 5 + torch.randn(components, features, generator=random, dtype=torch.float64)
        root = torch.randn(components, features, features, generator=random, dtype=torch.float64)
        self.covariances = root @ root.mT + 0.05 * torch.eye(features, dtype=torch.float64)
        self.loadings = torch.randn(components, features, features - 1, generator=random, dtype=torch.float64)
        self.noise = 0.1 + torch.rand(components, features, generator=random, dtype=torch.float64)
        self.weights = torch.rand(components, rows, generator=random, dtype=torch.float64)
        self.residual = torch.where(self.observed, self.x - self.means.unsqueeze(1), 0.0)


def dense(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """log N(x_o; m_o, C_oo) of one row."""
    if not seen.any():
        return x.new_zeros(())
    return MultivariateNormal(mean[seen], covariance[seen][:, seen]).log_prob(x[seen])


cases = st.builds(Case, st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 6), st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.8]))


@QUICK
@given(cases)
def test_masked_density_is_the_observed_marginal(case):
    found = MaskedMultivariateNormal(case.means[0], case.covariances[0], case.observed).log_prob(case.x)
    expected = torch.stack([dense(x, case.means[0], case.covariances[0], seen) for x, seen in zip(case.x, case.observed, strict=True)])
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found[-1] == 0
    hidden = torch.where(case.observed, case.x, torch.nan)
    assert not torch.isnan(MaskedMultivariateNormal(case.means[0], case.covariances[0], case.observed).log_prob(hidden)).any()


@QUICK
@given(cases)
def test_masked_density_of_every_row_and_component(case):
    """Broadcast as an enumerated story does it: (K, 1, D) against (B, D)."""
    found = MaskedMultivariateNormal(case.means[:, None], case.covariances[:, None], case.observed).log_prob(case.x)
    pairs = zip(case.means, case.covariances, strict=True)
    expected = torch.stack([torch.stack([dense(x, m, c, o) for x, o in zip(case.x, case.observed, strict=True)]) for m, c in pairs])
    torch.testing.assert_close(found, expected, **CLOSE)
    complete = MaskedMultivariateNormal(case.means[:, None], case.covariances[:, None]).log_prob(case.x)
    torch.testing.assert_close(complete, MultivariateNormal(case.means[:, None], case.covariances[:, None]).log_prob(case.x), **CLOSE)


def test_masked_density_has_the_right_gradients():
    case = Case(0, rows=5, features=3, components=2)
    root = torch.linalg.cholesky(case.covariances[:1]).requires_grad_()
    mean = case.means[:1].clone().requires_grad_()

    def score(mean, root, observed):
        return MaskedMultivariateNormal(mean, root @ root.mT, observed).log_prob(case.x)

    for observed in (case.observed, None):
        assert torch.autograd.gradcheck(lambda m, r, o=observed: score(m, r, o), (mean, root))


def test_masked_density_samples_all_entries():
    case = Case(1)
    d = MaskedMultivariateNormal(case.means[0], case.covariances[0], case.observed)
    assert d.batch_shape == (12,)
    assert d.event_shape == (4,)
    draws = d.sample(torch.Size([4000]))
    assert draws.shape == (4000, 12, 4)
    error = (case.covariances[0].diagonal() / draws[:, 0].shape[0]).sqrt()
    assert bool(((draws[:, -1].mean(0) - case.means[0]).abs() < 4 * error).all())  # a missing row is drawn like any other
    spread = torch.cov(draws[:, 0].mT)
    scale = case.covariances[0].diagonal().sqrt()
    assert bool(((spread - case.covariances[0]).abs() < 4 * scale[:, None] * scale * math.sqrt(2 / 4000)).all())


def test_masked_density_expands():
    case = Case(2)
    d = MaskedMultivariateNormal(case.means[0], case.covariances[0], case.observed).expand((3, 12))
    assert d.batch_shape == (3, 12)
    assert d.sample().shape == (3, 12, 4)
    assert d.log_prob(case.x.expand(3, 12, 4)).shape == (3, 12)
    plain = MaskedMultivariateNormal(case.means[0], case.covariances[0]).expand((12,))
    assert plain.batch_shape == (12,)
    assert plain.rsample((2,)).shape == (2, 12, 4)


@settings(QUICK, max_examples=10)
@given(cases, st.booleans())
def test_factor_posterior_marginal_and_moments(case, weighted):
    """z | x, log p(x) and the E-step's moments of x - m = W z + noise, against the joint covariance of (z, x_o)."""
    weights = case.weights if weighted else torch.ones_like(case.weights)
    loc, tril = factor_posterior(case.residual, case.loadings, case.noise, case.observed)
    found = factor_log_marginal(case.residual, case.loadings, case.noise, case.observed, loc, tril)
    mask = case.observed.double()
    swept = [expected_outer(r, mask, w, noise) for r, w, noise in zip(case.residual, case.loadings, case.noise, strict=True)]
    parts = [
        outer_moments(outer, r, mask, row if weighted else None)
        for (outer, _), r, row in zip(swept, case.residual, case.weights, strict=True)
    ]
    moments = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    latents = case.loadings.shape[-1]
    for k, (w, noise) in enumerate(zip(case.loadings, case.noise, strict=True)):
        marginal = w @ w.mT + torch.diag(noise)
        uu, ur = torch.zeros_like(moments["uu"][k]), torch.zeros_like(moments["ur"][k])
        for n, (r, seen) in enumerate(zip(case.residual[k], case.observed, strict=True)):
            gain = w[seen].mT @ torch.linalg.inv(marginal[seen][:, seen])
            covariance = torch.eye(latents, dtype=r.dtype) - gain @ w[seen]
            torch.testing.assert_close(loc[k, n], gain @ r[seen], **CLOSE)
            torch.testing.assert_close(torch.cholesky_inverse(tril[k, n]), covariance, **CLOSE)
            torch.testing.assert_close(swept[k][1][n], found[k, n], **CLOSE)
            torch.testing.assert_close(found[k, n], dense(r, torch.zeros_like(r), marginal, seen), **CLOSE)
            u = torch.cat([gain @ r[seen], torch.ones(1, dtype=r.dtype)])
            uu[seen] += weights[k, n] * (torch.outer(u, u) + torch.nn.functional.pad(covariance, (0, 1, 0, 1)))
            ur[seen] += weights[k, n] * torch.outer(r[seen], u)
        torch.testing.assert_close(moments["uu"][k], uu, **CLOSE)
        torch.testing.assert_close(moments["ur"][k], ur, **CLOSE)
        torch.testing.assert_close(moments["rr"][k], weights[k] @ case.residual[k].square(), **CLOSE)
        torch.testing.assert_close(moments["count"][k], weights[k] @ case.observed.double(), **CLOSE)


def test_a_full_sweep_inverts_and_gives_the_determinant():
    random = torch.Generator().manual_seed(0)
    root = torch.randn(7, 5, 5, generator=random, dtype=torch.float64)
    matrices = root @ root.mT + 0.05 * torch.eye(5, dtype=torch.float64)
    swept = matrices.permute(1, 2, 0).clone()
    pivots = sweep(swept, 5)
    torch.testing.assert_close(-swept.permute(2, 0, 1), torch.linalg.inv(matrices), **CLOSE)
    torch.testing.assert_close(pivots.log().sum(0), torch.logdet(matrices), **CLOSE)


def test_complete_rows_share_one_factor():
    case = Case(3, missing=0.0)
    residual, everything = case.x - case.means.unsqueeze(1), torch.ones_like(case.observed)
    loc, tril = factor_posterior(residual, case.loadings, case.noise, None)
    assert tril.shape == (3, 1, 3, 3)
    by_row, trils = factor_posterior(residual, case.loadings, case.noise, everything)
    torch.testing.assert_close(loc, by_row, **CLOSE)
    shared = factor_log_marginal(residual, case.loadings, case.noise, None, loc, tril)
    torch.testing.assert_close(shared, factor_log_marginal(residual, case.loadings, case.noise, everything, by_row, trils), **CLOSE)
    mask = everything.double()
    outers = [expected_outer(r, mask, w, noise)[0] for r, w, noise in zip(residual, case.loadings, case.noise, strict=True)]
    for weights in (torch.ones_like(case.weights), case.weights):
        together = factor_moments(residual, loc, tril, weights)
        for k, outer in enumerate(outers):
            apart = outer_moments(outer, residual[k], mask, weights[k])
            shared = {name: value[k] for name, value in together.items()}
            for name, value in apart.items():
                torch.testing.assert_close(shared[name].expand_as(value), value, **CLOSE)
            for one, other in zip(factor_regression(shared), factor_regression(apart), strict=True):
                torch.testing.assert_close(one, other, **CLOSE)


def test_regression_is_least_squares():
    """With latents known exactly (no noise left in them) the moments are those of a linear regression with an intercept."""
    case = Case(7, rows=20, missing=0.0)
    z = case.x[:, :2]
    u = torch.cat([z, torch.ones(20, 1, dtype=z.dtype)], 1)
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    moments = {"uu": (u.mT @ u)[None], "ur": y.mT @ u, "rr": y.square().sum(0)}
    weights, left = factor_regression(moments)
    expected = torch.linalg.lstsq(u, y).solution
    torch.testing.assert_close(weights, expected.mT, **CLOSE)
    torch.testing.assert_close(left, (y - u @ expected).square().sum(0), **CLOSE)


@QUICK
@given(cases)
def test_whitened_rows_give_densities(case):
    tril = torch.linalg.cholesky(case.covariances)
    white = whitened(case.x, case.means, tril)
    expected = MultivariateNormal(case.means, case.covariances).log_prob(case.x[:, None])
    torch.testing.assert_close(log_density(white, tril), expected, **CLOSE)
    torch.testing.assert_close(inverse_tril(tril) @ tril, torch.eye(tril.shape[-1], dtype=tril.dtype).expand_as(tril), **CLOSE)


def test_whitening_keeps_its_digits_far_from_zero():
    case = Case(4)
    shift = 1e7
    tril = torch.linalg.cholesky(case.covariances)
    near, far = whitened(case.x, case.means, tril), whitened(case.x + shift, case.means + shift, tril)
    # The shifted table is itself rounded to 1e7 * 2^-53 = 1e-9; a product with the shift left in would lose 1e7 times as much.
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@QUICK
@given(cases)
def test_conditional_matrices_of_every_pattern_and_component(case):
    patterns = Patterns.of(case.observed)
    root, regression, conditional, logdet = conditional_matrices(case.covariances, patterns.unique)
    for p, seen in enumerate(patterns.unique):
        r = torch.where(seen, case.x[0] - 5, 0.0)
        for k, c in enumerate(case.covariances):
            block = c[seen][:, seen]
            precision = torch.linalg.inv(block)
            torch.testing.assert_close((root[p, k] @ r).square().sum(), r[seen] @ precision @ r[seen], **CLOSE)
            torch.testing.assert_close(regression[p, k] @ r, c[:, seen] @ precision @ r[seen], **CLOSE)
            expected = c - c[:, seen] @ precision @ c[seen]
            expected[seen], expected[:, seen] = 0.0, 0.0
            torch.testing.assert_close(conditional[p, k], expected, **CLOSE)
            torch.testing.assert_close(logdet[p, k], torch.logdet(block) if seen.any() else logdet.new_zeros(()), **CLOSE)


@QUICK
@given(cases)
def test_component_densities_and_expected_moments(case):
    """The E-step of a mixture: densities, expected rows and expected moments, row by row."""
    complete = bool(case.observed.all())
    batch = Batch(torch.where(case.observed, case.x, 0.0), case.observed, torch.arange(len(case.x)), len(case.x), complete)
    density, residual, conditional = component_densities(batch, case.means, case.covariances)
    first, scatter = torch.zeros_like(case.means), torch.zeros_like(case.covariances)
    for k, (m, c) in enumerate(zip(case.means, case.covariances, strict=True)):
        for n, (x, seen) in enumerate(zip(case.x, case.observed, strict=True)):
            torch.testing.assert_close(density[n, k], dense(x, m, c, seen), **CLOSE)
            gain = c[:, seen] @ torch.linalg.inv(c[seen][:, seen])
            expected = gain @ (x - m)[seen]
            torch.testing.assert_close(residual[n, k], expected, **CLOSE)
            first[k] += case.weights[k, n] * expected
            scatter[k] += case.weights[k, n] * (torch.outer(expected, expected) + c - gain @ c[seen])
    for found, dense_sum in zip(expected_moments(batch, case.weights.mT, residual, conditional), (first, scatter), strict=True):
        torch.testing.assert_close(found, dense_sum, **CLOSE)


def test_masked_covariance_is_the_identity_where_nothing_is_seen():
    case = Case(5)
    found = masked_covariance(case.covariances[0], case.observed)
    assert (found[-1] == torch.eye(4)).all()
    assert (found[0] == case.covariances[0]).all()


@QUICK
@given(st.integers(0, 10_000), st.integers(1, 100), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.5]))
def test_patterns_group_rows(seed, rows, features, missing):
    observed = torch.rand(rows, features, generator=torch.Generator().manual_seed(seed)) >= missing
    patterns = Patterns.of(observed)
    assert (patterns.unique[patterns.of_row] == observed).all()
    assert len(patterns.unique) == len(np.unique(observed.numpy(), axis=0))
    kept = patterns.blocks[patterns.blocks < rows]
    assert sorted(kept.tolist()) == list(range(rows))
    assert patterns.blocks.shape[1] == BLOCK
    x = torch.randn(rows, features, dtype=torch.float64)
    matrices = torch.randn(len(patterns.unique), features, 2, dtype=torch.float64)
    torch.testing.assert_close(patterns.apply(matrices, x), torch.einsum("bd,bde->be", x, matrices[patterns.of_row]), **CLOSE)
    one_hot = torch.nn.functional.one_hot(patterns.of_row, len(patterns.unique)).to(x)
    torch.testing.assert_close(patterns.sum_rows(x), one_hot.mT @ x, **CLOSE)


def test_values_behind_the_mask_are_never_read():
    case = Case(6)
    d = MaskedMultivariateNormal(case.means[0], case.covariances[0], case.observed)
    assert (d.log_prob(case.x) == d.log_prob(torch.where(case.observed, case.x, 1e6))).all()
    with pytest.raises(ValueError, match=r"value \(..., D\), observed \(..., D\) came as \(3,\) and \(12, 4\)"):
        d.log_prob(torch.zeros(3))
