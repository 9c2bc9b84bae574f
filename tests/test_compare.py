"""compare: the same start for every method, the same scores, and sums that add up."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import ppvae
from ppvae.comparison import aligned
from ppvae.models import GMM, PPCA, VAE

QUICK = ppvae.SVI(steps=60, compile=False)


@pytest.fixture(scope="module")
def faithful() -> ppvae.Data:
    return ppvae.load_data("faithful")


@pytest.fixture(scope="module")
def iris() -> ppvae.Data:
    return ppvae.load_data("iris")


@pytest.fixture(scope="module")
def mixtures(faithful) -> ppvae.Comparison:
    return ppvae.compare(GMM(2, component="guided"), faithful, [ppvae.EM(), QUICK], seeds=2, holdout=0.25)


@pytest.fixture(scope="module")
def latents(iris) -> ppvae.Comparison:
    return ppvae.compare(PPCA(2), iris, [ppvae.ClosedForm(), ppvae.EM(), QUICK], guide="diagonal")


def test_the_table_has_the_columns_of_the_contract(mixtures):
    expected = ["method", "seed", "status", "log_likelihood", "elbo", "gap_to_best", "kl", "heldout_log_likelihood", "steps", "seconds"]
    assert list(mixtures.table.columns) == expected
    assert list(mixtures.table.method) == ["em", "svi", "em", "svi"]
    assert list(mixtures.table.seed) == [0, 0, 1, 1]


def test_the_table_says_what_the_fits_say(mixtures):
    for row, fit in zip(mixtures.table.itertuples(), mixtures.fits, strict=True):
        assert row.log_likelihood == pytest.approx(float(fit.log_likelihood(mixtures.data).mean()))
        assert row.elbo == pytest.approx(float(fit.elbo(mixtures.data).mean()))
        assert row.kl == pytest.approx(row.log_likelihood - row.elbo, abs=1e-10)
        assert row.heldout_log_likelihood == pytest.approx(float(fit.log_likelihood(mixtures.held_out).mean()))
        assert (row.status, row.steps, row.seconds) == (fit.status, fit.steps, fit.seconds)
    assert mixtures.table.gap_to_best.min() == 0
    best = mixtures.fits[mixtures.table.log_likelihood.argmax()]
    assert mixtures.best is best


def test_held_out_rows_are_not_trained_on(mixtures, faithful):
    assert (mixtures.data.n_rows, mixtures.held_out.n_rows) == (204, 68)
    together = np.concatenate([mixtures.data.numpy(), mixtures.held_out.numpy()])
    assert sorted(map(tuple, together)) == sorted(map(tuple, faithful.numpy()))
    assert all(fit.trained_on.n_rows == 204 for fit in mixtures.fits)


def test_every_method_of_a_seed_starts_alike(mixtures, latents):
    for found in (mixtures, latents):
        for seed in set(found.table.seed):
            starts = [fit.history.log_likelihood.iloc[0] for fit in found.fits if fit.seed == seed and fit.method.name != "closed_form"]
            assert starts == pytest.approx([starts[0]] * len(starts), abs=1e-10)


def test_seeds_start_differently(iris):
    found = ppvae.compare(PPCA(2), iris, [ppvae.EM(max_steps=1)], seeds=3)
    assert len(set(found.table.log_likelihood.round(6))) == 3


def test_a_start_is_shared_by_all_methods(faithful):
    init = {"means": [[2.0, 55.0], [4.0, 80.0]]}
    found = ppvae.compare(GMM(2), faithful, [ppvae.EM(max_steps=1), ppvae.SVI(steps=1, compile=False)], init=init)
    alone = ppvae.fit(GMM(2), faithful, ppvae.EM(max_steps=1), init=init)
    for fit in found.fits:
        assert fit.history.log_likelihood.iloc[0] == pytest.approx(alone.history.log_likelihood.iloc[0], abs=1e-10)


def test_a_compared_fit_is_the_fit_alone(mixtures):
    alone = ppvae.fit(GMM(2, component="guided"), mixtures.data, QUICK, seed=1)
    assert all((alone.params[name] == value).all() for name, value in mixtures.fits[3].params.items())


@pytest.mark.parametrize("which", ["mixtures", "latents"])
def test_gaps_sum_to_what_is_lost(which, request):
    found = request.getfixturevalue(which)
    best = found.table.log_likelihood.max()
    for gap, row in zip(found.gaps.itertuples(), found.table.itertuples(), strict=True):
        assert (gap.method, gap.seed) == (row.method, row.seed)
        assert gap.total == pytest.approx(best - row.elbo, abs=1e-10)
        assert gap.parameters + gap.approximation + gap.amortization == pytest.approx(gap.total, abs=1e-12)
        assert gap.parameters == pytest.approx(row.gap_to_best, abs=1e-12)
        if row.method != "svi":
            assert (gap.approximation, gap.amortization) == pytest.approx((0, 0), abs=1e-12)


def test_the_summary_is_over_seeds(mixtures):
    by_method = mixtures.table.groupby("method").log_likelihood
    for method in ("em", "svi"):
        assert mixtures.summary.loc[method, ("log_likelihood", "mean")] == pytest.approx(by_method.mean()[method])
        assert mixtures.summary.loc[method, ("log_likelihood", "sd")] == pytest.approx(by_method.std()[method], abs=1e-12)


def test_one_seed_has_no_spread(latents):
    assert latents.summary["log_likelihood"]["sd"].isna().all()


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_relabelled_mixtures_are_at_no_distance(iris, covariance):
    model = GMM(3, covariance=covariance)
    fit = ppvae.fit(model, iris, ppvae.EM(max_steps=20))
    order = torch.tensor([2, 0, 1])
    values = {name: torch.as_tensor(value) for name, value in fit.params.items()}
    moved = {name: value if name == "covariances" and covariance == "tied" else value[order] for name, value in values.items()}
    again = aligned(model, moved, values)
    assert all((again[name] == value).all() for name, value in values.items())
    assert any((moved[name] != value).any() for name, value in values.items())


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_order_of_components_is_no_matter_of_units(unit):
    """Means that hardly differ, and that in the other order would fit a little better, must not outvote the weights by large numbers."""
    reference = {"weights": torch.tensor([0.1, 0.9]), "means": unit * torch.tensor([[0.0], [1.0]])}
    values = {"weights": torch.tensor([0.12, 0.88]), "means": unit * torch.tensor([[0.6], [0.5]])}
    for order in ([0, 1], [1, 0]):
        again = aligned(GMM(2), {name: value[order] for name, value in values.items()}, reference)
        assert all(torch.equal(again[name], values[name]) for name in values)


def test_distances_of_relabelled_starts_are_zero(faithful):
    means = np.array([[2.0, 55.0], [4.3, 80.0]])
    one, other = (ppvae.compare(GMM(2), faithful, [ppvae.EM()], init={"means": m}) for m in (means, means[::-1].copy()))
    both = ppvae.Comparison(**(vars(one) | {"fits": one.fits + other.fits, "_scores": one._scores + other._scores}))
    assert (one.fits[0].params["means"] - other.fits[0].params["means"][::-1]) == pytest.approx(0, abs=1e-3)
    assert (both.distances.distance < 1e-4).all()  # two climbs to 1e-10 nats per row stop some 1e-5 apart
    assert set(both.distances.quantity) == {"weights", "means", "covariances", "log_density"}


def test_distances_are_relative_to_the_best_fits_size(iris):
    """Root mean squares, of covariances by dense algebra and of SciPy's log densities."""
    found = ppvae.compare(PPCA(2), iris, [ppvae.EM(max_steps=2), ppvae.ClosedForm()])
    assert found.best is found.fits[1]
    covariances = [fit.params["loadings"] @ fit.params["loadings"].T + fit.params["noise_variance"] * np.eye(4) for fit in found.fits]
    densities = [multivariate_normal(fit.params["mean"], c).logpdf(iris.numpy()) for fit, c in zip(found.fits, covariances, strict=True)]
    apart = covariances[0] - covariances[1]
    said = found.distances.query("method == 'em'").set_index("quantity").distance
    assert said["covariance"] == pytest.approx(np.sqrt((apart**2).mean() / (covariances[1] ** 2).mean()))
    assert said["log_density"] == pytest.approx(np.sqrt(((densities[0] - densities[1]) ** 2).mean()))
    assert said["mean"] == pytest.approx(0, abs=1e-12)
    assert found.table.gap_to_best.tolist() == pytest.approx([densities[1].mean() - densities[0].mean(), 0])


def test_rotated_latents_are_at_no_distance(latents):
    climbed = latents.distances[latents.distances.method == "em"]
    loadings = [fit.params["loadings"] for fit in latents.fits[:2]]
    assert np.abs(loadings[0] - loadings[1]).max() > 0.1
    assert (climbed.distance < 1e-3).all()


def test_different_fits_are_apart(mixtures):
    far = mixtures.distances[(mixtures.distances.method == "svi") & (mixtures.distances.quantity == "log_density")]
    assert (far.distance > 1e-3).all()


def test_without_exact_scores_the_table_carries_errors(iris):
    found = ppvae.compare(VAE(2, (4,), "gaussian"), iris, [ppvae.SVI(steps=20, compile=False)])
    assert {"log_likelihood_se", "kl_se"} <= set(found.table.columns)
    assert (found.table.log_likelihood_se > 0).all()
    assert found.table.gap_to_best.tolist() == [0]


def test_methods_may_be_words_or_left_out(iris):
    found = ppvae.compare(PPCA(2), iris, "em:max_steps=2,svi:steps=2:compile=False")
    assert [fit.method for fit in found.fits] == [ppvae.EM(max_steps=2), ppvae.SVI(steps=2, compile=False)]


def test_two_settings_of_a_method_are_told_apart(iris):
    found = ppvae.compare(PPCA(2), iris, [ppvae.EM(max_steps=2), ppvae.EM(max_steps=3)])
    assert found.table.method.tolist() == ["EM(max_steps=2)", "EM(max_steps=3)"]


def test_progress_covers_all_fits(iris):
    told = []
    ppvae.compare(PPCA(2), iris, [ppvae.EM(max_steps=3)], seeds=2, progress=lambda *said: told.append(said))
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert all(total == 2000 for _, total, _ in told)
    assert told[0][2].startswith("em, seed 0: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"seeds": 1.5}, "seeds must be a whole number, not 1.5"),
        ({"guide": "full", "methods": "em"}, "em takes no guide"),
        ({"methods": []}, "compare needs at least one method"),
        ({"holdout": 1.5}, "holdout is a share of the rows between 0 and 1, not 1.5"),
        ({"holdout": 0.001}, "leaves an empty part"),
        ({"methods": [ppvae.ClosedForm()]}, "no closed-form maximum likelihood: use .*EM.* SVI"),
        ({"methods": [ppvae.EM(), ppvae.SVI(batch_size=1000)]}, "batch_size=1000 is larger than the data"),
        ({"methods": "em,sfi"}, "unknown method 'sfi': did you mean 'svi'"),
        ({"init": {"mean": [0, 0]}}, "unknown parameter 'mean': did you mean 'means'"),
        ({"guide": "ful", "methods": [QUICK]}, "unknown guide 'ful'"),
        ({"device": "cuda:7"}, "device 'cuda:7' is not there"),
    ],
)
def test_mistakes_are_refused(faithful, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.compare(GMM(2), faithful, **arguments)


def test_a_refused_method_costs_no_fit(faithful):
    told = []
    with pytest.raises(ValueError, match="no closed-form"):
        ppvae.compare(GMM(2), faithful, [ppvae.EM(), ppvae.ClosedForm()], progress=lambda *said: told.append(said))
    assert told == []
