"""The command line, run as a person would run it. Most commands run in this process, where torch is loaded already; what depends on a
process of its own (exit codes, pipes, terminals, signals, the time that --help takes) runs in one."""

import contextlib
import json
import os
import pty
import re
import resource
import subprocess
import sys
from io import StringIO
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import ppvae
from ppvae import cli, registry, terminal
from ppvae.tables import read_table

SCORES = ["method", "seed", "status", "log_likelihood", "elbo", "kl", "steps", "seconds"]


CENTRE = """
from dataclasses import dataclass
import pyro
import pyro.distributions as dist
import ppvae


@dataclass(frozen=True)
class Centre(ppvae.Model):
    spread: float = 1.0

    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.mean + z, self.spread).mask(batch.observed).to_event(1), obs=batch.x)
"""

INTERRUPTED = """
import os
import signal
from dataclasses import dataclass
import ppvae


@dataclass(frozen=True)
class Interrupted(ppvae.Model):
    def init(self, data, generator):
        os.kill(os.getpid(), signal.SIGINT)

    def model(self, theta, batch):
        pass
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs `ppvae WORDS` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(words: str) -> Ran:
        with pytest.raises(SystemExit) as stop:
            cli.main(words.split())
        out, err = capsys.readouterr()
        return Ran(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def geyser(tmp_path_factory):
    """A saved fit of two components to Old Faithful."""
    folder = tmp_path_factory.mktemp("fits") / "geyser"
    ppvae.fit(ppvae.load_model("gmm", n_components=2), ppvae.load_data("faithful"), ppvae.EM()).save(folder)
    return folder


@pytest.fixture(scope="session")
def air(tmp_path_factory):
    """A saved fit of one latent direction to the air of New York."""
    folder = tmp_path_factory.mktemp("fits") / "air"
    ppvae.fit(ppvae.load_model("ppca", n_latents=1), ppvae.load_data("airquality")).save(folder)
    return folder


def process(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "ppvae.cli", *words], capture_output=True, text=True, check=False, **options)


# --- one command after another --------------------------------------------------------------------------------------------------------


def test_fit_saves_what_check_and_sample_read(run, tmp_path):
    ran = run("fit gmm faithful --set n_components=2 --method em --out geyser --json")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert list(printed["table"][0]) == SCORES
    assert printed["table"][0]["log_likelihood"] == pytest.approx(-1130.26396 / 272, abs=1e-3 / 272)  # gold case D1
    assert sorted(printed["parameters"]["weights"]) == pytest.approx([0.3558729, 0.6441271], abs=1e-3)

    ran = run("check geyser faithful --draws 20 --json --report checks.html")
    assert (ran.code, ran.err) == (0, "")
    assert {row["statistic"] for row in json.loads(ran.out)["table"]} >= {"mean", "sd", "min", "max", "skewness", "correlation"}
    assert (tmp_path / "checks.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert "lie outside the central 95 %" in run("check geyser faithful --draws 20").out

    for name in ("new.csv", "new.npy", "new.parquet"):
        assert run(f"sample geyser -n 5 --seed 3 --out {name}").code == 0
        assert read_table(tmp_path / name).values.shape == (5, 2)
    printed_csv = pd.read_csv(StringIO(run("sample geyser -n 5 --seed 3").out))
    pd.testing.assert_frame_equal(printed_csv, pd.read_csv(tmp_path / "new.csv"))
    np.testing.assert_array_equal(printed_csv, np.load(tmp_path / "new.npy"))
    assert list(printed_csv.columns) == ["eruptions", "waiting"]


def test_compare_prints_the_same_table_for_people_and_programs(run, tmp_path):
    words = "compare gmm faithful --set component=guided --methods em:tolerance=1e-9,svi:steps=60:compile=false --holdout 0.1"
    ran = run(f"{words} --seeds 2 --report report.html --json")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    table = pd.DataFrame(printed["table"])
    assert list(zip(table["method"], table["seed"], strict=True)) == [("em", 0), ("svi", 0), ("em", 1), ("svi", 1)]
    assert [c for c in table.columns if c in [*SCORES, "gap_to_best"]] == [*SCORES[:5], "gap_to_best", *SCORES[5:]]
    assert table["gap_to_best"].min() == 0
    assert table["heldout_log_likelihood"].notna().all()
    assert {row["method"] for row in printed["summary"]} == {"em", "svi"}
    assert {"parameters", "approximation", "amortization", "total"} <= set(printed["gaps"][0])
    assert printed["report"] == "report.html"
    assert (tmp_path / "report.html").stat().st_size > 10_000

    ran = run(words)
    assert (ran.code, ran.err) == (0, "")
    for row in printed["table"][:2]:
        assert terminal.spell(row["log_likelihood"]) in ran.out
    assert "What a fit's ELBO loses against the best log-likelihood" in ran.out


def test_a_model_of_ones_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(CENTRE)
    ran = run("compare mine.py faithful --set spread=10 --methods svi:steps=30:compile=false --json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["model"] == "Centre(spread=10.0)"
    ran = run("laws mine.py:Centre faithful --json")
    assert ran.code == 0
    verdicts = {row["name"]: row["verdict"] for row in json.loads(ran.out)["table"]}
    assert verdicts["missing"] == "holds"
    assert verdicts["coverage"] == "does not apply"

    (tmp_path / "mine.py").write_text(CENTRE.replace(".mask(batch.observed)", ""))
    ran = run("laws mine.py faithful")
    assert ran.code == 1
    assert "fails" in ran.out


def test_columns_and_rescale_reach_the_fit(run):
    ran = run("fit ppca iris --set n_latents=1 --columns petal_width --out q")
    assert ran.code == 2
    assert "did you mean 'petal width (cm)'" in ran.err
    pd.DataFrame({"a": [0.0, 5.0, 10.0, 3.0], "b": [1.0, 2.0, 8.0, 0.0], "kind": list("wxyz")}).to_csv("t.csv", index=False)
    ran = run("fit ppca t.csv --set n_latents=1 --columns b,a --rescale --out q --json")
    assert ran.code == 0
    assert json.loads(ran.out)["parameters"]["mean"] == pytest.approx([0.275, 0.45])


def test_impute_fills_the_holes_and_nothing_else(run, tmp_path):
    ran = run("fit ppca airquality --set n_latents=1 --out air")
    assert ran.code == 0
    assert "missing at random (MAR)" in ran.out
    holes = pd.DataFrame(
        {"Temp": [67, 70], "kind": ["a", "b"], "Wind": [7.4, None], "Ozone": [None, 30.0], "Solar.R": [190, 100]}, ["p", "q"]
    )
    holes.to_csv("holes.csv")
    ran = run("impute air holes.csv")
    filled = pd.read_csv(StringIO(ran.out), index_col=0)
    assert not filled.isna().any(axis=None)
    assert (ran.code, list(filled.columns), list(filled.index)) == (0, list(holes.columns), ["p", "q"])
    pd.testing.assert_frame_equal(filled.where(holes.notna()), holes.where(holes.notna()), check_dtype=False)
    assert filled["Temp"].dtype == int  # as it came

    ran = run("impute air holes.csv --draws 3 --out drawn.parquet")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "2 missing entries of 2 rows are filled in: drawn.parquet.")
    assert "missing at random (MAR)" in ran.out
    drawn = pd.read_parquet("drawn.parquet")
    assert drawn["draw"].tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn.index.tolist() == ["p", "q"] * 3
    assert drawn.loc["p", "Ozone"].nunique() == 3
    assert drawn.loc["q", "Ozone"].unique().tolist() == [30.0]
    ran = run("impute air airquality --draws 2")
    assert len(pd.read_csv(StringIO(ran.out))) == 2 * 153

    assert run("impute air holes.csv --draws 2 --columns Temp,Wind,Ozone,Solar.R --out numbers.npy").code == 2  # text has no place there
    assert run("impute air airquality --draws 2 --out numbers.npy").code == 0
    numbers = np.load("numbers.npy")
    assert numbers.shape == (2 * 153, 1 + 4)
    assert numbers[:, 0].tolist() == [0] * 153 + [1] * 153

    assert "the fit knows 4 features" in run("impute air faithful").err
    holes.rename(columns={"Temp": "Temperature"}).to_csv("renamed.csv")
    assert "are without Temp" in run("impute air renamed.csv").err
    holes.rename(columns={"Temp": "temp"}).to_csv("small.csv")
    assert "the data have 5, and are without Temp and have temp and kind besides: rename temp to Temp" in run("impute air small.csv").err
    holes.rename(columns={"kind": "draw"}).to_csv("drawn.csv")
    assert "column `draw` already" in run("impute air drawn.csv --draws 2").err
    assert "draws=20" in run("impute air holes.csv --bootstrap").err
    assert "exists already" in run("impute air holes.csv --out holes.csv").err


def test_impute_copies_a_csv_to_the_letter(run, air, tmp_path):
    text = "code,Temp,Wind,Ozone,Solar.R, note\n001,67.0,7.40,31,190, NA \n1E10,70,?,30,100,\n"
    (tmp_path / "codes.csv").write_text(text.replace("?", ""))
    filled = run(f"impute {air} codes.csv").out
    assert re.fullmatch(re.escape(text).replace(re.escape("?"), r"\d+\.\d+"), filled)
    ran = run(f"impute {air} codes.csv --out codes.parquet --json")
    assert [row["code"] for row in json.loads(ran.out)["table"]] == ["001", "1E10"]
    written = pd.read_parquet("codes.parquet")
    assert (written["code"].tolist(), written["Temp"].tolist()) == (["001", "1E10"], [67, 70])


def test_impute_takes_dates_and_says_where_they_have_no_place(run, air):
    dated = ppvae.load_data("airquality").frame().assign(day=pd.Timestamp("2020-01-02"))
    dated.to_parquet("dated.parquet")
    dated.to_csv("dated.csv", index=False)
    drawn = json.loads(run(f"impute {air} dated.parquet --draws 2 --json").out)["table"]
    assert {row["day"] for row in drawn} == {"2020-01-02T00:00:00"}
    for table in ("dated.parquet", "dated.csv"):
        assert "numbers only, and the table has others in day: write a .csv" in run(f"impute {air} {table} --out numbers.npy").err


def test_what_is_read_by_position_is_said(run, air, tmp_path):
    (tmp_path / "nameless.csv").write_text("41,190,7.4,67\n,100,8.5,70\n")
    for words in (f"impute {air} nameless.csv", f"check {air} nameless.csv --draws 20", "fit gaussian nameless.csv --out q"):
        said = run(words).err.splitlines()
        assert said[0].startswith("note: nameless.csv: its first row holds only numbers and is read as data: name its columns")
        if words[0] != "f":
            assert "nameless.csv: x0, x1, x2 and x3 are read as Ozone, Solar.R, Wind and Temp by their position" in said[1]
    np.save("two.npy", np.eye(2))
    assert "the data have 2: give as many columns, in that order" in run(f"impute {air} two.npy").err


def test_a_conditional_model_gets_its_context(run):
    fit = "fit cvae iris --set likelihood=gaussian --set hidden=4 --method svi:steps=5:compile=false"
    assert run(f"{fit} --context labels --out q").code == 0
    assert run("sample q -n 3 --context 0,1,0").out.count("\n") == 4
    right = run("sample q -n 3 --context 0,0,1").out
    assert run("sample q -n 3 --context virginica").out == run("sample q -n 3 --context labels=virginica").out == right
    assert (
        "holds virginia in labels, which the fit never saw: it knows setosa, versicolor and virginica"
        in run("sample q --context virginia").err
    )
    assert "context of 3 columns (of labels)" in run("check q iris").err
    assert run("check q iris --context labels --draws 20").code == run("impute q iris --context labels").code == 0
    assert "unknown context column 'label': did you mean 'labels'" in run(f"{fit} --context label --out r").err


def test_a_context_is_found_by_its_names(run):
    """Where a table has the columns of the fit's context, they are it, in whatever order; words that the fit never saw are refused."""
    iris = ppvae.load_data("iris")
    table = iris.frame().set_axis(list("abcd"), axis=1).assign(d=lambda t: t.d.where(t.index > 0), kind=iris.labels)
    table.to_csv("t.csv", index=False)
    table.iloc[:, ::-1].to_csv("turned.csv", index=False)
    table.assign(kind=table.kind.replace("setosa", "rose")).to_csv("new.csv", index=False)
    fit = (
        "fit cvae t.csv --set likelihood=gaussian --set hidden=4 --method svi:steps=5:compile=false --columns a,b --context d,kind --out q"
    )
    assert "context must be known for every row, and d holds NaN" in run(fit).err
    assert run(fit.replace("d,kind", "c,kind")).code == 0
    asked = run("check q t.csv --columns a,b --context kind,c --draws 20 --json")
    assert asked.code == 0
    for words in ("check q t.csv --columns a,b", "check q turned.csv --columns b,a"):
        found, right = (json.loads(text)["table"] for text in (run(f"{words} --draws 20 --json").out, asked.out))
        for row, same in zip(found, right, strict=True):
            assert row["replicated_mean"] == pytest.approx(same["replicated_mean"], rel=1e-4)
    assert "the context holds rose in kind, which the fit never saw" in run("check q new.csv --columns a,b").err
    table.assign(a=table.a.where(table.index > 1)).to_csv("holes.csv", index=False)
    filled = pd.read_csv(StringIO(run("impute q holes.csv").out))
    assert (filled.isna().sum().to_dict(), list(filled.columns)) == ({**dict.fromkeys("abc", 0), "d": 1, "kind": 0}, list(table.columns))
    assert run("impute q holes.csv --context kind,c").out == run("impute q holes.csv").out
    assert run("sample q -n 2 --context c=1.5,kind=setosa").out == run("sample q -n 2 --context 1.5,setosa").out


def test_a_rescaled_fit_speaks_in_the_units_of_the_table(run):
    """What is written is in the table's own units, and other rows are mapped as the fit's were."""
    assert run("fit gaussian faithful --rescale --out q").code == run("fit gaussian faithful --out plain").code == 0
    faithful = ppvae.load_data("faithful").frame()
    holes = faithful.head(20).assign(waiting=lambda t: t.waiting.where(t.index % 3 > 0))
    holes.to_csv("holes.csv", index=False)
    mapped, plain = (run(f"impute {fit} holes.csv") for fit in ("q", "plain"))
    assert mapped.err == ""
    pd.testing.assert_frame_equal(*(pd.read_csv(StringIO(ran.out)) for ran in (mapped, plain)), rtol=1e-6)
    drawn = run("impute q holes.csv --draws 2 --out drawn.npy")
    assert (drawn.code, np.load("drawn.npy")[:, 2].min() > 30) == (0, True)
    mapped, plain = (pd.read_csv(StringIO(run(f"sample {fit} -n 50").out)) for fit in ("q", "plain"))
    np.testing.assert_allclose(mapped, plain, rtol=1e-4)
    for words, said in (("check q holes.csv", "note: holes: its entries are mapped"), ("check q holes.csv --rescale", "")):
        ran = run(f"{words} --draws 20 --json")
        assert ran.err[: len(said)] == said
        assert bool(ran.err) == bool(said)
        assert json.loads(ran.out)["table"][0]["observed"] == pytest.approx((holes.eruptions.mean() - 1.6) / (96 - 1.6))
    assert "the values of the fit were not mapped by --rescale" in run("check plain holes.csv --rescale").err


def test_small_numbers_are_not_none(run):
    """A capacitance in farads has a mean; what is left of equal scores has not."""
    farad = 4e-10 + 1e-10 * np.random.default_rng(0).normal(size=30)
    pd.DataFrame({"farad": farad}).to_csv("t.csv", index=False)
    assert run("fit gaussian t.csv --out q").code == 0
    (line,) = [line.split() for line in run("check q t.csv --draws 20").out.splitlines() if "same" in line and "mean" in line]
    assert line[3] == f"{farad.mean():.1e}"
    assert not re.search(r"\d\.\de-1\d", run("compare ppca iris --methods closed_form,em").out)


def test_pictures_are_said_to_be(run):
    np.save("pictures.npy", ppvae.load_data("digits").numpy()[:40].reshape(-1, 8, 8))
    words = "fit ppca pictures.npy --set n_latents=1 --out q"
    assert "say so: Data(..., image_shape=(8, 8))" in run(words).err
    assert "--image-shape takes a height and a width, such as 28,28, not '8x8'" in run(f"{words} --image-shape 8x8").err
    assert run(f"{words} --image-shape 8,8").code == 0
    assert run("check q pictures.npy --draws 20").code == 0


def test_the_lists(run):
    listed = json.loads(run("models --json").out)["models"]
    assert {"gmm", "ppca", "vae"} <= {row["model"] for row in listed}
    assert all(row["description"] for row in listed)
    assert "n_components=2" in next(row["options"] for row in listed if row["model"] == "gmm")
    listed = json.loads(run("datasets --json").out)["datasets"]
    assert {"data set": "airquality", "rows": 153, "features": 4, "missing": 44}.items() <= listed[1].items()
    for words in ("models", "datasets"):
        assert run(words).out.count("\n") > 4


# --- mistakes: exit code 2, one sentence, nothing written -----------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path):
    """Small tables with something wrong, by name."""
    good = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 3)), columns=["a", "b", "c"])
    for name, frame in {
        "good": good,
        "text": good.assign(kind="x"),
        "inf": good.assign(b=np.inf),
        "hole": good.assign(hole=np.nan),
        "constant": good.assign(same=1.0),
        "two": good.head(2),
    }.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "junk.csv").write_bytes(b"\x89PNG\x00\xff")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("fit gmn good.csv --out q", "unknown model 'gmn': did you mean 'gmm'? (models: "),
        ("fit gmm faithfull --out q", "unknown data set 'faithfull': did you mean 'faithful'? (data sets: "),
        ("fit gmm good.csv --method emm --out q", "unknown method 'emm': did you mean 'em'? (methods: "),
        ("fit gmm good.csv --method em,svi --out q", "fit takes one method, not 2: use compare"),
        ("fit gmm good.csv --method em:tolerence=1 --out q", "unknown em option 'tolerence': did you mean 'tolerance'?"),
        ("fit gmm good.csv --set n_component=2 --out q", "unknown gmm option 'n_component': did you mean 'n_components'"),
        ("fit gmm good.csv --set n_components=two --out q", "gmm: n_components must be a whole number, not 'two'"),
        ("fit gmm good.csv --set n_components --out q", "cannot read the option 'n_components': write it as name=value"),
        ("fit gmm good.csv --set n_components=1 --set n_components=2 --out q", "the option n_components is given twice"),
        ("fit gmm good.csv --set covariance=ful --out q", "unknown covariance 'ful': did you mean 'full'?"),
        ("fit gmm good.csv --dtype float16 --out q", "unknown dtype 'float16'"),
        ("fit gmm good.csv --device cuda:99 --out q", "device 'cuda:99' is not there"),
        ("fit gmm good.csv --columns a,d --out q", "unknown column 'd'"),
        ("fit gmm good.csv --sed 3 --out q", "No such option: --sed"),
        ("fit gmm good.csv", "Missing option '--out'"),
        ("fitt gmm good.csv", "No such command 'fitt'. Did you mean 'fit'?"),
        ("fit gmm none.csv --out q", "no such file: none.csv"),
        ("fit gmm empty.csv --out q", "empty.csv is empty"),
        ("fit gmm junk.csv --out q", "junk.csv cannot be read as a .csv table"),
        ("fit gmm text.csv --out q", "text.csv has something other than real numbers in kind (such as 'x')"),
        ("fit gmm inf.csv --out q", "inf.csv holds inf in b"),
        ("fit gmm hole.csv --out q", "no entry is observed in hole"),
        ("fit gmm constant.csv --out q", "where a column is constant (same)"),
        ("fit gmm two.csv --set n_components=3 --out q", "3 components need at least as many rows"),
        ("fit ppca good.csv --set n_latents=3 --out q", "n_latents=3 must be below the number of features, 3"),
        ("fit vae good.csv --out q", "(--rescale, data.rescaled())"),
        ("fit gmm good.csv --method svi:batch_size=13 --out q", "batch_size=13 is larger than the data, 12 rows"),
        ("fit vae good.csv --rescale --method em --out q", "exact EM does not apply: use "),
        ("fit gmm good.csv --out .", ". exists already: choose another name, or remove it first"),
        ("fit gmm good.csv --out none/q", "there is no folder none to write q in"),
        ("compare gmm good.csv --report none/r.html", "there is no folder none to write r.html in"),
        ("compare gmm good.csv --holdout 1.5", "holdout is a share of the rows between 0 and 1"),
        ("compare gmm good.csv --methods em,,svi", "unknown method ''"),
        ("compare gmm good.csv --methods em,closed_form", "gmm has no closed-form maximum likelihood"),
        ("compare mine.py good.csv", "no such model file: mine.py"),
        ("laws gmn good.csv", "unknown model 'gmn'"),
        ("compare gmm good.csv --seeds 0", "Invalid value for '--seeds'"),
        ("check none good.csv", "none is not a folder with a saved fit"),
        ("check . good.csv", ". is not a saved fit"),
        ("check . good.csv --draws 19", "Invalid value for '--draws'"),
        ("compare gmm good.csv --report r.pdf", "cannot write r.pdf: a report is one web page, so name an .html file"),
        ("graph gmm good.csv --out g.png", "cannot write g.png: name an .svg file"),
    ],
)
def test_a_mistake_gets_one_sentence(run, tmp_path, words, sentence):
    before = set(tmp_path.iterdir())
    ran = run(words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("ppvae: ")
    assert ran.err.count("\n") == 1
    assert sentence in ran.err
    assert set(tmp_path.iterdir()) == before


def test_saved_fits_are_neither_overwritten_nor_taken_on_trust(run, geyser, tmp_path):
    before = {file.name: file.read_bytes() for file in geyser.iterdir()}
    ran = run(f"fit gmm faithful --out {geyser}")
    assert (ran.code, ran.out) == (2, "")
    assert "exists already" in ran.err
    assert {file.name: file.read_bytes() for file in geyser.iterdir()} == before

    (tmp_path / "mine.csv").write_text("a\n1\n")
    assert "exists already" in run(f"sample {geyser} --out mine.csv").err
    assert (tmp_path / "mine.csv").read_text() == "a\n1\n"
    assert "name a .csv, .npy or .parquet file" in run(f"sample {geyser} --out new.xlsx").err

    ran = run(f"check {geyser} iris")
    assert ran.code == 2
    assert "the fit knows 2 features" in ran.err
    for name, content in {"fit.json": b'{"format": 1}', "tensors.safetensors": before["tensors.safetensors"][:50]}.items():
        damaged = tmp_path / f"damaged-{name}"
        damaged.mkdir()
        for file, whole in {**before, name: content}.items():
            (damaged / file).write_bytes(whole)
        ran = run(f"check {damaged} faithful")
        assert ran.code == 2
        assert "is damaged or not a saved fit" in ran.err


def test_an_empty_word_is_no_path(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "gmm", "faithful", "--out", ""])
    assert capsys.readouterr().err.startswith("ppvae: one of the words is empty")


@pytest.mark.parametrize(
    "words",
    [
        "fit gmm good.csv --out ro/q",
        "compare gmm good.csv --report ro/r.html",
        "sample {geyser} --out ro/x.csv",
        "graph gmm --out ro/g.svg",
    ],
)
def test_a_folder_that_may_not_be_written_in_is_refused_first(run, geyser, monkeypatch, tmp_path, words):
    """As the system tells it; whoever runs this may be allowed everywhere."""
    (tmp_path / "ro").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    ran = run(words.format(geyser=geyser))
    place = words.split()[-1]
    assert (ran.code, ran.err.partition(":")[2]) == (
        2,
        f" cannot write {place}: its folder may not be written in; choose another, or change its permissions\n",
    )


def test_a_graph_says_on_what_data_it_was_run(run):
    ran = run("graph gmm")
    assert "each of 150 rows" in ran.out
    assert ran.err == "note: no data are named, so the story is run on iris\n"


def test_an_unwritable_place_is_one_sentence(run, geyser, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device", "new.csv")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    ran = run(f"sample {geyser} --out new.csv")
    assert (ran.code, ran.err) == (2, "ppvae: new.csv: No space left on device\n")


# --- what needs a process of its own --------------------------------------------------------------------------------------------------


def test_help_is_quick_and_shows_an_example_each():
    listed = process("--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    commands = [line.split()[0] for line in listed.stdout.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert {"compare", "fit", "check", "sample", "laws", "models", "datasets"} <= set(commands)
    for command in ("", *commands):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = process(*command.split(), "--help", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert f"ppvae {command or 'compare'} " in ran.stdout.partition("Example:")[2]
        imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
        assert not imported & {"torch", "pyro", "pandas", "numpy", "matplotlib", "rich"}
        # Processor time, not wall time: the latter depends on what else the machine does.
        assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 0.5


def test_lists_and_mistakes_in_a_pipe():
    for words in (["models"], ["datasets"]):
        ran = process(*words)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "\x1b" not in ran.stdout
    ran = process("fit", "gmn", "faithful", "--out", "q")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"ppvae: unknown model 'gmn': did you mean 'gmm'? (models: {', '.join(registry.models())})\n"


def test_control_c_leaves_130_and_nothing_else(tmp_path):
    (tmp_path / "mine.py").write_text(INTERRUPTED)
    ran = process("fit", "mine.py", "iris", "--out", "q", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (130, "")
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "q").exists()


def test_a_bar_on_a_terminal_and_none_in_a_pipe(tmp_path):
    words = [sys.executable, "-m", "ppvae.cli", "fit", "ppca", "iris", "--out"]
    ours, theirs = pty.openpty()
    with subprocess.Popen([*words, "a"], stderr=theirs, stdout=subprocess.PIPE, cwd=tmp_path) as ran:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    assert ran.returncode == 0
    assert b"fitting" in shown
    ran = process("fit", "ppca", "iris", "--out", "b", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "The fit is in b." in ran.stdout


def test_json_has_plain_values(capsys):
    table = pd.DataFrame({"a": [np.float64(0.1), np.inf], "b": pd.array([1, None], "Int64"), "c": [True, None]})
    terminal.show_json({"table": table, "empty": table.head(0), "word": None})
    assert json.loads(capsys.readouterr().out) == {
        "table": [{"a": 0.1, "b": 1, "c": True}, {"a": None, "b": None, "c": None}],
        "empty": [],
        "word": None,
    }


def test_a_table_fits_the_terminal(capsys, monkeypatch):
    table = pd.DataFrame(
        {"method": ["em", "svi"], "status": ["a sentence of some length that folds", ""], "score": [-1.25, 2e-5], "score_se": [0.5, 0.0]}
    )
    monkeypatch.setenv("COLUMNS", "50")
    terminal.show(table, rename={"score": "the score"})
    wide = capsys.readouterr().out
    assert wide.split()[:4] == ["method", "status", "the", "score"]
    assert "-1.2500 ± 0.5000" in wide
    assert max(map(len, wide.splitlines())) <= 50
    monkeypatch.setenv("COLUMNS", "30")
    terminal.show(table, rename={"score": "the score"})
    narrow = capsys.readouterr().out
    assert narrow.split()[:3] == ["method", "the", "score"]
    assert "2.0e-05" in narrow
    assert "em: a sentence of some length" in narrow


def test_no_digit_is_cut_in_a_narrow_terminal(monkeypatch, capsys):
    table = pd.DataFrame(
        {"method": ["em", "svi"], "log_likelihood": [-1882.8883, -1886.2754], "elbo": [-1882.8883, -1890.0], "steps": [7, 3000]}
    )
    monkeypatch.setenv("COLUMNS", "20")
    terminal.show(table)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("method", "svi", "-1882.8883", "-1886.2754", "-1890.0000"))
