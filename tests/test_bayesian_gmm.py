"""The Bayesian mixture and CAVI: laws and their twins, posteriordb's published posterior by three methods, and EM as a special case."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributions as dist
import twins

import ppvae
from ppvae.inference.nuts import relabelled
from ppvae.models import GMM, BayesianGMM

DATA = ppvae.load_data("low_dim_gauss_mix")
PRIORS = {"concentration": [5.0, 5.0], "mean_loc": [0.0], "mean_scale": [2.0]}  # posteriordb's, but for the scales': N rows outweigh those
# posteriordb, low_dim_gauss_mix, 10,000 reference draws (gold case D13)
GOLD_MEAN = {"mu1": -2.733514, "mu2": 2.869832, "sigma1": 1.028074, "sigma2": 1.023822, "theta": 0.621549}
GOLD_SD = {"mu1": 0.042045, "mu2": 0.054603, "sigma1": 0.031437, "sigma2": 0.040484, "theta": 0.015481}

METHODS = {
    "cavi": ppvae.CAVI(),
    "svi": ppvae.SVI(steps=2000),
    "nuts": ppvae.NUTS(draws=400, warmup=200),
}


def published(fit: ppvae.Fit) -> dict[str, np.ndarray]:
    """posteriordb's quantities from draws of ours, components by their means."""
    drawn = {name: value.reshape(-1, *value.shape[2:]) for name, value in fit.shared_chains(4000).items()}
    means, weights = drawn["means"][..., 0], drawn["weights"]
    sigma = drawn["precisions"].reshape(means.shape) ** -0.5
    low, high = means.mean(0).argsort()
    quantities = {"mu1": means[:, low], "mu2": means[:, high], "sigma1": sigma[:, low], "sigma2": sigma[:, high]}
    return quantities | {"theta": weights[:, low]}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_published_posterior(method):
    fit = ppvae.fit(BayesianGMM(2, covariance="diag"), DATA, method, init=PRIORS)
    assert fit.converged, fit.status
    for name, drawn in published(fit).items():
        assert abs(drawn.mean() - GOLD_MEAN[name]) < 0.3 * GOLD_SD[name], name
        assert drawn.std() == pytest.approx(GOLD_SD[name], rel=0.2), name


def test_full_and_diagonal_precisions_are_one_model_in_one_dimension():
    """A Wishart of one dimension is a Gamma: df / 2 its shape, 1 / (2 scale) its rate."""
    full = ppvae.fit(BayesianGMM(2), DATA, init=PRIORS | {"precision_df": 3.0, "precision_scale": [[0.5]]})
    diag = ppvae.fit(BayesianGMM(2, "diag"), DATA, init=PRIORS | {"precision_shape": [1.5], "precision_rate": [1.0]})
    assert full.method == ppvae.CAVI()
    assert full.history.elbo.iloc[-1] == pytest.approx(diag.history.elbo.iloc[-1], abs=1e-9)
    for name in ("weights", "means"):
        assert np.allclose(full.shared_draws(200)[name].mean(0), diag.shared_draws(200)[name].mean(0), atol=1e-6)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("data", ["faithful", "airquality"])
def test_the_laws_hold(covariance, data):
    rows = ppvae.load_data(data)
    verdicts = ppvae.laws.check(BayesianGMM(2, covariance), rows, only=[2, 5, 7, 8, 10])
    assert (verdicts.table.verdict == "holds").all(), verdicts.table.to_string()


def spread_forgotten(bound):
    """The factors' own spread left out: q's moments read as if each were a point."""

    def mean_field(self, theta, moments, batch):
        means = {"mean": moments["means"]["mean"], "covariance": 0 * moments["means"]["covariance"]}
        return bound(self, theta, {**moments, "means": means}, batch)

    return mean_field


def constant_lost(bound):
    return lambda self, theta, moments, batch: bound(self, theta, moments, batch) + 0.5


def precision_halved(bound):
    def mean_field(self, theta, moments, batch):
        halved = {"value": moments["precisions"]["value"] / 2, "log": moments["precisions"]["log"]}
        return bound(self, theta, {**moments, "precisions": halved}, batch)

    return mean_field


def mask_dropped(bound):
    return lambda self, theta, moments, batch: bound(self, theta, moments, replace(batch, observed=torch.ones_like(batch.observed)))


@pytest.mark.parametrize(
    ("mistake", "data", "covariance"),
    [
        (spread_forgotten, "faithful", "full"),
        (constant_lost, "faithful", "full"),
        (precision_halved, "faithful", "diag"),
        (mask_dropped, "airquality", "diag"),
    ],
)
def test_a_wrong_bound_fails_law_10(mistake, data, covariance):
    exact = type("Wrong", (BayesianGMM.exact,), {"mean_field": mistake(BayesianGMM.exact.mean_field)})
    wrong = type("BayesianGMM", (BayesianGMM,), {"exact": exact})
    assert ppvae.laws.check(wrong(2, covariance), ppvae.load_data(data), only=[10])[10] == "fails"


@pytest.mark.parametrize(
    ("kind", "law"), [(twins.unscaled(BayesianGMM), 2), (twins.maskless(BayesianGMM), 8)], ids=["forgotten N/B", "mask dropped"]
)
def test_a_wrong_story_fails_its_law(kind, law):
    assert ppvae.laws.check(kind(2, "diag"), ppvae.load_data("faithful"), only=[law])[law] == "fails"


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_em_is_cavi_with_points_under_flat_priors(covariance):
    """With mass on the factors' modes and priors that weigh nothing, CAVI's end is EM's: the same likelihood, the same parameters."""
    data = ppvae.load_data("faithful")
    flat = {"concentration": [1.0, 1.0], "mean_scale": [1e8, 1e8]}
    if covariance == "diag":
        flat |= {"precision_shape": [1.0, 1.0], "precision_rate": [1e-9, 1e-9]}
    else:  # the mode of a Wishart posterior is (df - D - 1) scale, so df = D + 1 leaves the rows' own count
        flat |= {"precision_df": 3.0, "precision_scale": (1e9 * np.eye(2)).tolist()}
    points = ppvae.fit(BayesianGMM(2, covariance), data, ppvae.CAVI(point=True), init=flat)
    em = ppvae.fit(GMM(2, covariance), data, ppvae.EM())
    assert points.converged
    assert points.log_likelihood(data).mean() == pytest.approx(float(em.log_likelihood(data).mean()), abs=1e-7)
    assert np.allclose(points.params["means"], em.params["means"], rtol=1e-3)
    assert np.allclose(points.params["weights"], em.params["weights"], rtol=1e-3)


@pytest.mark.parametrize("method", [ppvae.CAVI(), ppvae.CAVI(max_sweeps=3)], ids=lambda m: m.describe())
@pytest.mark.parametrize(("covariance", "holes"), [("full", 0.0), ("diag", 0.0), ("full", 0.2)])
def test_the_history_and_the_fit_speak_of_one_bound(method, covariance, holes):
    whole = ppvae.load_data("faithful")
    data = whole.with_holes(holes) if holes else whole
    fit = ppvae.fit(BayesianGMM(2, covariance), data, method)
    bound = fit.elbo(data)
    assert bound.exact
    assert fit.history.elbo.iloc[-1] == pytest.approx(bound.mean(), rel=1e-12)
    assert fit.history.step.tolist() == list(range(fit.steps + 1))
    assert fit.elbo(data.take(range(5))).values == pytest.approx(bound[:5].values, rel=1e-12)
    assert fit.converged == (method == ppvae.CAVI())


def test_the_bound_is_the_one_of_its_definition():
    """Of one component it is E_q log p(x | mean, precision) - KL(q || prior), here over draws; evidence less bound is the divergence."""
    data = ppvae.load_data("faithful").take(range(40))
    fit = ppvae.fit(BayesianGMM(1, "diag"), data)
    torch.manual_seed(0)
    m, p = fit.guide.factors["means"], fit.guide.factors["precisions"]
    means = dist.Normal(m.loc[0], m.covariance[0].diagonal().sqrt()).sample((20_000, 1))
    precisions = dist.Gamma(p.concentration[0], p.rate[0]).sample((20_000, 1))
    rows = dist.Normal(means, precisions.rsqrt()).log_prob(data.x).sum(-1)  # (S, N)
    priors = dist.Normal(m.prior_loc[0], m.prior_covariance[0].diagonal().sqrt()), dist.Gamma(p.prior_concentration[0], p.prior_rate[0])
    posteriors = dist.Normal(m.loc[0], m.covariance[0].diagonal().sqrt()), dist.Gamma(p.concentration[0], p.rate[0])
    divergence = sum(float(dist.kl_divergence(q, prior).sum()) for q, prior in zip(posteriors, priors, strict=True))
    known, error = float(rows.sum(1).mean()) - divergence, float(rows.sum(1).std()) / 20_000**0.5
    assert fit.elbo(data).sum() == pytest.approx(known, abs=5 * error)
    gap = fit.kl(data)
    weights = rows.sum(1) + sum(prior.log_prob(v[:, 0]).sum(-1) for prior, v in zip(priors, (means, precisions), strict=True))
    weights = weights - sum(q.log_prob(v[:, 0]).sum(-1) for q, v in zip(posteriors, (means, precisions), strict=True))
    evidence = float(weights.logsumexp(0) - np.log(20_000))
    assert gap.sum() == pytest.approx(evidence - fit.elbo(data).sum(), abs=5 * gap.mean_standard_error * 40 + 0.01)
    assert 0 < gap.sum() < 0.5


def test_points_have_a_likelihood_and_no_bound():
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(BayesianGMM(2), data, ppvae.CAVI(point=True))
    assert fit.history.elbo.isna().all()
    assert np.isnan(fit.elbo(data)).all()
    found, p = fit.log_likelihood(data), fit.params
    each = [
        dist.MultivariateNormal(torch.as_tensor(m), precision_matrix=torch.as_tensor(q))
        for m, q in zip(p["means"], p["precisions"], strict=True)
    ]
    known = torch.stack([np.log(w) + one.log_prob(data.x) for w, one in zip(p["weights"], each, strict=True)]).logsumexp(0)
    assert found.exact
    assert found.values == pytest.approx(known.numpy(), rel=1e-9)
    assert fit.history.log_likelihood.iloc[-1] == pytest.approx(float(known.mean()), rel=1e-9)


def begun(start):
    """A mixture whose shared latents begin where `start` of its own start says."""
    return type("Begun", (BayesianGMM,), {"shared_start": lambda self, *given: start(BayesianGMM.shared_start(self, *given))})(2)


def test_cavi_begins_where_the_model_says_and_else_at_the_priors_medians():
    data = ppvae.load_data("faithful")
    usual = ppvae.fit(BayesianGMM(2), data)
    for start in (dict, lambda own: {}, lambda own: {"means": own["means"]}, lambda own: {"weights": own["weights"]}):
        fit = ppvae.fit(begun(start), data, ppvae.CAVI())
        assert fit.converged, fit.status
        assert fit.history.elbo.iloc[-1] == pytest.approx(usual.history.elbo.iloc[-1], abs=1e-6)
    far = ppvae.fit(begun(lambda own: own | {"means": own["means"].flip(0)}), data, ppvae.CAVI())
    assert far.params["means"][0] == pytest.approx(usual.params["means"][1], rel=1e-2)
    with pytest.raises(ValueError, match="unknown shared latent in shared_start 'mean': did you mean 'means'"):
        ppvae.fit(begun(lambda own: {"mean": own["means"]}), data, ppvae.CAVI())
    with pytest.raises(ValueError, match=r"shared_start gives 'means' the shape \(2,\), but the story \(2, 2\)"):
        ppvae.fit(begun(lambda own: {"means": own["means"][0]}), data, ppvae.SVI(steps=1))
    with pytest.raises(ValueError, match="shared_start gives 'precisions' a value that it cannot have"):
        ppvae.fit(begun(lambda own: {"precisions": -own["precisions"]}), data, ppvae.CAVI())


def test_svi_comes_close_to_cavi_and_bounds_the_evidence_from_nearer():
    """SVI's story sums the components out given the parameters, CAVI's bound takes them as independent of those."""
    data = ppvae.load_data("faithful")
    found = ppvae.compare(BayesianGMM(2), data, [ppvae.CAVI(), ppvae.SVI(steps=1500)]).table
    assert found.method.tolist() == ["cavi", "svi"]
    assert abs(found.elbo[0] - found.elbo[1]) < 0.01
    assert (found.kl < 0.02).all()
    assert (found.kl > -4 * found.kl_se).all()


def test_holes():
    """A fifth of the entries gone: the means stay within a few of their own standard errors, and the holes are filled in."""
    whole = ppvae.load_data("faithful")
    data = whole.with_holes(0.2)
    fit = ppvae.fit(BayesianGMM(2), data)
    full = ppvae.fit(BayesianGMM(2), whole)
    spread = full.shared_draws()["means"].std(0)
    assert (np.abs(fit.params["means"] - full.params["means"]) < 4 * spread).all()
    point = ppvae.fit(GMM(2), data)
    hidden = (whole.observed & ~data.observed).numpy()
    errors = [np.sqrt((((f.impute(data) - whole.numpy()) / whole.scale.numpy())[hidden] ** 2).mean()) for f in (fit, point)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)  # 272 rows say nearly all that there is to say
    assert fit.impute(data, draws=3).shape == (3, *whole.x.shape)


def test_components_of_a_row():
    fit = ppvae.fit(BayesianGMM(2), DATA, init=PRIORS)
    posterior = fit.posterior(DATA)
    assert posterior.component == "component"
    assert torch.allclose(posterior.log_weights.logsumexp(-1), torch.zeros(1, dtype=torch.float64), atol=1e-12)
    assert set(fit.predict(DATA)) == {0, 1}
    few = ppvae.Data(DATA.numpy()[::200])  # a wide posterior
    fit = ppvae.fit(BayesianGMM(2, "diag"), few, init=PRIORS)
    drawn = {name: torch.as_tensor(value) for name, value in fit.shared_draws(200).items()}
    each = torch.distributions.Normal(drawn["means"].squeeze(-1), drawn["precisions"].squeeze(-1).rsqrt())
    given = (each.log_prob(few.x.unsqueeze(-1)) + drawn["weights"].log()).softmax(-1)  # (N, S, K)
    assert torch.allclose(fit.posterior(few).log_weights.exp(), given.mean(1))


def test_chains_are_brought_into_one_order():
    """Two chains that hold the components the other way round, and differ in weights, means and precisions together."""
    start = {
        "weights": torch.tensor([0.3, 0.7]),
        "means": torch.tensor([[0.0, 0.0], [5.0, 1.0]]),
        "precisions": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    }
    noise = 0.01 * torch.randn(2, 50, 2, 2, generator=torch.Generator().manual_seed(0))
    chains = {"weights": start["weights"].expand(2, 50, 2), "means": start["means"] + noise, "precisions": start["precisions"] + noise}
    turned = {name: torch.stack([value[0], value[1].flip(1)]) for name, value in chains.items()}
    found = relabelled(BayesianGMM(2, "diag"), turned, start)
    assert all(torch.equal(found[name], chains[name]) for name in chains)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_order_of_components_is_no_matter_of_units(unit):
    """The weights tell the components apart, the means hardly do: their numbers must not outvote the weights' by being large."""
    generator = torch.Generator().manual_seed(0)
    start = {"weights": torch.tensor([0.1, 0.9]), "means": unit * torch.tensor([[0.0, 0.0], [0.1, 0.1]])}
    chains = {"weights": start["weights"].expand(2, 50, 2), "means": unit * torch.randn(2, 50, 2, 2, generator=generator)}
    turned = {name: torch.stack([value[0], value[1].flip(1)]) for name, value in chains.items()}
    found = relabelled(BayesianGMM(2, "diag"), turned, start)
    assert all(torch.equal(found[name], chains[name]) for name in chains)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [(GMM(2), "gmm gives no mean-field bound"), (ppvae.models.VAE(likelihood="gaussian"), "vae gives no mean-field bound")],
)
def test_cavi_says_where_it_does_not_apply(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.fit(model, ppvae.load_data("iris"), ppvae.CAVI())


def test_priors_are_options():
    """Known by what they give: a prior of many rows holds the spread where it was, one of small means holds them together."""
    iris = ppvae.load_data("iris")
    diag = ppvae.load_model("bayesian_gmm", covariance="diag", concentration="0.5", mean_spread="3", prior_rows="10")
    theta = diag.init(iris, torch.Generator())
    assert theta.concentration.tolist() == pytest.approx([0.5, 0.5])
    assert torch.allclose(theta.mean_scale, 3 * iris.scale)
    default = BayesianGMM(2, "diag").init(iris, torch.Generator())
    assert torch.allclose(theta.precision_shape, 5 * default.precision_shape)
    assert torch.allclose(theta.precision_shape / theta.precision_rate, default.precision_shape / default.precision_rate)
    full = [BayesianGMM(2, prior_rows=rows).init(iris, torch.Generator()) for rows in (None, 5, 40)]
    assert [float(t.precision_df) for t in full] == pytest.approx([5, 5, 40])
    assert all(torch.allclose(t.precision_df * t.precision_scale, 5 * full[0].precision_scale) for t in full)
    with pytest.raises(ValueError, match="prior_rows=3 must be above 3, the number of features less 1"):
        ppvae.fit(BayesianGMM(2, prior_rows=3), iris)


@pytest.mark.parametrize(
    "bad", [{"n_components": 0}, {"covariance": "round"}, {"concentration": 0}, {"mean_spread": float("nan")}, {"prior_rows": -1}]
)
def test_bad_options(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BayesianGMM(**bad)


@pytest.mark.parametrize("bad", [{"max_sweeps": 0}, {"tolerance": -1.0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match="must be at least"):
        ppvae.CAVI(**bad)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("covariance", "method"),
    [("full", ppvae.CAVI()), ("diag", ppvae.CAVI()), ("diag", ppvae.NUTS(draws=40, warmup=60, chains=1))],
    ids=["full", "diag", "nuts"],
)
def test_a_single_component(covariance, method):
    """One value of k alone: its weight is 1, there is nothing to relabel, and every row is drawn in the place of its own.

    Beside a prior worth a few of 80 rows the posterior means are those of the data, to a fifth of a standard deviation.
    """
    x = np.random.default_rng(7).normal([1.0, -2.0], [1.0, 3.0], size=(80, 2))
    fit = ppvae.fit(BayesianGMM(n_components=1, covariance=covariance), x, method)
    assert fit.params["weights"] == pytest.approx([1.0], abs=1e-12)
    assert np.abs((fit.params["means"][0] - x.mean(0)) / x.std(0)).max() < 0.2
    for rows in ("same", "new"):
        drawn = fit.replicate(x, draws=5, rows=rows)
        assert drawn.shape == (5, 80, 2)
        assert np.abs((drawn.mean((0, 1)) - x.mean(0)) / x.std(0)).max() < 0.4  # of 400 draws of rows and 5 of the means
    assert fit.to_arviz(x, draws=5)["posterior_predictive"]["x"].shape == (1, 5, 80, 2)
    assert fit.predict(x).tolist() == [0] * 80


def test_one_row_is_too_few_for_one_component():
    with pytest.raises(ValueError, match=r"needs more rows than one.*: give more rows"):
        ppvae.fit(BayesianGMM(1), [[1.0, 2.0]])
