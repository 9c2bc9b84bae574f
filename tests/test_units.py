"""The same table in other units: the same fit, the same words. And what a precision makes of it: a fit, or a sentence about itself."""

import numpy as np
import pytest
import torch
from torch.distributions import constraints

import ppvae
from ppvae.models import GMM, PCA, PPCA, BayesianGMM, FactorAnalysis, Gaussian, LinearVAE, MixtureFA, MixturePPCA
from ppvae.parameters import Constrained, Parameters, clip_eigenvalues, floored, is_covariance
from ppvae.starts import spread

EM, DIRECT = ppvae.EM(max_steps=10), ppvae.DirectML(steps=5)
EACH = {  # models for which every column may have units of its own
    "gaussian": (Gaussian(), None),
    "gaussian-direct": (Gaussian(), DIRECT),
    "fa": (FactorAnalysis(1), EM),
    "fa-direct": (FactorAnalysis(1), DIRECT),
    "mixture-fa": (MixtureFA(2, 1), EM),
    "gmm-full": (GMM(2), EM),
    "gmm-full-direct": (GMM(2), DIRECT),
    "gmm-tied": (GMM(2, covariance="tied"), EM),
    "gmm-diag": (GMM(2, covariance="diag"), EM),
    "bayesian-full": (BayesianGMM(2), ppvae.CAVI(max_sweeps=20)),
    "bayesian-diag": (BayesianGMM(2, "diag"), ppvae.CAVI(max_sweeps=20)),
}
ALL = EACH | {  # and those for which all columns have the same
    "ppca": (PPCA(1), None),
    "ppca-direct": (PPCA(1), DIRECT),
    "pca": (PCA(1), None),
    "linear-vae": (LinearVAE(1), DIRECT),
    "mixture-ppca": (MixturePPCA(2, 1), EM),
    "gmm-spherical": (GMM(2, covariance="spherical"), EM),
}


def table(holes: bool) -> np.ndarray:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 1)) * [1.0, 0.8, 0.6] + 0.5 * random.normal(size=(40, 3)) + [1.0, -2.0, 0.0]
    x[:20] += 4
    if holes:
        x[1:][random.random((39, 3)) < 0.1] = np.nan
    return x


def per_row(fit: ppvae.Fit, x: np.ndarray) -> float:
    return float(np.mean(np.asarray(fit.log_likelihood(x, draws=200), dtype=float)))


@pytest.mark.parametrize("holes", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", ALL)
def test_a_table_in_other_units_has_the_same_fit(name, holes):
    """Densities are per unit: a column times u has log u nats less for each of its entries. Rounding of some steps leaves 1e-8 of that."""
    model, method = ALL[name]
    x = table(holes)
    plain = ppvae.fit(model, x, None if holes and method is None else method)
    units = [np.full(3, 10.0**power) for power in (-10, 7, 10)] + [np.array([1.0, 1e-9, 1e6])] * (name in EACH)
    for unit in units:
        fit = ppvae.fit(model, x * unit, plain.method)
        assert per_row(fit, x * unit) + (~np.isnan(x) * np.log(unit)).sum() / 40 == pytest.approx(per_row(plain, x), abs=1e-6)
        assert fit.status == plain.status


def test_more_components_than_the_rows_bear_in_any_units():
    """Off the diagonal of a covariance there is then little but rounding, at the scale of what is on it."""
    x = np.random.default_rng(1).normal(size=(30, 3))
    right = per_row(ppvae.fit(GMM(10), x, EM), x)
    for power in (-10, 4, 8, 10):
        fit = ppvae.fit(GMM(10), x * 10.0**power, EM)
        assert per_row(fit, x * 10.0**power) + 3 * power * np.log(10) == pytest.approx(right, abs=1e-3)


def test_symmetric_at_the_scale_of_the_columns():
    units = torch.tensor([1e10, 1.0, 1e-10], dtype=torch.float64)
    one = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 3.0]], dtype=torch.float64)
    rounded, skew = one.clone(), one.clone()
    rounded[0, 1] += 1e-8
    skew[0, 1] += 1e-3
    assert is_covariance(torch.stack([one, rounded, skew, -one]) * units.outer(units)).tolist() == [True, True, False, False]
    theta = Parameters(c=Constrained(torch.eye(3, dtype=torch.float64), constraints.positive_definite))
    theta.assign({"c": rounded * units.outer(units)})
    with pytest.raises(ValueError, match="'c' is outside its constraint: give symmetric matrices"):
        theta.assign({"c": skew * units.outer(units)})


def test_many_shares_round_to_a_sum_of_one():
    shares = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    theta = Parameters(w=Constrained(torch.full((50_000,), 1 / 50_000), constraints.simplex))
    theta.assign({"w": shares / shares.sum()})
    with pytest.raises(ValueError, match="sum to 1"):
        theta.assign({"w": 1.01 * shares / shares.sum()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_covariance_is_raised_to_what_its_precision_resolves(dtype):
    """Its columns say the same, in units far apart: correlation 1. What is left of each variance is a floor, or 64 D eps of it."""
    units = torch.tensor([1e6, 1.0, 1e-6], dtype=dtype)
    singular = torch.ones(3, 3, dtype=dtype) * units.outer(units)
    for unit in (torch.ones(3, dtype=dtype), units):
        raised = floored(singular, unit.outer(unit), 1e-12)
        assert (torch.linalg.cholesky_ex(raised).info == 0).all()
        sds = raised.diagonal().sqrt()
        least = float(torch.linalg.eigvalsh((raised / sds.outer(sds)).double())[0])
        assert least == pytest.approx(192 * torch.finfo(dtype).eps, rel=0.1) if unit is units else least > 100 * torch.finfo(dtype).eps
        theta = Parameters(c=Constrained(torch.eye(3, dtype=dtype), constraints.positive_definite, unit=unit.outer(unit), floor=1e-12))
        theta.assign({"c": raised})
        assert (torch.linalg.cholesky_ex(theta.c).info == 0).all()
        assert theta.at_floor() == ["c"]


def test_a_floor_for_each_column():
    """The nearest covariance above a diagonal one: in units of that it is the clipped one."""
    sample = torch.tensor([[4.0, 1.9, 0.0], [1.9, 1.0, 0.0], [0.0, 0.0, 1e-9]], dtype=torch.float64)
    least = torch.tensor([1.0, 1e-4, 1e-3], dtype=torch.float64)
    root = least.sqrt().diag()
    values, vectors = torch.linalg.eigh(torch.linalg.inv(root) @ sample @ torch.linalg.inv(root))
    expected = root @ vectors @ values.clamp(min=1.0).diag() @ vectors.mT @ root
    torch.testing.assert_close(clip_eigenvalues(sample, least), expected)
    fine = torch.eye(3, dtype=torch.float64)
    assert torch.equal(clip_eigenvalues(torch.stack([fine, sample]), least)[0], fine)


COLLINEAR = {
    "gmm-full": GMM(2),
    "gmm-tied": GMM(2, covariance="tied"),
    "gaussian": Gaussian(),
    "bayesian": BayesianGMM(2),
    "mixture-ppca": MixturePPCA(2, 2),
    "fa": FactorAnalysis(2),
}


@pytest.mark.parametrize("unit", [1.0, 3e-10])
@pytest.mark.parametrize("name", COLLINEAR)
def test_a_total_beside_its_parts_in_float32(name, unit):
    """A fit whose scores are finite; where it is cut short, the words are of the precision, not of a value that nobody gave."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 3))
    x = np.c_[x, x.sum(1)] * unit
    method = None if name in ("bayesian", "gaussian") else ppvae.EM(max_steps=60)
    fit = ppvae.fit(COLLINEAR[name], x, method, dtype="float32")
    assert np.isfinite(per_row(fit, x))
    if name.startswith("g"):
        assert "on its floor" in fit.status or "on their floors" in fit.status
    if "went from" in fit.status:
        assert "float32 is too coarse (use dtype='float64')" in fit.status or "use dtype='float64', or" in fit.status


def test_a_singular_matrix_ends_em_where_it_was_known(monkeypatch):
    """At the start it is an error in words; later a status, with the parameters of the last step."""
    x = table(False)
    exact, calls = type(GMM(2).closed_forms), []
    plain = exact.statistics

    def third_fails(self, theta, batch):
        calls.append(theta.values())
        if len(calls) == 3:
            raise torch.linalg.LinAlgError("singular")
        return plain(self, theta, batch)

    monkeypatch.setattr(exact, "statistics", third_fails)
    fit = ppvae.fit(GMM(2), x, EM)
    assert fit.status.startswith("stopped at step 1, where a matrix was singular (the parameters are those before it)")
    assert not fit.converged
    np.testing.assert_allclose(fit.params["means"], calls[1]["means"].numpy(), rtol=1e-12)
    monkeypatch.setattr(exact, "statistics", lambda self, theta, batch: (_ for _ in ()).throw(torch.linalg.LinAlgError("singular")))
    with pytest.raises(ValueError, match=r"gmm: a matrix of its start is singular in float32: use dtype='float64'"):
        ppvae.fit(GMM(2), x, EM, dtype="float32")


@pytest.mark.parametrize("entries", [1, 2])
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_a_column_of_one_or_two_entries(entries, unit):
    """In a PPCA its loadings have an optimum: of one entry they are 0 and its mean is the entry. A factor analysis ends on its floor in
    any units; PCA, which has no noise to keep them, refuses."""
    x = table(False)
    x[entries:, 2] = np.nan
    fit = ppvae.fit(PPCA(1), x * unit, ppvae.EM(acceleration="anderson"))
    other = ppvae.fit(PPCA(1), x * unit, ppvae.DirectML(), seed=1)
    assert per_row(fit, x * unit) == pytest.approx(per_row(other, x * unit), abs=1e-6)
    if entries == 1:
        assert abs(fit.params["loadings"][2, 0]) < 1e-3 * unit
        assert fit.params["mean"][2] / unit == pytest.approx(x[0, 2], abs=1e-3)
    heywood = ppvae.fit(FactorAnalysis(1), x * unit, ppvae.EM(max_steps=300))
    assert "noise_variance[2]" in heywood.theta.at_floor()
    with pytest.raises(ValueError, match=r"pca with n_latents=1 fits 2 entries of a column exactly.*loadings of x2 could be anything"):
        ppvae.fit(PCA(1), x * unit)


def test_the_spread_of_a_constant_column():
    x = np.array([[1.0, 5.0, 0.0, 1e-3], [3.0, 5.0, 0.0, 1e-3], [5.0, np.nan, 0.0, np.nan]])
    sd = (8 / 3) ** 0.5
    for unit in (1.0, 1e-9):
        assert spread(ppvae.Data(x * unit)).tolist() == pytest.approx([sd * unit, sd * unit, sd * unit, 1e-3 * unit])
    assert spread(ppvae.Data([[2.0, 0.0], [2.0, 0.0]])).tolist() == [2.0, 1.0]
