"""What a story observes, found from the program by value: which columns of the table each observed site's values are copies of, and which
columns its distributions read.

Every entry of a made-up batch holds a number of its own, so a site that copies entries tells where they lay: a slice, a loop over
columns, a stack, a permutation, whole numbers. A site that does anything else with them (their logarithm) has no columns. With the latents
held, a distribution that moves when the batch does reads it (an autoregression).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.failures import MISTAKES
from ppvae.inference.method import seeded
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import Program, Site, is_row_site, random_sites, unwrapped
from ppvae.program.values import moved
from ppvae.tables import numbered

Draws = dict[str, Tensor]
Sites = dict[str, Site]
Run = tuple[Tensor, Sites]  # rows, and the story's sites on them

ROWS = 3  # of the made-up batch
TRIED = 20  # of the data, before anything is fitted
REDRAWS = 8  # of the latents, to see whether a score moves with them: few enough values may come twice


@dataclass(frozen=True)
class Layer:
    """What can be drawn once the columns before it are there: these latents, and these entries of the observed sites."""

    latents: list[str]
    entries: dict[str, list[int]]


@dataclass(frozen=True)
class Observed:
    """What a story observes of rows with these columns.

    story: the model's name.  names: of the columns.  order: the story's sites.  columns: {site: the column of each entry of its value}, of
    the sites that copy the rows.  shapes: {site: the shape of a row's value}.  made: the sites whose values are made of the rows otherwise.
    conditions: what else is observed (a factor, a constant, a context) and says something of the rows' latents.
    reads: {site: (E, D), whether each entry's distribution reads each column}, where any does; a latent is one entry.
    totals: the sites whose draws, not their scores, take something from the row itself, as a number of throws.  exceeded: those that hold
    more than their multinomial draws.  latents: what the story samples.  recomputed: whether what it computes (pyro.deterministic) reads
    the rows.  plain: whether all this is so of any rows: the sites copy them whatever they hold.
    """

    story: str
    names: Sequence[str]
    order: tuple[str, ...]
    columns: dict[str, list[int]]
    shapes: dict[str, torch.Size]
    dtype: torch.dtype
    made: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    reads: dict[str, Tensor] = field(default_factory=dict)
    totals: tuple[str, ...] = ()
    exceeded: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()
    recomputed: bool = False
    plain: bool = False

    def value(self, site: str, x: Tensor) -> Tensor:
        """A site's value, (..., B, *shape), in a table (..., B, D)."""
        return x[..., self.columns[site]].reshape(*x.shape[:-1], *self.shapes[site])

    def flat(self, site: str, value: Tensor) -> Tensor:
        """A site's value (..., B, *shape) with its entries in one dim, (..., B, E)."""
        return value.reshape(*value.shape[: value.ndim - len(self.shapes[site])], prod(self.shapes[site]))

    def table(self, values: Draws) -> Tensor:
        """The table (..., B, D) whose columns the sites' values are, {site: (..., B, *shape)}. Raises ValueError as `check_table` does."""
        self.check_table()
        flat = {name: self.flat(name, values[name]).to(self.dtype) for name in self.columns}
        if list(self.columns.values()) == [list(range(len(self.names)))]:
            return next(iter(flat.values()))
        lead = torch.broadcast_shapes(*(entries.shape[:-1] for entries in flat.values()))
        x = next(iter(flat.values())).new_empty((*lead, len(self.names)))
        for name, entries in flat.items():
            x[..., self.columns[name]] = entries
        return x

    def observers(self, column: int) -> list[str]:
        """The sites that copy a column."""
        return [name for name, columns in self.columns.items() if column in columns]

    def check_table(self, wanted: Iterable[int] | None = None) -> None:
        """Raise ValueError unless every column, or each of those `wanted`, is the value of one site, once."""
        places = range(len(self.names)) if wanted is None else list(wanted)
        if self.made and places:
            raise ValueError(
                f"{self.story}: what {few(self.made)} observes is made of batch.x and none of its columns, so rows cannot be told from it: "
                "observe batch.x itself (a logarithm by a TransformedDistribution, classes by a Categorical), or transform the table first"
            )
        for place, name in ((place, self.names[place]) for place in places):
            sites = self.observers(place)
            if not sites:
                raise ValueError(
                    f"{self.story}: no site observes column {name}, so it cannot be told: what is known of every row belongs in "
                    "Data(x, context=...), and all of batch.x in observed sites"
                )
            if sum(columns.count(place) for columns in self.columns.values()) > 1:
                raise ValueError(f"{self.story}: column {name} is observed more than once, in {few(sites)}: let one site observe it")

    def check_draws(self, given: Iterable[str] = ()) -> None:
        """Raise ValueError where no table can be drawn by running the story forwards with the latents `given` held."""
        self.check_table()
        besides = [name for name in self.reads if name in self.order and name not in (*self.columns, *self.latents)]
        if besides:
            raise ValueError(
                f"{self.story}: {few(besides)} weighs the rows besides the sites that observe them, which no draw of rows heeds: let the "
                "distributions of those sites say it"
            )
        if self.exceeded:
            raise ValueError(
                f"{self.story}: {few(self.exceeded)} holds more than its distribution ever draws: say how much a row holds, as in "
                "Multinomial(total_count, probs)"
            )
        if self.conditions and set(self.latents) - set(given):
            raise ValueError(
                f"{self.story}: {few(self.conditions)} is observed besides the columns and says something of the latents, which draws from "
                "the prior do not heed: draw the rows of data again, fit.replicate(data)"
            )
        if self.reads:
            self.layers(given)

    def check_unread(self, what: str) -> None:
        """Raise ValueError where the distribution of a table's entries reads the table."""
        if self.reads or self.totals:
            raise ValueError(f"{self.story}: the distribution of {few(self.reads or self.totals)} reads batch.x, so {what}")

    def check_holes(self, holes: Tensor) -> None:
        """Raise ValueError where a distribution reads a column with missing entries. holes: (D,) bool."""
        for name, columns in self.reads.items():
            read = (columns.any(0) & holes.to(columns.device)).nonzero().flatten().tolist()
            if read:
                raise ValueError(
                    f"{self.story}: {name} is given {few(self.names[j] for j in read)}, read from batch.x, which is not known where it is "
                    "missing: leave such rows out, or let the story sample what it reads as a latent"
                )

    def layers(self, given: Iterable[str] = ()) -> list[Layer]:
        """The order of drawing: an entry comes after the columns that its distribution reads, and after the latents before it in the story.
        Raises ValueError where there is none."""
        done, drawn = set(given), torch.zeros(len(self.names), dtype=torch.bool)
        left = {name: list(range(len(columns))) for name, columns in self.columns.items()}
        found: list[Layer] = []
        while any(left.values()) or not done.issuperset(self.latents):
            layer = Layer([], {})
            for name in self.order:
                if name in self.latents and name not in done:
                    if self._waits(name, 0, drawn):
                        break
                    layer.latents.append(name)
                if left.get(name):
                    ready = [e for e in left[name] if not self._waits(name, e, drawn)]
                    if ready:
                        layer.entries[name] = ready
            if not layer.latents and not layer.entries:
                stuck = next(name for name in self.order if left.get(name) or (name in self.latents and name not in done))
                raise ValueError(
                    f"{self.story}: the distribution of {stuck} reads batch.x, and in no order of the columns can each be drawn after "
                    "those that it is given: let what is read come before, or give it as Data(x, context=...)"
                )
            done.update(layer.latents)
            for name, entries in layer.entries.items():
                left[name] = sorted(set(left[name]) - set(entries))
                drawn[[self.columns[name][e] for e in entries]] = True
            found.append(layer)
        return found

    def _waits(self, site: str, entry: int, drawn: Tensor) -> bool:
        """Whether an entry's distribution reads columns that are not drawn yet."""
        return site in self.reads and bool((self.reads[site][entry] & ~drawn).any())

    def drawn(self, program: Program, batch: Batch, given: Draws) -> Draws:
        """{site: its value} of every site, for rows like the batch's, with the latents `given` held. Uses torch's global generator.

        Raises ValueError as `check_draws` does.
        """
        self.check_draws(given)
        if not self.reads and not self.recomputed:
            return self._run(program, batch, given) if batch.x.any() or not self.totals else self._blank(program, batch, given)
        held, x = dict(given), batch.x.clone()
        for layer in self.layers(given):
            values = self._run(program, replace(batch, x=x), held)
            held |= {name: values[name] for name in layer.latents}
            x = x.clone()
            for name, entries in layer.entries.items():
                x[:, [self.columns[name][e] for e in entries]] = self.flat(name, values[name])[:, entries].to(x)
        return _values(poutine.trace(poutine.condition(program, data=held)).get_trace(replace(batch, x=x)))

    def _blank(self, program: Program, batch: Batch, given: Draws) -> Draws:
        """`_run` of rows that are yet to be made, for sites that draw as much as a row holds, which may be nothing."""
        try:
            values = self._run(program, batch, given)
        except MISTAKES:
            values = {}
        if not any(values[name].any() for name in self.totals if name in values):
            raise ValueError(
                f"{self.story}: {few(self.totals)} takes how much a row holds from batch.x itself, so new rows hold nothing: give that as "
                "Data(x, context=...)"
            )
        return values

    def _run(self, program: Program, batch: Batch, held: Draws) -> Draws:
        return _values(poutine.trace(poutine.condition(Forwards(self.columns)(program), data=held)).get_trace(batch))


class Forwards(Messenger):
    """Draws these sites in the place of observing them. What a story computes (pyro.deterministic) is computed, and a context stays."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.sites:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def _values(trace: poutine.Trace) -> Draws:
    """What each sample site of a run holds; a factor holds nothing."""
    return {name: site["value"] for name, site in random_sites(trace).items() if not isinstance(unwrapped(site["fn"]), dist.Unit)}


def is_computed(site: Site) -> bool:
    """Whether the site is a pyro.deterministic."""
    return bool(site["infer"].get("_deterministic"))


def observed(
    model: Model, theta: Parameters, batch: Batch, names: Sequence[str] | None = None, middle: Sequence[float] | None = None
) -> Observed:
    """What the story observes of such rows. Some ten runs of the story on three rows.

    names: of the columns.  middle: a typical value of each, where the batch's own rows are yet to be drawn.
    """
    return _Trial(model, theta, batch, middle).read(numbered(batch.x.shape[1]) if names is None else names)


def check_observed(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError for a story whose scores of these rows are wrong at any parameters: where they move with entries that are missing,
    or where two sites score the same entry. Tried a step away from theta, where no coefficient is 0, if the story runs there."""
    batch, near = data.batch(torch.arange(min(TRIED, data.n_rows), device=data.device)), moved(theta)
    try:
        sites = _held(model, near, batch, {})
    except MISTAKES:  # the story's own conditions on its parameters
        near, sites = theta, _held(model, theta, batch, {})
    check_once(model, near, batch, sites)
    check_holes_unread(model, near, data)


def others(batch: Batch) -> Tensor:
    """Rows whose observed entries are those of other rows, other numbers wherever their columns have any."""
    x, seen = batch.x, batch.observed
    for step in range(1, batch.size):
        there, there_too = batch.x.roll(step, 0), batch.observed.roll(step, 0)
        x = torch.where(seen & there_too & (x == batch.x) & (there != batch.x), there, x)
    return x


def check_once(model: Model, theta: Parameters, batch: Batch, sites: Sites) -> None:
    """Raise ValueError where two sites score the same entry of a row."""
    columns = _Trial(model, theta, batch, None).columns()
    for column in range(batch.x.shape[1]):
        twice = [name for name, places in columns.items() if column in places]
        if len(twice) < 2:
            continue
        x = torch.where(torch.arange(batch.x.shape[1], device=batch.x.device) == column, others(batch), batch.x)
        scored = torch.zeros(batch.size, dtype=torch.int, device=x.device)
        for name in twice:
            fn, value = sites[name]["fn"], sites[name]["value"]
            other = x[:, columns[name]].reshape(value.shape).to(value)
            scored += ~_close(fn.log_prob(other), fn.log_prob(value))
        if (scored > 1).any():
            raise ValueError(
                f"{model.name}: {few(twice)} score the same column of the same rows, batch.x[..., {column}]: let one observe it"
            )


def check_holes_unread(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError where a score moves with what stands in the place of missing entries."""
    if data.complete:
        return
    missing, look = ~data.observed, slice(0, 1000)
    batch = data.batch(missing.int().argmax(0)[missing.any(0)].unique())  # for each column a row without it
    there = data.observed[look] & (data.x[look] != 0)
    some = data.x[look].gather(0, there.int().argmax(0, keepdim=True))[0]
    some = torch.where(there.any(0), some, 1.0)  # an entry of each column, of those that it may have, but 0
    sites = _held(model, theta, batch, {})
    latents = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    filled = _held(model, theta, replace(batch, x=torch.where(batch.observed, batch.x, some)), latents)
    for name, site in sites.items():
        if not _close(site["log_prob"], filled[name]["log_prob"]).all():
            raise ValueError(
                f"{model.name}: the score of {name} moves with what stands where entries are missing: leave them out, as "
                ".mask(batch.observed) does, and what it reads of batch.x must be known for every row, as Data(x, context=...)"
            )


def _held(model: Model, theta: Parameters, batch: Batch, latents: Draws) -> Sites:
    """The story's sites, scored, on these rows, with these latents held."""
    with seeded(0, batch.x.device), torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(partial(model.model, theta), data=latents)).get_trace(batch)
        trace.compute_log_prob()
    return random_sites(trace)


class _Trial:
    """The story on a few made-up rows, its latents held."""

    def __init__(self, model: Model, theta: Parameters, batch: Batch, middle: Sequence[float] | None) -> None:
        self.name, self.program, self.real = model.name, partial(model.model, theta), middle is None
        rows = batch.take(torch.arange(ROWS, device=batch.x.device) % batch.size)
        x = rows.x if middle is None else rows.x.new_tensor(middle).repeat(ROWS, 1)
        self.rows = replace(rows, x=x, observed=torch.ones_like(x, dtype=torch.bool), complete=True)
        self.width = x.shape[1]
        self.base: Sites = self.run(x, {})
        self.latents = {name: site["value"] for name, site in self.base.items() if not site["is_observed"]}
        self.seen = [name for name, site in self.base.items() if site["is_observed"] and not is_computed(site)]

    def run(self, x: Tensor, held: Draws, seed: int = 0) -> Sites:
        """The story's sites on rows x, these latents held."""
        with seeded(seed, x.device), torch.no_grad(), pyro.validation_enabled(False):
            return random_sites(poutine.trace(poutine.condition(self.program, data=held)).get_trace(replace(self.rows, x=x)))

    def tried(self, x: Tensor) -> Sites | None:
        """The same; None where the story cannot take such rows, as labels beyond its classes."""
        try:
            return self.run(x, self.latents)
        except MISTAKES:
            return None

    @cached_property
    def codes(self) -> Tensor:
        """Rows of numbers that are all different, none of them 0 or 1."""
        return torch.arange(ROWS * self.width, device=self.rows.x.device).reshape(ROWS, -1).to(self.rows.x) + 7.25

    @cached_property
    def coded(self) -> Sites | None:
        return self.tried(self.codes)

    @cached_property
    def others(self) -> list[Run]:
        """The story on other rows: far above and below, of noughts and of ones, as far as it can take them."""
        tables = (-self.codes, torch.zeros_like(self.codes), torch.ones_like(self.codes))
        runs = [(self.codes, self.coded), *((x, self.tried(x)) for x in tables)]
        return [(x, sites) for x, sites in runs if sites is not None and sites.keys() == self.base.keys()]

    def columns(self) -> dict[str, list[int]]:
        """The column of each entry of the sites that copy the rows."""
        return {name: found for name in self.seen if (found := self.copied(name) or self.spelled(name)) is not None}

    def read(self, names: Sequence[str]) -> Observed:
        columns = self.columns()
        made = tuple(name for name in self.seen if name not in columns and self.moves(name))
        values = {name: self.scorable(name, columns) for name in (*self.latents, *self.seen) if name not in made}
        reading = {name: v for name, v in values.items() if any(_apart(self.base[name], o[name], v).any() for _, o in self.others)}
        beside = [name for name in self.seen if name not in columns and name not in made]
        return Observed(
            story=self.name,
            names=names,
            order=tuple(self.base),
            columns=columns,
            shapes={name: self.base[name]["fn"].event_shape for name in columns},
            dtype=self.rows.x.dtype,
            made=made,
            conditions=tuple(self.conditions(beside)),
            reads=self.reads(reading),
            totals=tuple(n for n in columns if n not in reading and any(_unlike(self.base[n]["fn"], o[n]["fn"]) for _, o in self.others)),
            exceeded=tuple(name for name in columns if self.exceeds(self.base[name])),
            latents=tuple(self.latents),
            recomputed=any(is_computed(site) and self.moves(name) for name, site in self.base.items()),
            plain=self.plain(columns) and not reading,
        )

    def entries(self, name: str, sites: Sites | None) -> Tensor | None:
        """A site's value, (rows, E); None where it is none of a row each, as the value of a factor."""
        event = self.base[name]["fn"].event_shape
        value = None if sites is None or name not in sites else sites[name]["value"]
        return value.reshape(ROWS, -1).double() if value is not None and value.shape == (ROWS, *event) and event.numel() else None

    def moves(self, name: str) -> bool:
        """Whether a site's value is another on other rows."""
        return any(not _same(self.base[name]["value"], sites[name]["value"]) for _, sites in self.others)

    def copied(self, name: str) -> list[int] | None:
        """The columns of a site's entries, read off its value on rows of codes, or on the whole numbers below them; None for no copy."""
        value, here = self.entries(name, self.coded), self.entries(name, self.base)
        if value is None or here is None:
            return None
        place = (value.floor() - 7).long()
        if not bool(((place >= 0) & (place < self.codes.numel())).all()):
            return None
        columns, code = place[0] % self.width, self.codes.double().flatten()[place]
        own = bool((place == columns + self.width * torch.arange(ROWS, device=place.device).unsqueeze(1)).all())
        cut = _same(value, code.floor()) and (_same(here, self.rows.x[:, columns].double()) or not self.real)
        return columns.tolist() if own and (_same(value, code) or cut) else None

    def plain(self, columns: dict[str, list[int]]) -> bool:
        """Whether every column is copied on rows of codes too, to the last digit."""
        values = {name: self.entries(name, self.coded) for name in columns}
        return sorted(j for places in columns.values() for j in places) == list(range(self.width)) and all(
            value is not None and _same(value, self.codes[:, columns[name]].double()) for name, value in values.items()
        )

    @cached_property
    def spelling(self) -> list[tuple[Tensor, Sites | None]]:
        """Runs on rows in which every column spells its number, a binary place at a time; then on rows that differ, and on quarters."""
        number = torch.arange(1, self.width + 1, device=self.rows.x.device)
        odd = torch.arange(ROWS, device=number.device).unsqueeze(1) % 2
        rows = [*(((number >> bit) & 1).expand(ROWS, -1) for bit in range(self.width.bit_length())), odd.expand(-1, self.width)]
        tables = [*(x.to(self.rows.x).contiguous() for x in rows), torch.full_like(self.rows.x, 0.25)]
        return [(x, self.tried(x)) for x in tables]

    def spelled(self, name: str) -> list[int] | None:
        """The same for stories that take few values, as those that look classes up."""
        here = self.entries(name, self.base)
        if here is None:
            return None
        found = [self.entries(name, sites) for _, sites in self.spelling]
        bits = [value[0] for value in found[:-2] if value is not None and bool(((value[0] == 0) | (value[0] == 1)).all())]
        if len(bits) < len(found) - 2:
            return None
        columns = torch.stack([bit.long() << place for place, bit in enumerate(bits)]).sum(0) - 1
        if not bool(((columns >= 0) & (columns < self.width)).all()):
            return None
        for (x, _), value in zip([*self.spelling, (self.rows.x, self.base)], [*found, here], strict=True):
            expected = x[:, columns].double()
            if value is None or not (_same(value, expected) or (self.coded is None and _same(value, expected.trunc()))):
                return None
        return columns.tolist()

    def exceeds(self, site: Site) -> bool:
        """Whether a site holds more than a multinomial draws."""
        fn = unwrapped(site["fn"])
        return isinstance(fn, dist.Multinomial | dist.DirichletMultinomial) and not bool(fn.support.check(site["value"]).all())

    def scorable(self, name: str, columns: dict[str, list[int]]) -> Tensor:
        """A value that the site's distribution can score: where it observes rows, which are made up, a draw."""
        if name not in columns:
            return self.base[name]["value"]
        with seeded(0, self.rows.x.device), torch.no_grad():
            return self.base[name]["fn"].sample()

    def conditions(self, names: Sequence[str]) -> list[str]:
        """Those of the sites whose scores move with the rows' own latents."""
        shared = {name: value for name, value in self.latents.items() if not is_row_site(self.base[name])}
        runs = [self.run(self.rows.x, shared, seed) for seed in range(1, REDRAWS)] if names else []
        return [name for name in names if any(_apart(self.base[name], run[name], self.base[name]["value"]).any() for run in runs)]

    def reads(self, values: Draws) -> dict[str, Tensor]:
        """{site: (E, D)}: the columns that move each entry's distribution, each moved alone, and each alone left."""
        found = {n: torch.zeros(max(1, self.base[n]["fn"].event_shape.numel()), self.width, dtype=torch.bool) for n in values}
        if not values:
            return found
        for x, sites in self.others:
            for j in range(self.width):
                for start, end, there in ((self.rows.x, x, self.base), (x, self.rows.x, sites)):
                    moved = self.tried(torch.where(torch.arange(self.width, device=x.device) == j, end, start))
                    if moved is None:
                        continue
                    for name, value in values.items():
                        found[name][:, j] |= _apart(there[name], moved[name], value).cpu()
        for columns in found.values():
            if not columns.any():  # several at once alone move it
                columns[:] = True
        return found


def _apart(one: Site, two: Site, value: Tensor) -> Tensor:
    """(E,): which entries the two distributions score differently; all of them where they hang together."""
    entries = max(1, one["fn"].event_shape.numel())
    with torch.no_grad():
        if one["fn"].batch_shape == two["fn"].batch_shape and _close(one["fn"].log_prob(value), two["fn"].log_prob(value)).all():
            return torch.zeros(entries, dtype=torch.bool, device=value.device)
        a, b = unwrapped(one["fn"]), unwrapped(two["fn"])
        if not a.event_shape and a.batch_shape == b.batch_shape == value.shape:
            apart = ~_close(a.log_prob(value), b.log_prob(value)).reshape(ROWS, -1).all(0)
            if apart.any():
                return apart
    return torch.ones(entries, dtype=torch.bool, device=value.device)


def _unlike(one: dist.TorchDistribution, two: dist.TorchDistribution) -> bool:
    """Whether the two distributions hold other numbers, whatever they score."""
    mine, theirs = vars(unwrapped(one)), vars(unwrapped(two))
    return any(isinstance(value, Tensor) and isinstance(theirs.get(n), Tensor) and not _same(value, theirs[n]) for n, value in mine.items())


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and bool(torch.where(one.isnan(), two.isnan(), one == two).all())


def _close(one: Tensor, two: Tensor) -> Tensor:
    """Whether scores are the same up to rounding."""
    return torch.isclose(one, two, rtol=torch.finfo(one.dtype).eps ** 0.5, atol=0.0, equal_nan=True)
