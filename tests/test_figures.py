"""What figures draw: bounds that are bounds, divergences by two ways, codes that move where they should."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.lines import Line2D
from scipy import integrate

import ppvae
from ppvae import report
from ppvae.criticism.bounds import between, bound, climb, independent, moving, shifted, under, widened
from ppvae.exact import ExactGuide, kl
from ppvae.inference.fit import start
from ppvae.models import CVAE, GMM, PPCA, Die, FactorAnalysis, Gaussian, MixtureFA
from ppvae.program.joint import elbo_rows
from ppvae.report.figures import images, style, walk

TOUCHING = 1e-9  # nats per row: float64 rounding of sums of a few hundred terms of size ten, with room
SHORT = ppvae.SVI(steps=5, compile=False)


@pytest.fixture(scope="module")
def faithful():
    return ppvae.load_data("faithful")


@pytest.fixture(scope="module")
def iris():
    return ppvae.load_data("iris")


@pytest.fixture(scope="module")
def digits():
    return ppvae.load_data("digits", rescale=True).take(np.arange(120))


@pytest.fixture(scope="module")
def vae(digits):
    return ppvae.fit(ppvae.models.VAE(n_latents=3, hidden=(8,)), digits, SHORT)


@pytest.fixture(scope="module")
def ascent(faithful):
    fit = ppvae.fit(GMM(2, covariance="diag"), faithful)
    curve = moving(fit.theta, "means", (0, 1))
    return fit, curve, climb(fit.model, faithful, curve, start=75.0, span=(45.0, 85.0), steps=3, points=25)


def parts_of(model, data):
    """A guide made at the start of a fit, theta after a few steps of EM, and the exact forms."""
    theta = start(model, data, 0)
    fit = ppvae.fit(model, data, ppvae.EM(max_steps=4))
    return fit, fit.exact.posterior(theta, data.batch()), theta


@pytest.mark.parametrize(
    "model",
    [GMM(3), GMM(2, component="guided"), PPCA(2), FactorAnalysis(1), MixtureFA(n_components=2, n_latents=1)],
    ids=lambda m: m.describe(),
)
@pytest.mark.parametrize("holes", [False, True])
def test_a_bound_is_the_log_likelihood_less_the_divergence(model, holes, iris):
    data = iris.with_holes(0.1) if holes else iris
    fit, q, theta = parts_of(model, data)
    batch = data.batch()
    with torch.no_grad():
        there = bound(fit.program, q, batch)
        assert torch.allclose(there, fit.exact.log_marginal(fit.theta, batch) - kl(q, fit.exact.posterior(fit.theta, batch)), atol=1e-8)
        touching = bound(partial(model.model, theta), q, batch)
        assert torch.allclose(touching, fit.exact.log_marginal(theta, batch), atol=1e-8)


def test_a_bound_is_the_elbo_with_the_guide_frozen(iris):
    """Pyro's own estimate of it, within four standard errors."""
    fit, q, theta = parts_of(PPCA(2), iris)
    batch, draws = iris.batch(), 400
    with torch.no_grad():
        torch.manual_seed(0)
        sampled = elbo_rows(fit.program, ExactGuide(fit.exact, theta), batch, draws).mean(1)
        exact = bound(fit.program, q, batch).mean()
    assert abs(sampled.mean() - exact) < 4 * sampled.std() / draws**0.5


def test_the_climb_touches_and_never_crosses(ascent):
    _, _, found = ascent
    line = found.table["log_likelihood"]
    for name, mark in found.marks.iterrows():
        assert (found.table[name] <= line + TOUCHING).all()
        assert (line - found.table[name]).max() > 0.01, "a bound that is nowhere below shows nothing"
        assert mark["height"] <= mark["log_likelihood"] + TOUCHING
        assert mark["height"] >= found.table[name].max() - TOUCHING
    at = found.marks["t"].to_numpy()
    assert np.array_equal(at[1:], found.marks["peak"].to_numpy()[:-1]), "each step starts where the last bound was highest"
    assert np.allclose(found.marks["bound"].to_numpy()[1:], found.marks["log_likelihood"].to_numpy()[:-1], atol=TOUCHING, rtol=0)
    assert (np.diff(found.marks["bound"]) > 0).all()


def test_a_step_of_the_climb_is_an_m_step(ascent, faithful):
    """With diagonal covariances a mean's M-step needs no other: the responsibility-weighted mean of the column."""
    fit, curve, found = ascent
    with torch.no_grad():
        r = fit.exact.posterior(curve(75.0), faithful.batch()).log_weights.exp()[:, 0]
    expected = float((r @ faithful.x[:, 1]) / r.sum())
    assert found.marks["peak"].iloc[0] == pytest.approx(expected, abs=1e-5)  # the top of a parabola is flat: sqrt of float64 rounding


def test_guides_from_best_to_worst(iris):
    fit = ppvae.fit(PPCA(2), iris, ppvae.EM())
    noise = float(fit.params["noise_variance"])
    found = under(fit.model, iris, moving(fit.theta, "noise_variance"), noise, (0.03, 0.1), points=7)
    exact, diagonal, wide, moved = found.marks["bound"]
    truth = fit.log_likelihood(iris).mean()
    assert exact == pytest.approx(truth, abs=TOUCHING)
    latents = 2
    assert moved == pytest.approx(truth - latents / 2, abs=1e-8), "a shift of one sd along each of L axes costs L / 2 nats"
    assert wide == pytest.approx(truth - latents * (3 / 2 - np.log(2)), abs=1e-8), "KL(N(0, 4) || N(0, 1)) for each latent"
    assert moved < diagonal < exact
    assert (found.table[list(found.marks.index)].le(found.table["log_likelihood"] + TOUCHING, axis=0)).all(axis=None)


def test_the_best_diagonal_guide_is_the_best(iris):
    fit = ppvae.fit(PPCA(2), iris, ppvae.EM())
    p = fit.exact.posterior(fit.theta, iris.batch())
    best = independent(p)
    loss = kl(best, p)
    for factor in (0.95, 1.05):
        assert (kl(widened(best, factor), p) > loss).all()
    assert (kl(shifted(best, 0.1), p) > loss).all()


def test_a_line_between_two_thetas_ends_at_them(faithful):
    model = GMM(2)
    ends = [start(model, faithful, seed) for seed in (0, 1)]
    curve = between(*ends)
    for t, theta in enumerate(ends):
        for name, value in curve(float(t)).values().items():
            assert torch.allclose(value, theta.values()[name])
    assert torch.linalg.eigvalsh(curve(0.5).values()["covariances"]).min() > 0


def test_a_curve_that_cannot_be_drawn_says_why(faithful, iris, digits, vae):
    fit = ppvae.fit(GMM(2), faithful)
    with pytest.raises(ValueError, match="mean"):
        moving(fit.theta, "mean", (0,))
    with pytest.raises(ValueError, match="outside the span"):
        climb(fit.model, faithful, moving(fit.theta, "means", (0, 0)), start=9.0, span=(1.0, 4.0), points=3)
    with pytest.raises(ValueError, match="no exact posterior"):
        climb(vae.model, digits, between(vae.theta, vae.theta), start=0.0, span=(0.0, 1.0), points=3)
    for model, data in ((Gaussian(), iris), (Die(6), np.arange(1, 7))):
        fitted = ppvae.fit(model, data)
        with pytest.raises(ValueError, match="no latents"):
            climb(model, data, between(fitted.theta, fitted.theta), start=0.0, span=(0.0, 1.0), points=3)


def test_the_figure_of_bounds_draws_the_table(ascent):
    _, _, found = ascent
    figure = report.bounds(found, "mean waiting time")
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == len(found.table)]
    assert np.array_equal(drawn, found.table.to_numpy().T)
    assert figure.axes[0].get_xlabel() == "mean waiting time"
    low, high = figure.axes[0].get_ylim()
    assert low < found.table["log_likelihood"].min()
    assert high > found.table["log_likelihood"].max()


def test_divergences_by_formula_by_quadrature_and_by_torch():
    axes = report.divergence(scale=3.0, apart=5.0).axes[1]
    normal = torch.distributions.Normal
    lines, discs = axes.lines[::2], axes.lines[1::2]
    for line, disc, turned in zip(lines, discs, (False, True), strict=True):
        d = torch.as_tensor(line.get_xdata())
        pair = normal(d, torch.ones_like(d)), normal(torch.zeros_like(d), 3.0)
        expected = torch.distributions.kl_divergence(*(pair[::-1] if turned else pair))
        assert np.allclose(line.get_ydata(), expected, atol=1e-12)
        assert np.allclose(disc.get_ydata(), np.interp(disc.get_xdata(), d, expected), atol=1e-9)
    p, q = (normal(torch.tensor(m, dtype=torch.float64), s) for m, s in ((0.0, 3.0), (5.0, 1.0)))

    def gap(z):
        z = torch.tensor(z, dtype=torch.float64)
        return float(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)))

    assert lines[0].get_ydata()[-1] == pytest.approx(integrate.quad(gap, -5, 15)[0], abs=1e-8)


def test_a_mosaic_keeps_each_picture_in_its_place():
    pictures = np.arange(5 * 2 * 3, dtype=float).reshape(5, 2, 3)
    _, (ax,) = style.panels(1, 1)
    images.mosaic(ax, pictures, 2, (0.0, 30.0))
    sheet = np.ma.filled(ax.get_images()[0].get_array().astype(float), np.nan)
    assert sheet.shape == (3 * 3 - 1, 2 * 4 - 1)
    assert np.array_equal(sheet[3:5, 4:7], pictures[3])
    assert np.isnan(sheet[6:, 4:]).all()
    assert np.isnan(sheet[2]).all()


def test_generated_pictures_stand_beside_the_data(vae, digits):
    figure = report.generated(vae, digits, 9)
    shown, expected, drawn = (np.ma.filled(ax.get_images()[0].get_array().astype(float), np.nan) for ax in figure.axes)
    assert np.array_equal(shown[:8, :8], digits.numpy()[0].reshape(8, 8))
    inside = ~np.isnan(drawn)
    assert set(np.unique(drawn[inside])) == {0.0, 1.0}, "a Bernoulli story draws pixels of black and white"
    assert expected[inside].min() > 0
    assert expected[inside].max() < 1
    with pytest.raises(ValueError, match="not images"):
        report.generated(vae, ppvae.load_data("iris"))


def test_a_conditional_model_generates_with_the_contexts_of_the_data(digits):
    data = ppvae.Data(digits.numpy(), context=pd.get_dummies(digits.labels), image_shape=(8, 8))
    fit = ppvae.fit(CVAE(n_latents=2, hidden=(8,)), data, SHORT)
    assert len(report.generated(fit, data, 4).axes) == 3
    lines = list(walk._lines(fit, data))
    assert [line.context.argmax() for line in lines] == list(range(10))
    assert isinstance(report.latent_walk(fit, data), style.Figure)


def test_a_walk_moves_one_latent_and_no_other(iris):
    fit = ppvae.fit(PPCA(2), iris)
    codes = fit.transform(iris)
    for j, line in enumerate(walk._lines(fit, iris)):
        assert line.along == j
        ends = np.percentile(codes[:, j], walk.ENDS)
        assert np.allclose(line.codes[[0, -1], j], ends)
        assert (np.delete(line.codes, j, 1) == np.delete(np.median(codes, 0), j)).all()
    profile = report.latent_walk(fit, iris).axes[0].lines[0]
    first = next(iter(walk._lines(fit, iris)))
    expected = (fit.decode(first.codes[:1])[0] - iris.mean.numpy()) / iris.scale.numpy()
    assert np.allclose(profile.get_xdata(), expected)


def test_a_walk_over_two_latents_is_a_grid(vae, digits):
    lines = list(walk._lines(vae, digits))
    assert len(lines) == walk.STEPS
    codes = np.stack([line.codes for line in lines])
    first, second = lines[0].along, lines[0].up
    assert (codes[:, 1:, first] > codes[:, :-1, first]).all(), "to the right"
    assert (codes[1:, :, second] < codes[:-1, :, second]).all(), "the highest line on top"
    kept = ({0, 1, 2} - {first, second}).pop()
    assert (codes[:, :, kept] == codes[0, 0, kept]).all()
    assert {first, second} == set(np.argsort(-vae.transform(digits).var(0))[:2])


def test_no_walk_without_codes(faithful):
    with pytest.raises(ValueError, match="no continuous latents"):
        report.latent_walk(ppvae.fit(GMM(2), faithful), faithful)


@pytest.mark.filterwarnings("error")
def test_names_from_outside_are_cut_and_no_mathematics():
    columns = [r"cost $\foo$", "$x^2$", "a name that goes on and on and on and on and on for ever", "b"]
    x = np.random.default_rng(0).normal(size=(40, 4))
    x[0, 0] = np.nan
    data = ppvae.Data(x, columns=columns, labels=[r"$\bar$", columns[2]] * 20)
    fit = ppvae.fit(PPCA(2), data)
    criticism = ppvae.check(fit, data, draws=20)
    drawn = [report.density(fit, data), report.latent_space(fit, data), report.latent_walk(fit, data), report.missingness(data)]
    drawn += [report.checks(criticism, limit=4), report.correlations(criticism), report.gaps(ppvae.compare(PPCA(2), data, ["em"]))]
    for figure in drawn:
        figure.draw_without_rendering()
        assert not figure.findobj(lambda artist: "on and on and" in getattr(artist, "get_text", str)())


def test_a_legend_is_no_wider_than_its_figure():
    figure, _ = style.panels(2, 2)
    style.legend(figure, [Line2D([], [], label=f"SVI(steps={i}, batch_size=20, learning_rate=0.01)") for i in range(5)])
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_a_figure_shows_itself_in_a_notebook():
    """By its own drawing: a notebook learns to show other figures only once pyplot is imported."""
    assert report.divergence()._repr_png_().startswith(b"\x89PNG")


def test_an_em_step_is_the_top_of_the_bound_on_the_line_to_it(faithful):
    model, init = GMM(2), {"means": np.array([[3.0, 60.0], [3.5, 75.0]])}
    old, new = (ppvae.fit(model, faithful, ppvae.EM(max_steps=k), init=init).theta for k in (2, 3))
    found = climb(model, faithful, between(old, new), start=0.0, span=(-1.0, 3.0), steps=1, points=21)
    assert found.marks["peak"].item() == pytest.approx(1.0, abs=1e-5)
