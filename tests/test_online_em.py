"""Online EM: with all rows and no memory it is EM; with batches it ends near EM's optimum, holes or not."""

import math

import numpy as np
import pytest

import ppvae
from ppvae import cli
from ppvae.models import GMM, PCA, PPCA, VAE, Die, FactorAnalysis, Gaussian, MixtureFA


@pytest.mark.parametrize(
    "model", [GMM(2), GMM(2, covariance="tied"), GMM(2, covariance="diag"), Gaussian(), PPCA(2), FactorAnalysis(1), MixtureFA(2, 1)],
    ids=lambda m: m.describe(),
)  # fmt: skip
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "holes"])
def test_all_rows_and_no_memory_make_it_em(model, missing):
    data = ppvae.load_data("airquality" if missing else "iris")
    em = ppvae.fit(model, data, ppvae.EM(max_steps=12)).history.log_likelihood
    online = ppvae.fit(model, data, ppvae.OnlineEM(epochs=12, batch_size=data.n_rows, forgetting=0))
    # The rows are added up in another order: rounding, which a dozen steps carry on.
    np.testing.assert_allclose(online.history.log_likelihood[: len(em)], em, rtol=1e-9)


def near_em(model, data: ppvae.Data, method: ppvae.OnlineEM, batch_size: int, seed: int = 0) -> ppvae.Fit:
    """A fit that must end within its own noise of EM's optimum.

    An average with steps of size g over batches of B rows is as noisy as one over 2 B / g rows drawn anew, and p parameters estimated from
    n rows lose p / 2n nats per row. Rows without replacement are less noisy than that.
    """
    fit = ppvae.fit(model, data, method, seed=seed)
    em = ppvae.fit(model, data, ppvae.EM(), seed=seed)
    noise = fit.n_parameters * fit.steps**-method.forgetting / (4 * batch_size)
    assert fit.history.log_likelihood[0] < em.history.log_likelihood.iloc[-1] - noise
    assert float(fit.log_likelihood(data).mean()) > em.history.log_likelihood.iloc[-1] - noise
    assert fit.history.log_likelihood.iloc[-1] == pytest.approx(float(fit.log_likelihood(data).mean()), abs=1e-10)
    return fit


def test_a_mixture_ends_near_em():
    data = ppvae.load_data("faithful")
    fit = near_em(GMM(2), data, ppvae.OnlineEM(), 14)
    assert fit.converged
    assert fit.status.startswith("ran its 50 passes in ")
    assert fit.engine == "closed forms"


def test_batches_that_forget_each_other_get_that_advice():
    fit = ppvae.fit(GMM(2), ppvae.load_data("faithful"), ppvae.OnlineEM(epochs=3, forgetting=0))
    assert not fit.converged
    assert ": batches pull theta about where forgetting=0: set it above 0.5, or batch_size to all rows" in fit.status


def test_ppca_ends_near_em_with_and_without_holes():
    fit = near_em(PPCA(2), ppvae.load_data("iris"), ppvae.OnlineEM(), 8)
    assert not fit.converged
    assert fit.status.endswith("nats per row: raise epochs")
    near_em(PPCA(1), ppvae.load_data("airquality"), ppvae.OnlineEM(), 8)


def test_one_pass_over_many_rows_does_what_em_does_in_several():
    many = ppvae.Data(ppvae.fit(PPCA(2), ppvae.load_data("iris")).sample(20_000))
    em = ppvae.fit(PPCA(2), many, ppvae.EM(max_steps=6)).history.log_likelihood
    online = ppvae.fit(PPCA(2), many, ppvae.OnlineEM(epochs=1)).history.log_likelihood
    assert em[1] < em[5] < online[1]


def test_counts_and_codes_are_taken_too():
    throws = np.random.default_rng(1).integers(1, 7, (300, 1)).astype(float)
    fit = ppvae.fit(Die(), throws, ppvae.OnlineEM())
    assert fit.params["probabilities"] == pytest.approx(ppvae.fit(Die(), throws).params["probabilities"], abs=0.01)
    iris = ppvae.load_data("iris")
    basis, sound = (np.linalg.qr(ppvae.fit(PCA(2), iris, m).params["loadings"])[0] for m in (ppvae.OnlineEM(), ppvae.ClosedForm()))
    # The noise is 1e-8 of the variance, so what is left of each batch shows only in angles.
    assert np.linalg.svd(basis.T @ sound)[1].min() > math.cos(0.01)


def test_seeds_repeat_and_differ():
    data, method = ppvae.load_data("faithful"), ppvae.OnlineEM(epochs=2)
    first, again, other = (ppvae.fit(GMM(2), data, method, seed=seed).params["means"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_a_singular_batch_ends_in_a_sentence():
    x = np.outer(np.arange(30.0), [1.0, 2.0, 3.0, 4.0, 5.0])
    fit = ppvae.fit(PPCA(4), x, ppvae.OnlineEM(batch_size=1))
    assert not fit.converged
    assert all(np.isfinite(value).all() for value in fit.params.values())


def test_progress_counts_passes():
    seen = []
    ppvae.fit(GMM(2), ppvae.load_data("faithful"), ppvae.OnlineEM(epochs=3), progress=lambda done, total, note: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_it_cannot_do_is_refused():
    iris = ppvae.load_data("iris")
    for settings in ({"epochs": 0}, {"batch_size": 0}, {"forgetting": 0.5}, {"forgetting": 1.2}, {"forgetting": math.nan}):
        with pytest.raises(ValueError, match=r"must be at least|OnlineEM"):
            ppvae.OnlineEM(**settings)
    with pytest.raises(ValueError, match=r"online EM does not apply: use .*SVI"):
        ppvae.fit(VAE(2, likelihood="gaussian"), iris, ppvae.OnlineEM())
    with pytest.raises(ValueError, match="batch_size=151 is larger than the data, 150 rows"):
        ppvae.fit(PPCA(2), iris, ppvae.OnlineEM(batch_size=151))
    unmoved = type("PPCA", (PPCA,), {"exact": type("Exact", (PPCA.exact,), {"recentred": ppvae.Exact.recentred})})
    with pytest.raises(ValueError, match=r"how its statistics move with theta \(Exact.recentred\), so online EM does not apply: use .*EM"):
        ppvae.fit(unmoved(2), iris, ppvae.OnlineEM())
    frozen = type("PPCA", (PPCA,), {"init": lambda self, data, generator: PPCA.init(self, data, generator).freeze("mean")})
    with pytest.raises(ValueError, match="M-step moves mean, which is frozen: use SVI"):
        ppvae.fit(frozen(2), iris, ppvae.OnlineEM())


def test_the_command_line_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "gmm", "faithful", "--method", "online_em:epochs=3:forgetting=0.7", "--out", "geyser"])
    assert not stop.value.code
    assert ppvae.load("geyser").method == ppvae.OnlineEM(epochs=3, forgetting=0.7)
