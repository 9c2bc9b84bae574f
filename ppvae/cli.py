"""The command line: the words of the Python interface, on tables in files. Everything heavy is imported by the command that needs it."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppvae.places import check_new, check_page

if TYPE_CHECKING:
    import pandas as pd

    from ppvae.data import Data
    from ppvae.inference.result import Fit
    from ppvae.model import Model

app = typer.Typer(
    help="Fit a latent-variable model every way that it allows, and see how far each fit is from the truth.\n\n"
    "\b\nExample:\n  ppvae compare gmm faithful --set n_components=2 --methods em,svi --seeds 3 --report report.html",
    add_completion=False,
    rich_markup_mode=None,  # plain help is twice as quick
    pretty_exceptions_enable=False,
)

# --- the arguments, each described once ---------------------------------------------------------------------------------------------

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model (`ppvae models`), or your own: path/file.py[:Name].")]
DataName = Annotated[str, typer.Argument(metavar="DATA", help="A data set (`ppvae datasets`), or a .csv, .npy or .parquet file.")]
Folder = Annotated[Path, typer.Argument(metavar="FIT", help="The folder of a saved fit (`ppvae fit --out`).")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="An option of the model (`ppvae models` lists them, priors too); give it once for each."
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of every random draw.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="A new .csv, .npy or .parquet file; by default CSV is printed.")]
Columns = Annotated[str | None, typer.Option(metavar="A,B", help="The columns to take, with commas between (for an .npy file: to name).")]
Context = Annotated[
    str | None, typer.Option(metavar="A,B", help="The columns that a conditional model is given; `labels`: a data set's known classes.")
]
Rescale = Annotated[bool, typer.Option("--rescale", help="Map the values onto [0, 1], as the Bernoulli likelihood needs.")]
Mapped = Annotated[
    bool, typer.Option("--rescale", help="The values are to be mapped as the fit's were; they are, without a note that says so.")
]
Pictures = Annotated[str | None, typer.Option("--image-shape", metavar="H,W", help="The height and width of rows that are pictures.")]
Precision = Annotated[str | None, typer.Option("--dtype", metavar="float64|float32", help="The precision of the fit.")]
Device = Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where to fit.")]
Json = Annotated[bool, typer.Option("--json", help="Print the tables as JSON, and nothing else.")]

HEADINGS = {
    "log_likelihood": "log-likelihood",
    "heldout_log_likelihood": "held-out log-likelihood",
    "hidden_log_likelihood": "hidden entries (nats each)",
    "hidden_rmse": "hidden entries (rms error, sd)",
    "elbo": "ELBO",
    "kl": "KL",
    "rows_kind": "rows",
    "p_value": "p",
}
AT_RANDOM = "Missing entries are assumed missing at random (MAR): whether one is may depend on what was observed, not on its own value."
LEAST_LOSS = 1e-6  # nats per row: less is rounding, and has no parts worth a table
ROUNDING = 1e-9  # nats per row: less is no score or difference of scores
LONGEST_TABLE = 40  # rows printed; more than a screen is what --json and the report are for


@app.command()
def compare(
    model: ModelName,
    data: DataName,
    set_: Options = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="By default all that the model allows. With options: em:acceleration=squarem,svi:steps=500:particles=4."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many starts each method gets: the seeds 0, 1, ...")] = 1,
    holdout: Annotated[float, typer.Option(help="The share of the rows that no method sees, only scored.")] = 0.0,
    holdout_entries: Annotated[float, typer.Option(help="The share of the training entries that no method sees, only scored.")] = 0.0,
    report: Annotated[Path | None, typer.Option(help="Write the report, one HTML file, here; one that is there is replaced.")] = None,
    columns: Columns = None,
    context: Context = None,
    rescale: Rescale = False,
    image_shape: Pictures = None,
    dtype: Precision = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fit a model by several methods, and compare the fits.

    All methods of a seed start from the same place and are scored by the same code, in nats per row (higher is better).

    \b
    Example:
      ppvae compare gmm faithful --set n_components=2 --methods em,svi:steps=2000 --seeds 3 --report report.html
    """
    if report:
        check_page(report)
    from ppvae import terminal

    with terminal.progress("comparing") as progress:
        import ppvae
        from ppvae.registry import load_methods

        found = ppvae.compare(
            _model(model, set_),
            _data(data, rescale, columns, context, image_shape),
            load_methods(methods) if methods else None,
            seeds=seeds,
            holdout=holdout,
            holdout_entries=holdout_entries,
            dtype=dtype,
            device=device,
            progress=progress,
        )
        lossy = found.gaps[found.gaps["total"].abs() > LEAST_LOSS]  # found while the bar is shown, as it takes a while
        if report:
            found.save(report)
    if json:
        about = {"model": found.model.describe(), "data": found.data.name, "unit": "nats per row"}
        tables = {"table": found.table, "summary": found.summary.reset_index(), "gaps": found.gaps, "distances": found.distances}
        terminal.show_json({**about, **tables, "report": _word(report)})
        return
    from ppvae.report.words import headline, lost_against

    terminal.show(_scores(found.table), rename=HEADINGS)
    terminal.say(headline(found) + ".")
    if found.model.no_density:
        terminal.say(f"Beware: {found.model.no_density}.")
    if len(lossy):
        terminal.say("", f"What a fit's ELBO loses against {lost_against(found)}, in nats per row:")
        terminal.show(_scores(lossy))
    if report:
        terminal.say(f"The report is in {report}.")


@app.command()
def fit(
    model: ModelName,
    data: DataName,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Save the fit in this new folder.")],
    set_: Options = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="By default the best that the model allows. With options: em:acceleration=squarem.")
    ] = None,
    seed: Seed = 0,
    columns: Columns = None,
    context: Context = None,
    rescale: Rescale = False,
    image_shape: Pictures = None,
    dtype: Precision = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Fit a model by one method and save the fit.

    \b
    Example:
      ppvae fit gmm faithful --set n_components=2 --method em --out geyser
    """
    check_new(out)
    from ppvae import terminal

    with terminal.progress("fitting") as progress:
        import ppvae
        from ppvae.registry import load_methods

        chosen = load_methods(method) if method else [None]
        if len(chosen) > 1:
            raise ValueError(f"fit takes one method, not {len(chosen)}: use compare for several")
        table = _data(data, rescale, columns, context, image_shape)
        found = ppvae.fit(_model(model, set_), table, chosen[0], seed=seed, dtype=dtype, device=device, progress=progress)
        result = _scored(found, table)
        found.save(out)
    if json:
        about = {"model": found.model.describe(), "data": table.name, "unit": "nats per row"}
        parameters = {name: value.tolist() for name, value in found.params.items()}
        terminal.show_json({**about, "table": result, "parameters": parameters, "folder": str(out)})
        return
    terminal.show(_scores(result), rename=HEADINGS)
    if not table.complete:
        terminal.say(AT_RANDOM)
    terminal.say(f"The fit is in {out}.")


@app.command()
def check(
    fit: Folder,
    data: DataName,
    draws: Annotated[int, typer.Option(min=20, help="How many data sets to replicate.")] = 200,
    seed: Seed = 0,
    report: Annotated[Path | None, typer.Option(help="Write the checks, one HTML file, here; one that is there is replaced.")] = None,
    columns: Columns = None,
    context: Context = None,
    rescale: Mapped = False,
    json: Json = False,
) -> None:
    """Check whether a fitted model makes data like the data.

    Statistics of replicated tables are set beside those of the data, for the same rows and for new ones.

    \b
    Example:
      ppvae check geyser faithful --draws 500 --report checks.html
    """
    if report:
        check_page(report)
    from ppvae import terminal

    with terminal.progress("checking"):
        import ppvae

        fitted = ppvae.load(fit)
        table = _known(fitted, data, rescale, columns, context)
        found = ppvae.check(fitted, table, draws=draws, seed=seed)
        if report:
            from ppvae.report import page

            page.write_check(found, report)
    if json:
        terminal.show_json({"model": found.fit.model.describe(), "data": found.data.name, "table": found.table, "report": _word(report)})
        return
    if len(found.table) <= LONGEST_TABLE:
        terminal.show(found.table, rename=HEADINGS)
    else:
        furthest = found.surprising.head(LONGEST_TABLE)
        terminal.show(furthest, rename=HEADINGS)
        terminal.say(f"Of {len(found.table)} statistics these {len(furthest)} are the furthest from their replicates (--json prints all).")
    terminal.say(found.summary + ".")
    if report:
        terminal.say(f"The report is in {report}.")


@app.command()
def sample(
    fit: Folder,
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows.")] = 100,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="A=1,B=word", help="What a conditional model is given: a number or a word for each column, by name or in order."
        ),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Draw new rows from a saved fit, in the units of the table before any --rescale.

    \b
    Example:
      ppvae sample geyser -n 100 --out new.csv
    """
    from ppvae import tables

    if out:
        tables.check_destination(out)
    import pandas as pd

    import ppvae

    fitted = ppvae.load(fit)
    rows = fitted.trained_on.restored(fitted.sample(n, seed=seed, context=_given(context)))
    drawn = pd.DataFrame(rows, columns=list(fitted.trained_on.columns))
    _deliver(drawn, out, f"{n} rows are drawn", json)


@app.command()
def impute(
    fit: Folder,
    data: DataName,
    draws: Annotated[
        int | None, typer.Option(min=1, help="How many completed tables to draw, told apart by a column `draw`; by default one of means.")
    ] = None,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="With --draws: draw the parameters too, a refit to resampled rows for each table.")
    ] = False,
    seed: Seed = 0,
    out: Out = None,
    columns: Columns = None,
    context: Context = None,
    json: Json = False,
) -> None:
    """Fill in the missing entries of a table.

    Rows, columns and whatever is not missing stay as they are; the columns that the fit knows, those of its context too, are found by their
    names. Entries are read and written in the units of the table, also where the fit's were mapped by --rescale.
    What is not missing in a .csv file is copied to the letter; in a .parquet file made from it, what the fit does not know is text.
    With --draws the completed tables stand one below the other, the first N rows being draw 0; in an .npy file too, where the first
    column is the number of the draw: (draws * N, 1 + columns).
    Entries are assumed missing at random (MAR): whether one is may depend on what was observed, not on its own value.

    \b
    Example:
      ppvae impute air airquality --draws 20 --out imputed.parquet
    """
    from ppvae import tables, terminal
    from ppvae.registry import load_frame

    frame = load_frame(data, _split(columns))
    if out:
        tables.check_destination(out, frame)
    with terminal.progress("imputing"):
        import pandas as pd

        import ppvae

        fitted = ppvae.load(fit)
        if draws is not None and "draw" in frame.columns:
            raise ValueError("the table has a column `draw` already, the name by which --draws tells tables apart: rename it")
        holed = _holed(fitted, data, frame, columns, context)
        frame = frame.set_axis(tables.column_names(frame), axis=1)
        found = fitted.impute(_mapped(fitted, holed), draws=draws, seed=seed, bootstrap=bootstrap)
        found = fitted.trained_on.restored(found)
        kind = out.suffix.lower() if out else ".csv"
        if kind != ".npy":
            frame = tables.as_written(frame, Path(data), holed.columns, numbers=json or kind == ".parquet")
        if draws is None:
            filled = tables.completed(frame, holed.columns, found)
        else:
            filled = pd.concat({draw: tables.completed(frame, holed.columns, part) for draw, part in enumerate(found)}, names=["draw"])
            filled = filled.reset_index("draw")
            filled = filled if tables.labelled(frame) else filled.reset_index(drop=True)
    _deliver(filled, out, f"{int((~holed.observed).sum())} missing entries of {holed.n_rows} rows are filled in", json)
    if out and not json and not holed.complete:
        terminal.say(AT_RANDOM)


@app.command()
def graph(
    model: ModelName,
    data: Annotated[str | None, typer.Argument(help="Data to run the story on once; by default iris.", metavar="[DATA]")] = None,
    set_: Options = None,
    columns: Columns = None,
    context: Context = None,
    rescale: Rescale = False,
    image_shape: Pictures = None,
    out: Annotated[Path | None, typer.Option(help="Write the drawing to a new .svg file (needs Graphviz).")] = None,
) -> None:
    """Show a story as a directed graph, and the factorisation that it implies.

    \b
    Example:
      ppvae graph gmm faithful --set n_components=3 --out gmm.svg
    """
    from ppvae.program.graph import graph as read

    if out is not None:
        check_new(out)
        if out.suffix.lower() != ".svg":
            raise ValueError(f"cannot write {out}: name an .svg file")
    drawn = read(_model(model, set_), _data(data or "iris", rescale, columns, context, image_shape))
    if data is None:
        _note("no data are named, so the story is run on iris")
    if out is None:
        typer.echo(drawn.text)
    else:
        out.write_text(drawn.svg())
        typer.echo(f"The graph is in {out}.")


@app.command()
def laws(
    model: ModelName,
    data: DataName,
    set_: Options = None,
    seed: Seed = 0,
    columns: Columns = None,
    context: Context = None,
    rescale: Rescale = False,
    image_shape: Pictures = None,
    json: Json = False,
) -> None:
    """Check that a model keeps the laws.

    The laws say that its story, guide and closed forms belong together; the exit code is 1 where one is broken.

    \b
    Example:
      ppvae laws my_model.py:MyModel table.csv
    """
    from ppvae import terminal

    with terminal.progress("checking the laws"):
        import ppvae

        checked = _model(model, set_)
        found = ppvae.laws.check(checked, _data(data, rescale, columns, context, image_shape), seed=seed)
    if json:
        terminal.show_json({"model": checked.describe(), "table": found.table})
    else:
        terminal.show(found.table)
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def models(json: Json = False) -> None:
    """List the models and their options.

    \b
    Example:
      ppvae models --json
    """
    import pandas as pd

    from ppvae import registry, terminal

    listed = pd.DataFrame([{"model": name, "description": e.summary, "options": e.options} for name, e in registry.models().items()])
    terminal.show_json({"models": listed}) if json else terminal.show(listed)


@app.command()
def datasets(json: Json = False) -> None:
    """List the data sets that come with ppvae.

    \b
    Example:
      ppvae datasets --json
    """
    import pandas as pd

    from ppvae import terminal
    from ppvae.datasets import DATASETS

    columns = ["rows", "features", "missing", "description", "source"]
    listed = pd.DataFrame([{"data set": name, **{c: getattr(known, c) for c in columns}} for name, known in DATASETS.items()])
    terminal.show_json({"datasets": listed}) if json else terminal.show(listed)


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 where a law is broken, 2 with one sentence for a mistake, 130 where it was interrupted."""
    words = sys.argv[1:] if args is None else args
    try:
        if "" in words:  # a path of no letters would be the folder that one is in
            raise ValueError("one of the words is empty: give a name or a value there, or leave it out")
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)  # each is a note, whatever the environment makes of warnings
            warnings.showwarning = lambda message, *_: _note(str(message))
            code = app(args=words or ["--help"], prog_name="ppvae", standalone_mode=False)
    except typer.TyperException as error:
        code = _refuse(f"{error.format_message()} (see --help)")
    except ValueError as error:
        code = _refuse(str(error))
    except OSError as error:
        code = _refuse(f"{error.filename or 'the file'}: {error.strerror or error}")
    except typer.Abort:
        code = 130
    sys.exit(code)


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


def _refuse(sentence: str) -> int:
    print(f"ppvae: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


# --- from words to objects ----------------------------------------------------------------------------------------------------------


def _model(name: str, options: list[str] | None) -> "Model":
    from ppvae.options import pairs
    from ppvae.registry import load_model

    return load_model(name, **pairs(options or []))


def _data(name: str, rescale: bool, columns: str | None, context: str | None, image_shape: str | None = None) -> "Data":
    from ppvae.registry import load_data

    shape = None
    if image_shape is not None:
        height, _, width = image_shape.partition(",")
        if not (height.isdecimal() and width.isdecimal()):
            raise ValueError(f"--image-shape takes a height and a width, such as 28,28, not {image_shape!r}")
        shape = int(height), int(width)
    return load_data(name, rescale=rescale, columns=_split(columns), context=_split(context), image_shape=shape)


def _known(fit: "Fit", name: str, rescale: bool, columns: str | None, context: str | None) -> "Data":
    """The data of that name for a fit, which knows how its own were made: mapped by the same entries, and without --context with the
    columns that its context has."""
    from ppvae.registry import load_data, load_frame

    known, given = fit.trained_on, _split(context)
    if given is None and known.covariates:
        names = [covariate.name for covariate in known.covariates]
        given = names if set(names) <= set(load_frame(name).columns) else None
    if rescale and known.origin is not None and known.origin.range is None:
        raise ValueError("the values of the fit were not mapped by --rescale, so leave it out here")
    data = load_data(name, rescale=rescale and known.origin is None, columns=_split(columns), context=given, image_shape=known.image_shape)
    _note_places(fit, data, name)
    return _mapped(fit, data) if rescale else data


def _mapped(fit: "Fit", data: "Data") -> "Data":
    """Data in the units of the fit: mapped by --rescale, if the fit's were."""
    origin = fit.trained_on.origin
    return data if origin is None or origin.range is None else data.rescaled(origin.range)


def _holed(fit: "Fit", name: str, frame: "pd.DataFrame", columns: str | None, context: str | None) -> "Data":
    """A table to be imputed by a fit, without what the fit does not know."""
    from ppvae.data import Data
    from ppvae.registry import context_of, known_labels

    given = _split(context)
    if given is None:
        data = fit.trained_on.table(frame, _split(columns), besides=True)
    else:
        rest = frame.drop(columns=[column for column in given if column in frame.columns])
        chosen = fit.trained_on.table(rest, _split(columns), besides=True)
        data = Data(frame, context_of(frame, known_labels(name), given), list(chosen.columns))
    _note_places(fit, data, name)
    return data


def _split(names: str | None) -> list[str] | None:
    return [name.strip() for name in names.split(",")] if names else None


def _given(words: str | None) -> object:
    """The context in "30,f" or "age=30,sex=f": numbers and words, by their places or by name."""
    if words is None:
        return None
    pairs = [word.strip().partition("=") for word in words.split(",")]
    if all(equals for _, equals, _ in pairs):
        return {name: _number(value) for name, _, value in pairs}
    return [_number(word.strip()) for word in words.split(",")]


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _note_places(fit: "Fit", data: "Data", source: str) -> None:
    """Say so where a table's columns are taken for others by their position."""
    from ppvae.messages import few

    known = fit.trained_on
    if data.columns != known.columns and data.matched(known).columns != known.columns:
        _note(f"{source}: {few(data.columns)} are read as {few(known.columns)} by their position, for want of names")


def _scored(fit: "Fit", data: "Data") -> "pd.DataFrame":
    """One row: how the fit ended, and its scores on the data (nats per row)."""
    import pandas as pd

    evidence = fit.log_likelihood(data)
    row = {"method": fit.method.name, "seed": fit.seed, "status": fit.status, "log_likelihood": float(evidence.mean())}
    if not evidence.exact:
        row["log_likelihood_se"] = evidence.mean_standard_error
    row |= {"elbo": float(fit.elbo(data).mean()), "kl": float(fit.kl(data).mean()), "steps": fit.steps, "seconds": fit.seconds}
    return pd.DataFrame([row])


def _scores(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table of scores, those of rounding alone as 0."""
    numbers = table.select_dtypes("float")
    return table.assign(**numbers.mask(numbers.abs() < ROUNDING, 0.0))


def _deliver(table: "pd.DataFrame", out: Path | None, done: str, json: bool) -> None:
    """Write the table to `out`, or print it; say what is done."""
    from ppvae import tables, terminal

    if out:
        tables.write_table(table, out)
    if json:
        terminal.show_json({"table": table, "file": _word(out)})
    elif out:
        terminal.say(f"{done}: {out}.")
    else:
        print(tables.to_csv(table), end="")


def _word(path: Path | None) -> str | None:
    return None if path is None else str(path)


if __name__ == "__main__":
    main()
