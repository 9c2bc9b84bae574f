"""Mistakes in a model of one's own, and values that no fit can use: one sentence each, before anything runs for long."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppvae
from ppvae import registry
from ppvae.inference.fit import start
from ppvae.models import GMM, PCA, PPCA, VAE, Autoencoder, BayesianGMM, FactorAnalysis, MixtureFA, MixturePPCA
from ppvae.program.graph import graph
from ppvae.program.joint import log_weights
from ppvae.program.story import check_story

FEW = [[1.0, 2.0], [2.0, np.nan], [3.0, 5.0], [np.nan, np.nan], [4.0, 4.0]]


@dataclass(frozen=True)
class Sound(ppvae.Model):
    """A Gaussian factor, with the mistake of each test put in its place."""

    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean, noise_scale=ppvae.Constrained(data.scale.mean(), constraints.positive))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.mean + z, theta.noise_scale).to_event(1), obs=batch.x)


class Misspelt(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scal).to_event(1), obs=batch.x)


class FeaturesAsRows(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scale), obs=batch.x)


class Unobserved(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scale).to_event(1))


class Unlike(Sound):
    def model(self, theta, batch):
        with batch.rows:
            loc = theta.mean + torch.ones(batch.size, 99, dtype=torch.float64)
            pyro.sample("x", dist.Normal(loc, theta.noise_scale).to_event(1), obs=batch.x)


class Heedless(Sound):
    """Entries that are missing are scored as zeros."""


class Heedful(Sound):
    """Masked, so that what is missing says nothing; and moved by the context where there is one."""

    def model(self, theta, batch):
        shift = 0.0 if batch.context is None else batch.context[:, :1]
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            x = dist.Normal(theta.mean + z + shift, theta.noise_scale).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)


class Bare(Sound):
    def init(self, data, generator):
        return {"mean": data.mean}


class Nowhere(Sound):
    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean * float("nan"), noise_scale=data.scale.mean())


class Negative(Sound):
    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean, noise_scale=ppvae.Constrained(-data.scale.mean(), constraints.positive))


class OwnPlate(Sound):
    def model(self, theta, batch):
        with pyro.plate("rows", batch.x.shape[0]):
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scale).to_event(1), obs=batch.x)


class Untrained(Sound):
    def model(self, theta, batch):
        with batch.rows:
            shift = pyro.param("w", torch.zeros(4, dtype=torch.float64))
            pyro.sample("x", dist.Normal(theta.mean + shift, theta.noise_scale).to_event(1), obs=batch.x)


class Counts(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Poisson(theta.mean).mask(batch.observed).to_event(1), obs=batch.x)


class Widthless(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, -theta.noise_scale).to_event(1), obs=batch.x)


class Plated(Sound):
    def model(self, theta, batch):
        with batch.rows, pyro.plate("features", batch.x.shape[1], dim=-2):
            pyro.sample("x", dist.Normal(theta.mean.unsqueeze(-1), theta.noise_scale), obs=batch.x.mT)


class PlatedLatent(Sound):
    def model(self, theta, batch):
        rows = batch.rows
        with pyro.plate("features", batch.x.shape[1], dim=-2), rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(()), 1.0))
        with rows:
            pyro.sample("x", dist.Normal(theta.mean + z.mT, theta.noise_scale).to_event(1), obs=batch.x)


class Subsampled(Sound):
    def model(self, theta, batch):
        with batch.rows:
            for i in pyro.plate("features", batch.x.shape[1], subsample_size=2):
                pyro.sample(f"x{i}", dist.Normal(theta.mean[i], theta.noise_scale), obs=batch.x[:, i])


class Crowded(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean.unsqueeze(-1), theta.noise_scale), obs=batch.x.mT)


class ObsMask(Sound):
    def model(self, theta, batch):
        with batch.rows:
            x = dist.Normal(theta.mean, theta.noise_scale).to_event(1)
            pyro.sample("x", x, obs=batch.x, obs_mask=batch.observed.all(-1))


class Certain(Sound):
    def model(self, theta, batch):
        with batch.rows:
            m = pyro.sample("m", dist.Delta(theta.mean).to_event(1))
            pyro.sample("x", dist.Normal(m, theta.noise_scale).to_event(1), obs=batch.x)


class TwicePlated(Sound):
    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean + z, theta.noise_scale).to_event(1), obs=batch.x)


class OnlyNamed(Sound):
    def model(self, theta, batch):
        pyro.deterministic("twice", 2 * theta.mean)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Plated, r"'x' lies in the plate 'features' beside the rows: take that plate away and add \.to_event\(1\) to the distribution"),
        (PlatedLatent, "'z' lies in the plate 'features' beside the rows"),
        (Subsampled, "'x[0-3]' lies in the plate 'features' beside the rows: .* or write a plain loop"),
        (Crowded, r"a row has more than one log probability of 'x': add \.to_event\(1\) to its distribution"),
        (ObsMask, r"obs_mask makes latents of what x misses: leave it out, and write \.mask\(batch\.observed\) after the distribution"),
        (Certain, r"the latent 'm' is a Delta, .*: write pyro\.deterministic\('m', \.\.\.\) in its place"),
        (TwicePlated, r"story fails .*'rows' \(put all sites under one `with batch\.rows:`, or keep the plate: rows = batch\.rows\)"),
        (OnlyNamed, "observes nothing: add pyro.sample"),
        (OwnPlate, "the story observes x outside the plate over rows: put it under `with batch.rows:`"),
        (Untrained, r"a pyro.param 'w', which no method trains: give it in init, as Parameters\(w=\.\.\.\), and read theta.w"),
        (Counts, "counts: x holds 5.1, but Poisson takes whole numbers from 0 up: use a distribution of such values$"),
        (
            Widthless,
            r"story fails at line .*-theta.noise_scale.* parameter scale .* to satisfy the constraint GreaterThan\(lower_bound=0.0\)$",
        ),
        (Misspelt, "story fails at line .*noise_scal.*did you mean 'noise_scale'"),
        (FeaturesAsRows, r"add \.to_event\(1\)"),
        (Unobserved, "observes nothing: add pyro.sample"),
        (Unlike, "story fails at line .*torch.ones"),
        (Bare, "init must return ppvae.Parameters, not dict"),
        (Nowhere, "parameter 'mean' is not finite"),
        (Negative, "parameter 'noise_scale' is not finite, or outside its constraint"),
    ],
)
def test_a_model_says_where_it_is_wrong(model, words):
    iris = ppvae.load_data("iris")
    for read in (lambda: ppvae.fit(model(), iris, ppvae.SVI(steps=2)), lambda: graph(model(), iris)):
        with pytest.raises(ValueError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


class Named(Sound):
    """Deterministic sites in and outside the rows, and the plate of rows entered twice."""

    def model(self, theta, batch):
        rows, mean = batch.rows, pyro.deterministic("m", theta.mean)
        with rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            loc = pyro.deterministic("loc", mean + z)
        with rows:
            pyro.sample("x", dist.Normal(loc, theta.noise_scale).to_event(1), obs=batch.x)


def test_deterministic_sites_change_nothing():
    iris = ppvae.load_data("iris")
    of, like = (ppvae.fit(model(), iris, ppvae.SVI(steps=2, compile=False)) for model in (Named, Sound))
    np.testing.assert_allclose(of.log_likelihood(iris), like.log_likelihood(iris), rtol=1e-12)
    np.testing.assert_allclose(of.elbo(iris), like.elbo(iris), rtol=1e-12)


class Coin(Sound):
    """A component of two, marked for enumeration in one of the ways that Pyro knows, or in none."""

    mark = "parallel"

    def model(self, theta, batch):
        with batch.rows:
            k = pyro.sample("k", dist.Categorical(batch.x.new_tensor([0.3, 0.7])), infer={"enumerate": self.mark} if self.mark else {})
            x = dist.Normal(theta.mean + 2.0 * k.unsqueeze(-1), theta.noise_scale).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)


class Unmarked(Coin):
    mark = None


class OneByOne(Coin):
    mark = "sequential"


@pytest.mark.parametrize("model", [Unmarked, OneByOne])
def test_a_choice_is_summed_out_however_it_is_marked(model):
    data = ppvae.Data(FEW)
    fit, marked = (ppvae.fit(of(), data, ppvae.SVI(steps=2, learning_rate=1e-12, compile=False)) for of in (model, Coin))
    np.testing.assert_allclose(fit.log_likelihood(data), marked.log_likelihood(data), rtol=1e-9)
    with torch.no_grad():  # where no closed form is found: importance weights of a guide that would enumerate the choice itself
        sampled = log_weights(fit.program, fit.guide, data.batch(), 3)
    np.testing.assert_allclose(sampled.numpy(), np.tile(marked.log_likelihood(data), (3, 1)), atol=1e-9)
    assert (fit.kl(data) >= 0).all()


class OneHot(Coin):
    def model(self, theta, batch):
        with batch.rows:
            k = pyro.sample("k", dist.OneHotCategorical(batch.x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            x = dist.Normal(theta.mean + 2.0 * k[..., 1:], theta.noise_scale).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)


def test_a_choice_as_a_vector_is_summed_out_too():
    fit, number = (ppvae.fit(of(), FEW, ppvae.SVI(steps=2, learning_rate=1e-12, compile=False)) for of in (OneHot, Coin))
    np.testing.assert_allclose(fit.log_likelihood(FEW, draws=30), number.log_likelihood(FEW), rtol=1e-9)
    assert fit.impute(FEW, draws=2).shape == (2, 5, 2)


def of_rows(place):
    def guide(batch):
        with place(batch):
            pyro.sample("z", dist.Normal(batch.x[:, :1], 1.0).to_event(1))

    return guide


def whole(batch):
    pyro.sample("z", dist.Normal(batch.x[:, :1], 1.0).to_event(2))


def crowded(batch):
    with batch.rows:
        pyro.sample("z", dist.Normal(batch.x[:, :1], 1.0))


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (whole, "the guide samples 'z' outside the plate over rows, unlike the story: put it under `with batch.rows:`"),
        (of_rows(lambda batch: pyro.plate("rows", batch.size)), "the guide samples 'z' outside the plate over rows"),
        (of_rows(lambda batch: pyro.plate("data", batch.size)), "the guide samples 'z' outside the plate over rows"),
        (crowded, r"a row has more than one log probability of 'z': add \.to_event\(1\)"),
    ],
    ids=["none", "same name", "other name", "no event"],
)
def test_a_guide_samples_where_the_story_does(guide, words):
    with pytest.raises(ValueError, match=words):
        ppvae.fit(Sound(), ppvae.load_data("iris"), ppvae.SVI(steps=2), guide=guide)
    assert ppvae.fit(Sound(), ppvae.load_data("iris"), ppvae.SVI(steps=2, compile=False), guide=of_rows(lambda batch: batch.rows))


class Rooted(Sound):
    """Where a mean falls below 0 it has none, and no closed form ever."""

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.mean.sqrt() + z.tanh(), theta.noise_scale).mask(batch.observed).to_event(1), obs=batch.x)


def test_scores_that_fail_say_so_in_a_sentence():
    data = ppvae.Data(FEW)
    fit = ppvae.fit(Rooted(), data, ppvae.SVI(steps=1, compile=False))
    fit.theta.assign({"mean": torch.tensor([-1.0, -1.0])})
    words = r"fails at these draws, .*parameter loc .* constraint Real\(\): where a fit stopped, do as its status says$"
    for score in (fit.log_likelihood, fit.elbo):
        with pytest.raises(ValueError, match=words) as caught:
            score(data)
        assert "\n" not in str(caught.value)


def test_the_laws_need_a_story_that_runs():
    for model, words in (
        (Misspelt, "story fails at line"),
        (Plated, "lies in the plate"),
        (Unobserved, "observes nothing"),
        (Untrained, "has a pyro.param 'w'"),
    ):
        with pytest.raises(ValueError, match=words):
            ppvae.laws.check(model(), ppvae.load_data("iris"))
    assert ppvae.laws.check(OwnPlate(), ppvae.load_data("iris"), only=[2])[2] == "fails"  # a wrong story that runs has its verdicts


def test_the_sound_model_fits():
    fit = ppvae.fit(Sound(), ppvae.load_data("iris"), ppvae.SVI(steps=2))
    assert np.isfinite(fit.log_likelihood(ppvae.load_data("iris"))).all()


def test_a_story_that_overlooks_holes_is_refused():
    with pytest.raises(ValueError, match=r"heedless: the story reads entries that are missing: .*\.mask\(batch.observed\)"):
        ppvae.fit(Heedless(), FEW, ppvae.SVI(steps=2))
    assert ppvae.fit(Heedful(), FEW, ppvae.SVI(steps=2, compile=False)).steps == 2


def test_a_context_that_a_story_does_not_read_is_refused():
    data = ppvae.Data(np.arange(8.0).reshape(4, 2) ** 2, context=[0, 1, 0, 1])
    for model in (GMM(1), PPCA(1), Heedless()):
        with pytest.raises(ValueError, match="the story does not read the context of the data: leave it out, or"):
            ppvae.fit(model, data)
    assert ppvae.fit(Heedful(), data, ppvae.SVI(steps=2, compile=False)).trained_on.n_context == 1


@dataclass(frozen=True)
class Regression(ppvae.Model):
    """On the context, which it takes for granted in its story, or in its start too."""

    counts: bool = False

    def init(self, data, generator):
        width = data.context.shape[1] if self.counts else 1
        return ppvae.Parameters(slope=torch.zeros(width, data.n_features, dtype=data.dtype), mean=data.mean)

    def model(self, theta, batch):
        with batch.rows:
            loc = theta.mean + batch.context @ theta.slope
            pyro.sample("x", dist.Normal(loc, 1.0).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize(("counts", "part"), [(False, "the story"), (True, "init")])
def test_a_context_that_the_data_lack_is_said_in_one_sentence(counts, part):
    said = rf"regression: {part} reads the context of the data at line \d+, `.*context.*`, and they have none: give Data\(x, context"
    with pytest.raises(ValueError, match=said):
        ppvae.fit(Regression(counts), np.eye(4))


@pytest.mark.parametrize("entry", registry.models().values(), ids=lambda entry: entry.class_name)
@pytest.mark.parametrize("filled", [1.0, 0.0])
def test_the_models_heed_holes_and_only_their_own_context(entry, filled):
    """Also where a row holds nothing, or nothing but zeros."""
    model, rows = entry.load()(), np.full((8, 6), filled)
    rows[4:] = [np.eye(6)[i] for i in range(4)]
    rows[[0, 1, 1], [0, 2, 3]] = rows[2] = np.nan
    data = ppvae.Data(rows, context=np.arange(8.0) if entry.class_name == "CVAE" else None)
    check_story(model, start(model, data, 0), data)


@pytest.mark.parametrize(
    ("change", "dtype", "words"),
    [
        (lambda x: x + 1e12, "float64", "subtract its mean"),
        (lambda x: x * 1e200, "float64", "beyond float64's range: rescale it"),
        (lambda x: x * 1e-170, "float64", "beyond float64's range: rescale it"),
        (lambda x: x * [1, 1, 1, 1e-300], "float64", "petal width .* is beyond float64's range"),
        (lambda x: x * 1e30, "float32", "beyond float32's range: use dtype='float64', or rescale it"),
        (lambda x: x * 1e-30, "float32", "beyond float32's range: use dtype='float64', or rescale it"),
    ],
)
def test_columns_beyond_a_type(change, dtype, words):
    iris = ppvae.load_data("iris")
    with pytest.raises(ValueError, match=words):
        ppvae.fit(GMM(2), ppvae.Data(change(iris.numpy()), columns=iris.columns), dtype=dtype)


READERS = {
    "log_likelihood": lambda fit, rows: fit.log_likelihood(rows),
    "elbo": lambda fit, rows: fit.elbo(rows),
    "kl": lambda fit, rows: fit.kl(rows),
    "posterior": lambda fit, rows: fit.posterior(rows),
    "predict": lambda fit, rows: fit.predict(rows),
    "transform": lambda fit, rows: fit.transform(rows),
    "bic": lambda fit, rows: fit.bic(rows),
    "impute": lambda fit, rows: fit.impute(rows),
    "draws": lambda fit, rows: fit.impute(rows, draws=3),
    "replicate": lambda fit, rows: fit.replicate(rows, draws=3),
    "to_arviz": lambda fit, rows: fit.to_arviz(rows, draws=3),
    "check": lambda fit, rows: ppvae.check(fit, rows, draws=20),
}


@pytest.fixture(scope="module")
def two_fits():
    """A mixture in float32 whose columns have spreads of about 1 and of 1e-8, and one in float64."""
    iris = ppvae.load_data("iris").numpy()[:, :2]
    return {dtype: ppvae.fit(GMM(2), iris * [1, 1e-8], ppvae.EM(max_steps=3), dtype=dtype) for dtype in ("float32", "float64")}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("row", "dtype"), [([1e20, np.nan], "float32"), ([5.0, -1e6], "float32"), ([1e40, 3e-8], "float32"), ([-1e105, 3e-8], "float64")]
)
def test_new_rows_beyond_a_type(two_fits, read, row, dtype):
    """Far from 1, or as far from a column's mean in its own units, as the squares of what is scored cannot hold."""
    with pytest.raises(ValueError, match=f"column x[01] holds .* beyond {dtype}'s range here: correct it"):
        read(two_fits[dtype], np.array([[5.0, 3e-8], row]))


def test_new_rows_far_out_but_within_the_range(two_fits):
    for fit, far in ((two_fits["float32"], 1e11), (two_fits["float64"], 1e100)):
        assert np.isfinite(np.asarray(fit.log_likelihood([[far, 3e-8], [5.0, np.nan]]))).all()
        assert torch.isfinite(fit.posterior([[far, 3e-8]]).log_weights).all()


def test_a_context_beyond_a_type():
    rows = np.random.default_rng(0).normal(size=(40, 3))
    model, method = ppvae.models.CVAE(1, (4,), "gaussian"), ppvae.SVI(steps=2)
    with pytest.raises(ValueError, match=r"the context holds 1e\+20, which is beyond float32's range: use dtype='float64'"):
        ppvae.fit(model, ppvae.Data(rows, context=np.r_[1e20, rows[1:, 0]]), method)
    fit = ppvae.fit(model, ppvae.Data(rows, context=rows[:, 0]), method)
    with pytest.raises(ValueError, match=r"the context holds 1e\+20, which is beyond float32's range: correct it"):
        fit.log_likelihood(ppvae.Data(rows[:2], context=[1e20, 0]))


@pytest.mark.filterwarnings("error")
def test_a_start_on_repeated_rows_warns_of_nothing():
    theta = start(GMM(3), ppvae.Data(np.eye(2)[[0, 1] * 10]), 0)
    assert theta.means.shape == (3, 2)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "a", True])
def test_seeds(seed):
    with pytest.raises(ValueError, match="a seed is a whole number"):
        ppvae.fit(PPCA(1), ppvae.load_data("iris"), seed=seed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "float16"}, "unknown dtype 'float16': did you mean 'float64'"),
        ({"dtype": torch.int64}, "unknown dtype 'int64'"),
        (
            {"method": ppvae.ClosedForm(), "init": {"mean": [0] * 4}},
            "closed_form finds mean from the data alone, .*: leave it out, or use EM",
        ),
        ({"method": None, "init": {"mean": [0] * 4}}, "closed_form finds mean from the data alone"),
        ({"device": 1.5}, "device '1.5' is not there"),
        ({"init": "means"}, r"init gives values by name, such as \{'loadings': \.\.\.\}, not 'means'"),
        ({"init": {"mean": "a"}}, r"parameter 'mean' takes numbers of shape \(4,\), not 'a'"),
        ({"init": {"mean": [[1, 2], [3]]}}, r"parameter 'mean' takes numbers of shape \(4,\)"),
        ({"guide": "full"}, "em takes no guide: leave it out, or use a method such as SVI"),
        (
            {"guide": 5, "method": ppvae.SVI(steps=2)},
            "a guide is a module, a function of the batch, or one of diagonal, full, linear, not 5",
        ),
    ],
)
def test_settings_of_a_fit(settings, words):
    with pytest.raises(ValueError, match=words):
        ppvae.fit(PPCA(1), ppvae.load_data("iris"), **{"method": ppvae.EM(), **settings})


def test_a_precision_by_name():
    for dtype in ("float32", np.float32, np.dtype("float32")):
        assert ppvae.fit(PPCA(1), ppvae.load_data("iris"), dtype=dtype).dtype == torch.float32


def test_a_data_set_by_name():
    with pytest.raises(ValueError, match=r"no such file: faithful \(a data set that comes with ppvae is ppvae.load_data\('faithful'\)\)"):
        ppvae.fit(GMM(2), "faithful")


@pytest.mark.parametrize(
    "model",
    [PCA(1), PPCA(1), FactorAnalysis(1), MixtureFA(1, 1), MixturePPCA(1, 1), VAE(1, (4,), "gaussian"), Autoencoder()],
    ids=lambda m: m.name,
)
def test_one_row_has_no_variance(model):
    with pytest.raises(ValueError, match="every column is constant, so there is no variance to explain: give rows that differ"):
        ppvae.fit(model, [[1.0, 2.0, 3.0]])


def test_as_many_components_as_rows_have_no_spread():
    with pytest.raises(ValueError, match=r"2 components need more rows than that, .* but there are 2: ask for fewer components"):
        ppvae.fit(BayesianGMM(2), [[1.0, 2.0, 3.0], [2.0, 1.0, 5.0]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ppvae.EM(max_steps=0), "^max_steps must be at least 1, not 0$"),
        (lambda: ppvae.EM(tolerance=-1), "^tolerance must be at least 0, not -1.0$"),
        (lambda: ppvae.SVI(beta=-1), "^beta must be at least 0, not -1.0$"),
        (lambda: ppvae.SVI(batch_size=0), "^batch_size must be at least 1, not 0$"),
        (lambda: ppvae.MonteCarloEM(draws=5, max_draws=4), "^max_draws must be at least 5, not 4$"),
        (lambda: VAE(hidden=(8, 0)), "^hidden must be at least 1, not 0$"),
        (lambda: GMM(component="x"), "^unknown component 'x': use guided or summed$"),
    ],
)
def test_a_setting_out_of_range_shows_its_value(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_says_nothing_is_not_done(tmp_path):
    iris = ppvae.load_data("iris")
    with pytest.raises(ValueError, match=r"EM\(\) is asked for twice, which is the same fit twice: name it once"):
        ppvae.compare(PPCA(1), iris, "em,em")
    found = ppvae.compare(PPCA(1), iris, "closed_form")
    with pytest.raises(ValueError, match="a p-value from 1 draws says little: ask for at least 20"):
        ppvae.check(found.best, iris, draws=1)
    with pytest.raises(ValueError, match=r"cannot write .*x\.pdf: a report is one web page, so name an \.html file"):
        found.save(tmp_path / "x.pdf")
    with pytest.raises(ValueError, match=r"sample: n must be a whole number, not 2\.5"):
        found.best.sample(2.5)
    assert len(found.best.sample(2.0)) == 2


def test_methods_in_words_and_classes():
    iris = ppvae.load_data("iris")
    assert ppvae.fit(PPCA(1), iris, "em:max_steps=3").steps == 3
    for arguments in ((PPCA, iris), (PPCA(1), iris, ppvae.EM)):
        with pytest.raises(ValueError, match=r"is a class: give an object, \w+\(\)"):
            ppvae.fit(*arguments)


def test_tables_print_whole(capsys):
    iris = ppvae.load_data("iris")
    found = ppvae.compare(PPCA(1), iris, "closed_form,em")
    print(found)
    print(ppvae.check(found.best, iris, draws=20))
    said = capsys.readouterr().out
    assert "..." not in said
    assert all(word in said for word in ("log_likelihood", "gap_to_best", "closed_form: exact", "replicated_mean", "skewness"))
