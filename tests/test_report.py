"""The report: what it says in words, what it draws, and that it is one file that needs nothing else."""

import base64
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import ppvae
from ppvae import report
from ppvae.program.graph import graph
from ppvae.report import about_fit, about_origin, page, runs, words
from ppvae.report.blocks import Code, Table
from ppvae.report.figures import fitted, progress, style
from ppvae.scores import Scores

VOID = {"meta", "link", "img", "source", "br"}
SHORT = ppvae.SVI(steps=5, compile=False)


@pytest.fixture(scope="module")
def faithful():
    """Two methods from two seeds; SVI is stopped long before it arrives."""
    return ppvae.compare(ppvae.models.GMM(n_components=2), ppvae.load_data("faithful"), [ppvae.EM(), SHORT], seeds=2)


@pytest.fixture(scope="module")
def holes():
    return ppvae.compare(ppvae.models.PPCA(n_latents=1), ppvae.load_data("airquality"), [ppvae.EM(), SHORT])


@pytest.fixture(scope="module")
def iris():
    return ppvae.compare(ppvae.models.PPCA(n_latents=2), ppvae.load_data("iris"), [ppvae.ClosedForm(), ppvae.EM(), SHORT], holdout=0.2)


@pytest.fixture(scope="module")
def digits():
    """Images, and a model without an exact likelihood."""
    rows = ppvae.load_data("digits").take(np.arange(150))
    return ppvae.compare(ppvae.models.VAE(n_latents=2, hidden=(8,), likelihood="gaussian"), rows, [SHORT])


@pytest.fixture(scope="module")
def shared():
    """Parameters with priors: a posterior, and a point."""
    rows = ppvae.load_data("faithful").take(np.arange(60))
    methods = [ppvae.CAVI(max_sweeps=3), ppvae.CAVI(max_sweeps=3, point=True)]
    found = ppvae.compare(ppvae.models.BayesianGMM(n_components=2), rows, methods)
    assert found.best.method == methods[1]
    return found


@pytest.fixture(scope="module")
def criticism(iris):
    return ppvae.check(iris.best, iris.data, draws=30)


def with_runs(found, fits, scores):
    """The comparison `found` with other runs."""
    return replace(found, held_out=None, fits=fits, _scores=scores)


class Reader(HTMLParser):
    """Tags in balance, every address, and the text that a person reads."""

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.pictures, self.words, self.ids = [], [], [], [], set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "img":
            assert found["alt"]
            self.pictures.append(found["src"])
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data.strip())

    @property
    def text(self):
        return " ".join(w for w in self.words if w)


@pytest.fixture(scope="module")
def pages(faithful, holes, iris, digits, shared, tmp_path_factory):
    """Each comparison's report, written once."""
    folder = tmp_path_factory.mktemp("reports")
    found = {"faithful": faithful, "holes": holes, "iris": iris, "digits": digits, "shared": shared}
    return {name: comparison.save(folder / f"{name}.html").read_text(encoding="utf-8") for name, comparison in found.items()}


@pytest.mark.parametrize(("name", "pictures"), [("faithful", 4), ("holes", 8), ("iris", 7), ("digits", 8)])
def test_one_file_that_needs_nothing_else(name, pictures, pages):
    assert len(pages[name]) < 3e6
    found = Reader(pages[name])
    for address in found.addresses:
        assert address.startswith("data:") or address[1:] in found.ids
    for picture in found.pictures:
        head, content = picture.split(";base64,")
        content = base64.b64decode(content)
        if head == "data:image/svg+xml":
            drawing = ElementTree.fromstring(content)
            assert drawing.tag.endswith("svg")
            assert not re.search(rb'href="(?!#|data:)', content)
        else:
            assert head == "data:image/png"
            assert content.startswith(b"\x89PNG")
    assert len(found.pictures) == pictures + (shutil.which("dot") is not None)


def test_the_title_names_the_best_method_and_how_far_the_others_are(faithful, pages):
    gap = faithful.table.loc[faithful.table["method"] == "svi", "gap_to_best"].min()
    assert gap > words.LEVEL
    assert words.headline(faithful) == f"EM fits faithful best; SVI is {words.difference(gap)} nats per row behind"
    assert words.headline(faithful) in Reader(pages["faithful"]).text


def test_the_title_changes_with_the_scores(faithful):
    turned = with_runs(faithful, faithful.fits, faithful._scores[1::-1] + faithful._scores[:1:-1])
    assert words.headline(turned).startswith("SVI fits faithful best; EM is ")


def test_methods_that_agree_are_called_equal(iris):
    assert words.headline(iris).startswith("ClosedForm and EM fit iris equally well; SVI is ")


def test_estimates_within_their_error_are_called_level(digits):
    evidence, *rest = digits._scores[0]
    lower = Scores(np.asarray(evidence) - 2 * evidence.mean_standard_error, evidence.standard_error, evidence.how)
    other = replace(digits.fits[0], method=replace(SHORT, steps=6))
    found = with_runs(digits, [*digits.fits, other], [digits._scores[0], (lower, *rest)])
    first, second = words.standings(found)
    assert second.error == pytest.approx(2 * np.sqrt(2) * evidence.mean_standard_error)
    assert second.level
    # The same difference between exact scores would not be level.
    exact = [(Scores(np.asarray(e)), *rest) for e in (evidence, lower)]
    certain = words.standings(with_runs(digits, found.fits, exact))
    assert certain[1].level == (certain[1].nearest < words.LEVEL)
    assert {first.method, second.method} == set(runs.labels(found)), "two settings of one method have names of their own"
    assert all("steps=" in name for name in runs.labels(found))


def test_a_run_that_failed_is_said_and_drawn(faithful):
    *good, last = faithful.fits
    status = "stopped at step 3: the loss was not finite; try a smaller learning rate"
    history = last.history.assign(elbo=np.nan, log_likelihood=np.nan)
    nothing = Scores(np.full(faithful.data.n_rows, np.nan))
    fits = [*good, replace(last, status=status, converged=False, history=history)]
    found = with_runs(faithful, fits, [*faithful._scores[:-1], (nothing, nothing, nothing, None)])
    assert f"SVI, seed 1, did not converge: {status}." in words.findings(found)
    assert "There is no log-likelihood and no ELBO and no KL for SVI: the result is not a finite number." in words.findings(found)
    assert isinstance(report.convergence(found), Figure)


def test_where_no_score_is_a_number_the_report_is_made(faithful, tmp_path):
    nothing = Scores(np.full(faithful.data.n_rows, np.nan))
    found = with_runs(faithful, faithful.fits[:1], [(nothing, nothing, nothing, None)])
    text = Reader(found.save(tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No method reached a finite log-likelihood on faithful" in text


def test_hidden_entries_are_counted_apart_and_scored(tmp_path):
    air = ppvae.load_data("airquality")
    found = ppvae.compare(ppvae.models.Gaussian(), air, [ppvae.EM(max_steps=5)], holdout_entries=0.1)
    html = found.save(tmp_path / "report.html").read_text(encoding="utf-8")
    text = Reader(html).text
    missing, hidden = int((~air.observed).sum()), int((air.observed & ~found.data.observed).sum())
    assert f"{missing} of {air.observed.numel()} entries are missing" in text
    assert text.count(f"{hidden} of the {int(air.observed.sum())} observed entries were hidden from every fit") == 2
    for heading, value in (("hidden (nats)", words.nats), ("hidden (sd off)", words.plain)):
        column = {"hidden (nats)": "hidden_log_likelihood", "hidden (sd off)": "hidden_rmse"}[heading]
        assert heading in text
        assert value(found.table[column].iloc[0]) in text
    assert f"On the hidden entries EM scores {words.nats(found.table['hidden_log_likelihood'].iloc[0])} nats an entry." in text
    assert "holdout_entries=0.1" in html


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("faithful", "A run's ELBO lies below the best log-likelihood by three parts"),
        ("digits", "A run's ELBO lies below its own log-likelihood by two parts"),
        ("shared", "A run's ELBO lies below the log-evidence, log p(all rows) / N"),
    ],
)
def test_losses_say_what_they_are_measured_from(name, sentence, pages):
    assert sentence in Reader(pages[name]).text


def test_a_point_has_no_bound_and_no_spread(pages):
    text = Reader(pages["shared"]).text
    assert "There is no ELBO and no KL for CAVI(max_sweeps=3, point=True): draws and points have no density, so no bound." in text
    assert "Thick lines are log-likelihoods" in text
    assert "means (a point)" in text
    assert "posterior sd" not in text


def test_scores_that_are_no_densities_are_said_to_be_none():
    found = ppvae.compare(ppvae.models.PCA(n_latents=2), ppvae.load_data("iris"), [ppvae.ClosedForm()])
    assert f"Beware: {found.model.no_density}. BIC and AIC have no meaning here." in words.findings(found)
    for criterion in (found.best.bic, found.best.aic):
        with pytest.raises(ValueError, match="PCA has no density"):
            criterion(found.data)


def test_methods_that_were_left_out_are_named(pages):
    text = Reader(pages["holes"]).text
    assert "ClosedForm: ppca has a closed form for complete data only" in text
    assert "Left out" in Reader(pages["iris"]).text, "CAVI"


def test_advice_on_a_floor_is_for_the_model():
    fit = ppvae.fit(ppvae.models.FactorAnalysis(n_latents=1), ppvae.load_data("iris"), ppvae.EM(acceleration="squarem"))
    assert "noise_variance[2] stands on its floor" in fit.status
    assert "fewer latents" in fit.status
    assert "component" not in fit.status


def test_a_die_is_drawn_as_shares():
    rolls = ppvae.Data([[1], [3], [3], [2]], columns=["roll"])
    fit = ppvae.fit(ppvae.models.Die(n_faces=6), rolls)
    assert "floor" not in fit.status
    assert fit.converged, "a face that never came up is no defect"
    (ax,) = report.density(fit, rolls).axes
    assert [bar.get_height() for bar in ax.patches] == [0.25, 0.25, 0.5]
    assert ax.lines[0].get_ydata() == pytest.approx([0.25, 0.25, 0.5])
    for asked in (fit.predict, fit.transform):
        with pytest.raises(ValueError, match="rows have nothing hidden"):
            asked(rolls)


def test_all_results_are_in_the_table(faithful, pages):
    text = Reader(pages["faithful"]).text
    for run in faithful.table.to_dict("records"):
        assert words.nats(run["log_likelihood"]) in text
        assert words.nats(run["elbo"]) in text
        assert run["status"] in text


def test_the_lines_that_run_it_again_are_python(iris, pages):
    lines = next(re.finditer(r"<pre>(import ppvae.*?)</pre>", pages["iris"], re.DOTALL))[1]
    lines = lines.replace("&#39;", "'").replace("&#34;", '"')
    run_again = {}
    exec(lines.rsplit("\ncomparison = ", 1)[0], run_again)
    assert run_again["model"] == iris.model
    assert run_again["methods"] == [fit.method for fit in iris.fits]
    assert "holdout=0.2" in lines


def lines_of(comparison: ppvae.Comparison) -> str:
    (code,) = (block for block in about_origin.of_comparison(comparison).blocks if isinstance(block, Code))
    return code.lines


@pytest.mark.parametrize(
    ("source", "load", "compare"),
    [
        ("faithful", {"rescale": True}, {}),
        ("faithful", {"columns": ["waiting"]}, {"dtype": "float32"}),
        ("faithful.csv", {}, {"holdout": 0.12347}),
        ("iris", {"context": ["labels"], "rescale": True}, {"dtype": torch.float64}),
        ("faithful", {}, {"init": {"means": np.array([[2.0, 50.1], [4.5, 80 / 3]])}, "holdout_entries": 0.1}),
        ("faithful", {}, {"guide": "full"}),
    ],
    ids=["rescaled", "columns, dtype", "a file", "context", "init", "guide"],
)
def test_the_lines_run_the_same_again(source, load, compare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (ppvae.load_data("faithful").frame() * 2).to_csv("faithful.csv", index=False)
    model = ppvae.models.CVAE(1, (4,), "gaussian") if "context" in load else ppvae.models.GMM(2)
    method = ppvae.SVI(steps=3, compile=False) if "context" in load or "guide" in compare else ppvae.EM(max_steps=3)
    found = ppvae.compare(model, ppvae.load_data(source, **load), [method], **compare)
    run_again = {}
    exec(lines_of(found).rsplit("\n", 1)[0], run_again)
    repeated = run_again["comparison"]
    right = found.table.drop(columns="seconds")
    pd.testing.assert_frame_equal(repeated.table.drop(columns="seconds"), right, rtol=0, atol=0)
    if "holdout" in compare:
        assert repeated.held_out.n_rows == found.held_out.n_rows == 34  # 33.58 of 272


def test_what_is_in_memory_alone_is_left_to_the_reader(iris):
    """A guide or a start that no one could write out, and rows that were chosen by hand."""
    own = replace(iris, recipe=None, asked={"guide": torch.nn.Linear(1, 1), "init": {"mean": np.zeros(2000)}})
    assert "data = ...  # your table 'iris'" in lines_of(own)
    assert "guide=..., init={'mean': ...})" in lines_of(own)
    assert ppvae.load_data("iris").take([0, 1, 2]).recipe is None
    assert ppvae.load_data("iris").rescaled((0.0, 8.0)).recipe == "ppvae.load_data('iris').rescaled((0.0, 8.0))"


def test_a_model_of_ones_own_is_loaded_from_its_file(iris, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport ppvae\n@dataclass(frozen=True)\nclass Mine(ppvae.models.PPCA):\n"
        "    n_latents: int = 3\n    def init(self, *given):\n        return super().init(*given)\n"
        "    def model(self, *given):\n        super().model(*given)\n"
    )
    own = replace(iris, model=ppvae.load_model(str(tmp_path / "mine.py"), n_latents=1))
    made = {}
    exec("\n".join(line for line in lines_of(own).splitlines() if line.startswith(("import ppvae", "model = "))), made)
    assert made["model"].config() == {"n_latents": 1}


def test_a_feature_has_one_standard_deviation():
    (table,) = (block for block in about_origin.of_data(ppvae.Data([[1.0], [3.0]])).blocks if isinstance(block, Table))
    assert dict(zip(table.columns, table.rows[0], strict=True))["sd"] == "1"


def test_a_table_without_a_name_of_ours_is_left_to_the_reader(faithful, tmp_path):
    own = faithful.data.take(np.arange(50))
    own.name = "my table"
    written = ppvae.compare(faithful.model, own, [SHORT]).save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data = ...  # your table &#39;my table&#39;, as a ppvae.Data" in written


def test_the_model_is_shown_as_a_graph(iris, pages, monkeypatch):
    story = graph(iris.model, iris.data)
    assert story.factorisation in Reader(pages["iris"]).text
    assert (f'alt="Graph of the story: {story.factorisation}"' in pages["iris"]) == (shutil.which("dot") is not None)
    monkeypatch.setenv("PATH", "")
    (without,) = about_fit._graph(story)
    assert "x ~ Normal(z, loadings, mean, noise_variance)" in without.lines


def test_names_from_the_data_are_escaped(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    data = ppvae.Data(x, columns=["<b>a</b>", "b & c"], name="<script>alert(1)</script>")
    written = ppvae.compare(ppvae.models.PPCA(n_latents=1), data, [ppvae.ClosedForm()]).save(tmp_path / "report.html")
    assert "<script>alert(1)</script>" in Reader(written.read_text(encoding="utf-8")).text


def test_the_same_comparison_gives_the_same_file(faithful, pages, tmp_path):
    assert page.write(faithful, tmp_path / "again.html").read_text(encoding="utf-8") == pages["faithful"]


def test_a_path_that_cannot_be_written_is_refused(faithful, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        faithful.save(tmp_path / "nowhere" / "report.html")
    with pytest.raises(ValueError, match="is a folder"):
        faithful.save(tmp_path)


def test_the_report_of_checks(criticism, tmp_path):
    found = Reader(page.write_check(criticism, tmp_path / "checks.html").read_text(encoding="utf-8"))
    assert words.verdict(criticism) in found.text
    assert criticism.summary in found.text


def test_every_figure_is_drawn(faithful, holes, iris, digits, criticism):
    figures = [
        report.convergence(faithful),
        report.convergence(digits),
        report.gaps(faithful),
        report.density(faithful.best, faithful.data),
        report.density(iris.best, iris.data),
        report.latent_space(iris.best, iris.data),
        report.latent_space(holes.best, holes.data),
        report.checks(criticism),
        report.correlations(criticism),
        report.reconstructions(digits.best, digits.data),
        report.samples(digits.best, 12),
        report.generated(digits.best, digits.data, 9),
        report.latent_walk(digits.best, digits.data),
        report.latent_walk(holes.best, holes.data),
        report.divergence(),
        report.missingness(holes.data),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        assert all(ax.has_data() for ax in figure.axes if ax.axison)


def test_a_density_of_one_feature():
    data = ppvae.Data(np.random.default_rng(0).normal(size=100), columns=["height"])
    fit = ppvae.fit(ppvae.models.GMM(n_components=1), data, ppvae.EM())
    assert report.density(fit, data).axes[0].get_xlabel() == "height"


def test_a_figure_that_does_not_apply_says_why(faithful, iris, digits):
    with pytest.raises(ValueError, match="these rows are images"):
        report.density(digits.best, digits.data)
    with pytest.raises(ValueError, match="are not images"):
        report.reconstructions(iris.best, iris.data)
    with pytest.raises(ValueError, match="do not make a 3 x 3 picture"):
        report.samples(digits.best, 4, image_shape=(3, 3))
    with pytest.raises(ValueError, match="no continuous latents"):
        report.latent_space(faithful.best, faithful.data)
    with pytest.raises(ValueError, match="every entry of this data set is observed"):
        report.missingness(iris.data)
    with pytest.raises(ValueError, match="holds none"):
        report.correlations(ppvae.check(iris.best, iris.data, np.nanmean, draws=20))


def test_contours_hold_their_share_of_the_density():
    at = np.linspace(-5, 5, 201)
    height = np.exp(-0.5 * (at[:, None] ** 2 + at**2)) / (2 * np.pi)
    # In two dimensions the region of a standard normal that holds a share s has density (1 - s) / (2 pi) on its edge.
    exact = sorted((1 - s) / (2 * np.pi) for s in fitted.SHARES)
    cell = (at[1] - at[0]) ** 2  # the regions' mass is known to about a ring of cells
    assert np.allclose(fitted._levels(height), exact, atol=2 * cell)
    assert not np.allclose(fitted._levels(height**2), exact, atol=2 * cell)


def test_a_thinned_curve_keeps_its_end_and_its_mean():
    values = np.random.default_rng(0).normal(size=5000)
    thin = progress._thinned(values)
    assert len(thin) <= progress.POINTS + 2
    assert thin[-1] == values[-1]
    assert np.array_equal(progress._thinned(values[:50]), values[:50])
    assert np.allclose(progress._thinned(np.full(5000, 3.0)), 3.0)


def test_many_seeds_make_one_bar_a_method(faithful):
    n = progress.BARS
    many = with_runs(faithful, faithful.fits * n, faithful._scores * n)
    assert [tick.get_text() for tick in report.gaps(many).axes[0].get_yticklabels()] == [f"EM, {2 * n} seeds", f"SVI, {2 * n} seeds"]


def test_more_classes_than_colours_still_differ():
    names = [str(i) for i in range(2 * len(style.PALETTE))]
    colours, markers = style.colours(names), style.markers(names)
    assert len({(colours[n], markers[n]) for n in names}) == len(names)


def test_numbers_read_as_plain_words():
    assert words.nats(-4.15529) == "\N{MINUS SIGN}4.1553"
    assert words.difference(0.000312) == "0.00031"
    assert words.difference(3e-9) == "less than 0.000001"
    assert words.difference(float("nan")) == "none"
    assert words.seconds(200) == "3 min 20 s"


def test_the_parameters_are_named_after_features_only_where_they_are(faithful, pages):
    """Two components and two features: weights are of components, a covariance's rows are features."""
    tables = dict(re.findall(r"<caption>(.*?)</caption>(.*?)</table>", pages["faithful"], re.DOTALL))
    rows = {name: re.findall(r'<th scope="row">(.*?)</th>', body) for name, body in tables.items()}
    assert rows["weights"] == ["1", "2"]
    assert rows["means"] == ["1", "2"]
    assert rows["covariances, 1"] == list(faithful.data.columns)


def test_matplotlib_is_imported_only_when_a_figure_is_asked_for():
    code = (
        "import sys, ppvae; ppvae.report; assert 'matplotlib' not in sys.modules; ppvae.report.density; assert 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "samples" in dir(report)
    with pytest.raises(AttributeError):
        report.nothing  # noqa: B018


def test_a_browser_shows_it_on_a_narrow_screen(pages, tmp_path):
    """Every picture loads, and nothing but the tables' own boxes is wider than the screen."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to look at the page with")
    measure = (
        "<script>addEventListener('load', () => document.title = JSON.stringify(["
        "document.documentElement.scrollWidth <= innerWidth, [...document.images].every(i => i.naturalWidth > 0)]))</script>"
    )
    path = tmp_path / "report.html"
    path.write_text(pages["holes"].replace("</body>", measure + "</body>"), encoding="utf-8")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    options = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [browser, *options, *sandbox, "--window-size=500,900", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>[true,true]</title>" in done.stdout
