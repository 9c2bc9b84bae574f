"""Die: faces and counts, complete or not, and the data that are refused."""

import numpy as np
import pytest
import torch

import ppvae
from ppvae.distributions import MaskedMultinomial
from ppvae.models import Die

SHARES = np.array([0.3, 0.1, 0.2, 0.15, 0.05, 0.2])
RANDOM = np.random.default_rng(0)
FACES = RANDOM.choice(6, 300, p=SHARES)[:, None] + 1.0
COUNTS = RANDOM.multinomial(7, SHARES, size=60).astype(float)


def holes(x: np.ndarray, share: float) -> np.ndarray:
    x = np.where(np.random.default_rng(1).random(x.shape) < share, np.nan, x)
    x[0] = np.nan
    return x


@pytest.mark.parametrize(
    "x", [FACES, holes(FACES, 0.3), COUNTS, holes(COUNTS, 0.3)], ids=["faces", "faces-holes", "counts", "counts-holes"]
)
def test_laws(x):
    verdicts = ppvae.laws.check(Die(), x)
    assert verdicts.passed, verdicts.table.to_string()
    # Throws are given, so a missing count is no plain sum over what it may be: see the test of MaskedMultinomial.
    assert [law for law in range(1, 10) if verdicts[law] == "does not apply"] == ([] if x.shape[1] == 1 else [8])


@pytest.mark.parametrize("x", [FACES, holes(FACES, 0.3)], ids=["complete", "holes"])
def test_faces_are_counted(x):
    fit = ppvae.fit(Die(), x)
    seen = x[~np.isnan(x)]
    shares = np.array([(seen == face).mean() for face in range(1, 7)])
    assert fit.method == ppvae.ClosedForm()
    assert fit.params["probabilities"] == pytest.approx(shares, rel=1e-12)
    assert fit.log_likelihood(x).sum() == pytest.approx(len(seen) * (shares * np.log(shares)).sum(), rel=1e-12)


def test_counts_are_added_up_and_scored_as_a_multinomial():
    fit = ppvae.fit(Die(), COUNTS)
    assert fit.params["probabilities"] == pytest.approx(COUNTS.sum(0) / COUNTS.sum(), rel=1e-12)
    reference = torch.distributions.Multinomial(7, torch.tensor(fit.params["probabilities"])).log_prob(torch.tensor(COUNTS))
    assert np.asarray(fit.log_likelihood(COUNTS)) == pytest.approx(reference.numpy(), rel=1e-12)


def test_missing_counts_are_marginalised_given_the_throws_that_were_counted():
    x = np.array([[2.0, 1, np.nan], [np.nan, 3, np.nan], [np.nan] * 3, [4, 0, 1]])
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    values = torch.tensor(x)
    found = MaskedMultinomial(p, torch.tensor(1.0), ~values.isnan()).log_prob(values.nan_to_num())
    pair = torch.distributions.Multinomial(3, p[:2] / p[:2].sum()).log_prob(torch.tensor([2.0, 1.0]).double())
    whole = torch.distributions.Multinomial(5, p).log_prob(torch.tensor([4.0, 0.0, 1.0]).double())
    assert found.tolist() == pytest.approx([float(pair), 0.0, 0.0, float(whole)], abs=1e-12)


def test_em_finds_the_maximum_where_counts_are_missing():
    x = holes(COUNTS, 0.3)
    fit = ppvae.fit(Die(), x)
    assert fit.method == ppvae.EM()
    by_gradient = ppvae.fit(Die(), x, ppvae.SVI(steps=400))
    assert by_gradient.log_likelihood(x).sum() == pytest.approx(fit.log_likelihood(x).sum(), abs=1e-5)
    assert by_gradient.params["probabilities"] == pytest.approx(fit.params["probabilities"], abs=1e-3)
    with pytest.raises(ValueError, match="use EM"):
        ppvae.fit(Die(), x, ppvae.ClosedForm())


def test_complete_data_take_em_one_step_from_anywhere():
    fit = ppvae.fit(Die(), COUNTS, ppvae.EM())
    assert fit.steps == 2  # to the maximum, and there again: nothing is left to gain
    assert fit.params["probabilities"] == pytest.approx(COUNTS.sum(0) / COUNTS.sum(), rel=1e-12)


def test_a_face_that_never_came_up_keeps_a_finite_logarithm():
    fit = ppvae.fit(Die(3), [[1], [1], [2]])
    assert fit.params["probabilities"] == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-9)
    assert np.isfinite(fit.log_likelihood([[3]])).all()


def test_draws_are_faces_or_counts():
    faces, counts = ppvae.fit(Die(), FACES), ppvae.fit(Die(), COUNTS)
    drawn = faces.sample(4000)[:, 0]
    assert set(drawn) == set(range(1, 7))
    spread = np.sqrt(SHARES / 4000)
    assert (np.abs([(drawn == f).mean() for f in range(1, 7)] - faces.params["probabilities"]) < 4 * spread).all()
    assert (counts.sample(20).sum(1) == 1).all()
    replicated = counts.replicate(COUNTS, draws=50)
    assert (replicated.sum(-1) == 7).all()
    assert (np.abs(replicated.mean((0, 1)) / 7 - counts.params["probabilities"]) < 4 * np.sqrt(SHARES / (50 * 60 * 7))).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0], [1]], "faces are whole numbers from 1 to 6, but the data hold 0"),
        ([[7], [1]], "from 1 to 6"),
        ([[1.5]], "whole numbers"),
        ([[1, 2, 3]], "one column of faces or 6 columns of counts"),
        ([[1, 1, 1, 1, 0.5, 1]], "counts are whole numbers from 0 up, but the data hold 0.5"),
        ([[1, 1, 1, 1, -1, 1]], "from 0 up"),
        ([[0] * 6, [0] * 6], "every count is 0, so the die was never thrown"),
    ],
)
def test_what_is_no_throw_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        ppvae.fit(Die(), x)


def test_a_die_has_two_faces_or_more():
    with pytest.raises(ValueError, match="at least 2"):
        Die(1)
