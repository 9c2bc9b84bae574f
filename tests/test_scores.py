"""Scores by Monte Carlo: around what dense algebra gives, and as far from it as their standard errors say."""

import copy
import pickle
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from classic import observed_density
from scipy import stats

import ppvae
from ppvae import Model, Parameters
from ppvae.inference.fit import start
from ppvae.models import PPCA
from ppvae.scores import Scores, sampled_elbo, sampled_evidence

IRIS = ppvae.load_data("iris").take(range(0, 150, 3)).with_holes(0.3)
IRIS = IRIS.take(IRIS.observed.any(1).nonzero().squeeze(1))
THETA = start(PPCA(1), IRIS, 0)
PROGRAM = partial(PPCA(1).model, THETA)
W, M, V = (THETA.values()[name].numpy() for name in ("loadings", "mean", "noise_variance"))
SEEN = ~np.isnan(IRIS.numpy())
VARIANCE = np.array([1 / (1 + W[o, 0] @ W[o, 0] / V) for o in SEEN])
MEAN = np.array([c * (W[o, 0] @ (row[o] - M[o])) / V for row, o, c in zip(IRIS.numpy(), SEEN, VARIANCE, strict=True)])
EVIDENCE = observed_density(IRIS.numpy(), M, W @ W.T + V * np.eye(4))
KL = -np.log(1.3) + (1.3**2 + 0.5**2 - 1) / 2  # of N(m + s / 2, (1.3 s)^2) from N(m, s^2)
REPEATS = 40


class Off(torch.nn.Module):
    """A guide that stands half a standard deviation beside the posterior, and is wider."""

    def forward(self, batch):
        mean, sd = (torch.as_tensor(value).unsqueeze(-1) for value in (MEAN, VARIANCE**0.5))
        with batch.rows:
            pyro.sample("z", dist.Normal(mean + 0.5 * sd, 1.3 * sd).to_event(1))


@pytest.mark.parametrize(("score", "truth"), [(sampled_elbo, EVIDENCE - KL), (sampled_evidence, EVIDENCE)], ids=["elbo", "evidence"])
def test_errors_are_what_they_say(score, truth):
    """Row by row and in the mean, over repeated draws, the squares of (value - truth) / error average to 1."""
    found = [score(PROGRAM, Off(), IRIS, 500) for _ in range(REPEATS)]
    rows = (np.stack([np.asarray(s) for s in found]) - truth) / np.stack([np.asarray(s.standard_error) for s in found])
    assert np.sqrt((rows**2).mean()) == pytest.approx(1, abs=5 / np.sqrt(2 * rows.size))
    means = [(np.asarray(s).mean() - truth.mean()) / s.mean_standard_error for s in found]
    assert np.sqrt(np.mean(np.square(means))) == pytest.approx(1, abs=5 / np.sqrt(2 * REPEATS))


VALUES, ERRORS = np.array([-1.0, -2.0, -4.0, -8.0]), np.array([0.1, 0.2, 0.4, 0.8])
ESTIMATE = Scores(VALUES, ERRORS, "Monte Carlo, 100 draws")
ALIKE = Scores(VALUES, ERRORS, "posterior predictive, 100 draws of what all rows share", together=0.3)  # rows that err together


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@pytest.mark.parametrize("scores", [ESTIMATE, ALIKE], ids=["each by itself", "together"])
@pytest.mark.parametrize("moved", [copy.copy, copy.deepcopy, Scores.copy, lambda s: pickled(s), lambda s: s[:]])
def test_copies_keep_errors(scores, moved):
    found = moved(scores)
    assert type(found) is Scores
    assert (found.values.tolist(), found.standard_error.tolist()) == (VALUES.tolist(), ERRORS.tolist())
    assert (found.how, found.exact) == (scores.how, False)
    assert found.mean_standard_error == scores.mean_standard_error


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([True, False, False, True]), [0, 3]),
        (ESTIMATE > -3, [0, 1]),
        (torch.tensor([3]), [3]),
        (..., [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_parts_keep_errors(part, rows):
    found = ESTIMATE[part]
    assert (found.values.tolist(), found.standard_error.tolist()) == (VALUES[rows].tolist(), ERRORS[rows].tolist())
    assert found.how == ESTIMATE.how
    assert found.mean_standard_error == pytest.approx(np.sqrt((ERRORS[rows] ** 2).sum()) / len(rows), rel=1e-12)


def test_errors_of_parts():
    """A row twice errs twice alike, also in a part of a part; where rows err together a part's error is at most the mean of theirs."""
    assert ESTIMATE[[1, 1, 1]].mean_standard_error == pytest.approx(0.2)
    assert ESTIMATE[1:][[0, 0, 1]].mean_standard_error == pytest.approx(np.hypot(0.4, 0.4) / 3)
    assert ALIKE[::-1].mean_standard_error == 0.3
    assert ALIKE[:2].mean_standard_error == pytest.approx(0.15)
    assert ALIKE[:2].copy()[[0, 1]].mean_standard_error == pytest.approx(0.15)
    assert ESTIMATE[2] == -4.0
    assert isinstance(ESTIMATE[2], float)


@pytest.mark.filterwarnings("ignore:.*importance-weighted draws count")
def test_only_what_is_exact_has_no_error():
    exact = Scores(VALUES)
    assert (exact.exact, exact.standard_error, exact.mean_standard_error) == (True, None, 0.0)
    assert (exact[:2].exact, exact[:2].mean_standard_error, pickled(exact).exact) == (True, 0.0, True)
    for none in (
        Scores(VALUES, how="unknown: too few draws"),
        sampled_evidence(PROGRAM, Off(), IRIS, 1),
        sampled_elbo(PROGRAM, Off(), IRIS, 1),
    ):
        assert not none.exact
        assert np.isnan(none.standard_error).all()
        assert np.isnan(none.mean_standard_error)


def test_scores_count_as_their_values():
    """Elsewhere a plain array, as NumPy, pandas and torch read them."""
    plain = {
        "abs(a - b)": abs(ESTIMATE - 1),
        "b - a": 1 - ESTIMATE,
        "array op": VALUES * ESTIMATE,
        "a == b": ESTIMATE == ESTIMATE,
        "exp": np.exp(ESTIMATE),
        "where": np.where(ESTIMATE > -3, ESTIMATE, 0),
        "round": ESTIMATE.round(1),
        "concatenate": np.concatenate([ESTIMATE, ESTIMATE]),
        "asarray": np.asarray(ESTIMATE),
        "column": ESTIMATE[:, None],
    }
    assert {type(found) for found in plain.values()} == {np.ndarray}
    assert plain["abs(a - b)"].tolist() == [2, 3, 5, 9]
    assert plain["b - a"].tolist() == [2, 3, 5, 9]
    assert (ESTIMATE.shape, len(ESTIMATE), ESTIMATE.dtype, ESTIMATE.tolist(), list(ESTIMATE)) == (
        (4,),
        4,
        float,
        VALUES.tolist(),
        list(VALUES),
    )
    assert (ESTIMATE.mean(), np.mean(ESTIMATE), np.mean(ESTIMATE, axis=0, dtype=np.float32)) == (-3.75, -3.75, -3.75)
    assert (ESTIMATE.sum(), np.sum(ESTIMATE), sum(ESTIMATE), np.add.reduce(ESTIMATE)) == (-15, -15, -15, -15)
    assert (ESTIMATE.std(), np.std(ESTIMATE), np.median(ESTIMATE), max(ESTIMATE)) == (VALUES.std(), VALUES.std(), -3, -1)
    assert f"{ESTIMATE.mean():.1f} {ESTIMATE[0]:.2f} {ESTIMATE.mean().round(1)}" == "-3.8 -1.00 -3.8"
    assert torch.as_tensor(ESTIMATE).dtype == torch.float64
    assert pd.Series(ESTIMATE).tolist() == pd.DataFrame({"nats": ESTIMATE}).nats.tolist() == VALUES.tolist()
    assert repr(ESTIMATE) == "Scores([-1., -2., -4., -8.], how='Monte Carlo, 100 draws')"


def test_nothing_changes_scores_in_place():
    less = ESTIMATE
    less -= 1
    assert type(less) is np.ndarray
    np.asarray(ESTIMATE)[0] = 5
    np.array(ESTIMATE).sort()
    with pytest.raises(AttributeError, match=r"take np\.asarray"):
        ESTIMATE.sort()
    with pytest.raises(TypeError):
        ESTIMATE[0] = 5
    with pytest.raises(AttributeError):
        ESTIMATE.how = "exact"
    assert ESTIMATE.values.tolist() == VALUES.tolist() == [-1, -2, -4, -8]


def test_a_pickled_comparison_says_the_same():
    """Pickled before its tables were asked for, as a pool of processes does."""
    found = ppvae.compare(ppvae.models.VAE(1, (4,), "gaussian"), IRIS, ppvae.SVI(steps=2), holdout=0.2)
    after = pickled(found)
    pd.testing.assert_frame_equal(after.table, found.table)
    assert after.table.log_likelihood_se[0] > 0


@dataclass(frozen=True)
class Ability(Model):
    """A latent of a shape of its own on a support of its own, and answers of yes and no whose log odds are linear in `level(z)`."""

    kind: str

    def init(self, data, generator):
        return Parameters(slope=data.x.new_tensor([1.0, 2.0, 0.5]), difficulty=data.x.new_tensor([-0.5, 0.0, 1.0]))

    def prior(self, batch):
        one = batch.x.new_ones(())
        return {
            "number": dist.Normal(0 * one, 1.0),
            "vector": dist.Normal(0 * one.expand(1), 1.0).to_event(1),
            "matrix": dist.Normal(0 * one.expand(1, 1), 1.0).to_event(2),
            "positive": dist.Gamma(2 * one, 1.0),
            "positive vector": dist.Gamma(2 * one.expand(1), 1.0).to_event(1),
            "share": dist.Beta(2 * one, 1.5),
            "shares": dist.Dirichlet(one.new_tensor([2.0, 1.5])),
        }[self.kind]

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", self.prior(batch))
            level = {"shares": lambda: z[..., 0], "matrix": lambda: z[..., 0, 0]}.get(
                self.kind, lambda: z[..., 0] if "vector" in self.kind else z
            )()
            logits = theta.slope * level.unsqueeze(-1) - theta.difficulty
            pyro.sample("x", dist.Bernoulli(logits=logits).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("kind", ["number", "vector", "matrix", "positive", "positive vector", "share", "shares"])
def test_the_evidence_of_latents_of_any_shape_is_that_of_quadrature(kind):
    """By SciPy's densities on a grid, within the errors, after few steps of a guide."""
    answers = (np.random.default_rng(0).random((8, 3)) < 0.5).astype(float)
    fit = ppvae.fit(Ability(kind), answers, ppvae.SVI(steps=20, learning_rate=0.01, compile=False))
    z = np.linspace(1e-6, 1 - 1e-6, 20_001) if "share" in kind else np.linspace(1e-6 if "positive" in kind else -9, 25, 20_001)
    prior = stats.beta(2, 1.5) if "share" in kind else stats.gamma(2) if "positive" in kind else stats.norm()
    odds = fit.params["slope"] * z[:, None] - fit.params["difficulty"]
    given = np.exp((answers[:, None] * odds - np.logaddexp(0, odds)).sum(-1))
    known = np.log((given * prior.pdf(z)).sum(1) * (z[1] - z[0]))
    found = fit.log_likelihood(answers, draws=3000)
    assert (np.abs(np.asarray(found) - known) < 5 * np.asarray(found.standard_error) + 1e-3).all()
    assert np.asarray(found.standard_error).max() < 0.2
    assert found.mean() == pytest.approx(known.mean(), abs=5 * found.mean_standard_error + 1e-3)
