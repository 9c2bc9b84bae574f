"""Conditional VAEs: what is generated is of the class asked for, in pictures and in tables, and contexts that do not fit are refused."""

import numpy as np
import pandas as pd
import pytest
import torch

import ppvae
from ppvae import laws
from ppvae.models import CVAE

IRIS = ppvae.load_data("iris")
CLASSES = np.unique(IRIS.labels)
DATA = ppvae.Data(IRIS.numpy(), context=pd.get_dummies(IRIS.labels))


@pytest.fixture(scope="module")
def fit() -> ppvae.Fit:
    return ppvae.fit(CVAE(1, (16,), "gaussian"), DATA, ppvae.SVI(steps=400))


@pytest.mark.parametrize("chosen", range(3))
def test_rows_of_a_chosen_class(fit, chosen):
    """Its mean, within 4 standard errors and what training leaves; the other classes' means are further away."""
    rows = fit.sample(2000, seed=1, context=np.eye(3)[chosen]).mean(0)
    means = np.stack([IRIS.numpy()[IRIS.labels == c].mean(0) for c in CLASSES])
    distances = np.abs(rows - means).max(1)
    assert distances[chosen] < 0.15
    assert distances.argmin() == chosen
    assert np.delete(distances, chosen).min() > 0.5


def test_a_context_for_each_row(fit):
    context = np.eye(3)[[0, 2, 1, 0]]
    rows = fit.sample(4, context=context)
    assert rows.shape == (4, 4)
    assert rows[1, 2] > rows[0, 2] + 1  # petals of virginica are longer than those of setosa
    assert fit.decode(fit.transform(DATA), DATA.context).shape == (150, 4)


def test_the_code_is_left_with_what_the_class_does_not_say(fit):
    """Between classes the codes differ little: the class comes by the context."""
    z = fit.transform(DATA)[:, 0]
    between = np.var([z[IRIS.labels == c].mean() for c in CLASSES])
    assert between < 0.1 * z.var()


def test_digits_of_a_chosen_class():
    digits = ppvae.load_data("digits", rescale=True)
    images = digits.numpy().reshape(-1, 8, 8)
    data = ppvae.Data(images, context=pd.get_dummies(digits.labels), image_shape=(8, 8))
    fit = ppvae.fit(CVAE(2, (16, 8), network="convolutional"), data, ppvae.SVI(steps=250, learning_rate=0.01))
    means = np.stack([digits.numpy()[digits.labels == d].mean(0) for d in np.unique(digits.labels)])
    drawn = fit.decode(np.random.default_rng(0).normal(size=(100, 2)), np.repeat(np.eye(10), 10, 0))
    nearest = ((drawn[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == np.repeat(np.arange(10), 10)).mean() > 0.8  # 0.1 by chance


def test_laws_and_disk(fit, tmp_path):
    verdicts = laws.check(CVAE(2, (8,), "gaussian"), DATA.take(torch.arange(0, 150, 5)), only=[2, 5, 7, 8])
    assert verdicts.table.verdict.tolist() == ["holds"] * 4, verdicts.table.to_string()
    again = ppvae.load(fit.save(tmp_path / "fit"))
    assert np.array_equal(again.transform(DATA), fit.transform(DATA))
    assert np.array_equal(again.sample(5, context=[0, 1, 0]), fit.sample(5, context=[0, 1, 0]))


def test_checks_and_holes_keep_the_context(fit):
    assert ppvae.check(fit, DATA, np.nanmedian, draws=20).table.p_value.notna().all()
    holes = DATA.hiding(torch.rand(DATA.x.shape) < 0.2)
    assert np.isfinite(ppvae.fit(CVAE(1, (8,), "gaussian"), holes, ppvae.SVI(steps=5)).elbo(holes)).all()


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (None, r"context of 3 columns"),
        ([1.0, 0.0], r"shape \(3,\) or \(4, 3\), not \(2,\)"),
        (np.zeros((5, 3)), r"not \(5, 3\)"),
        ([1.0, 0.0, np.nan], "finite numbers: NaN or inf is among them"),
        ("versicolor", r"give a context of shape \(3,\) or \(4, 3\) as numbers, not 'versicolor'"),
        (["a", "b", "c"], r"as numbers, not \['a', 'b', 'c'\]"),
    ],
)
def test_contexts_that_do_not_fit(fit, context, said):
    with pytest.raises(ValueError, match=said):
        fit.sample(4, context=context)
    with pytest.raises(ValueError, match=r"give latents of shape \(n, L\) as numbers, not \[\['a'\]\]"):
        fit.decode([["a"]], context=[0, 1, 0])


def test_data_without_the_context(fit):
    with pytest.raises(ValueError, match=r"cvae: the data have no context"):
        ppvae.fit(CVAE(), IRIS)
    with pytest.raises(ValueError, match=r"a context of 3 columns \(of setosa, versicolor and virginica\), the data have none"):
        fit.transform(IRIS)
    with pytest.raises(ValueError, match="the data have one of 2"):
        fit.elbo(ppvae.Data(IRIS.numpy(), context=np.zeros((150, 2))))
    with pytest.raises(ValueError, match=r"context has 3 rows"):
        ppvae.Data(IRIS.numpy(), context=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="get_dummies"):
        ppvae.Data(IRIS.numpy(), context=IRIS.labels)
    plain = ppvae.fit(ppvae.models.PPCA(1), IRIS)
    with pytest.raises(ValueError, match="without a context"):
        plain.sample(3, context=[1.0])
