"""Fit: what a method found, and everything that can be asked of it."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn

from ppvae.data import Batch, Data, Summary
from ppvae.exact import Exact, ExactGuide, Posterior, kl
from ppvae.factors import Factors
from ppvae.inference.method import Method, seeded
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.options import counted, seed_of
from ppvae.origin import from_names
from ppvae.parameters import Parameters
from ppvae.program.derive import Derived, exact_forms
from ppvae.program.given import rows_log_likelihood
from ppvae.program.joint import Program, in_draws, is_finite, is_row_site, latent_sites, log_terms, random_sites, sites_of
from ppvae.program.observed import Observed, observed
from ppvae.program.read import read_guide
from ppvae.program.story import check_holes, check_runs
from ppvae.ranges import check_rows
from ppvae.scores import (
    AT_ONCE,
    Scores,
    by_chunks,
    exact_log_marginal,
    predictive_density,
    sampled_elbo,
    sampled_evidence,
    shared_divergence,
)
from ppvae.shared import Draws, shared_sites

CERTIFIED: "WeakKeyDictionary[Fit, WeakKeyDictionary[Data, Exact | None]]" = WeakKeyDictionary()  # what was found, and on which rows


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of a fit: frozen.

    model, method: what was fitted, and how.  theta: the parameters.  guide: q(latents | x); the exact posterior after EM.
    history: a DataFrame (step, seconds, elbo, log_likelihood, heldout_elbo; nats per row).  status: a sentence that says what to try next.
    converged, steps, seconds, seed.  engine: what ran, and why.  trained_on: the shape of the training data.
    """

    model: Model
    method: Method
    theta: Parameters = field(repr=False)
    guide: nn.Module = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    status: str
    converged: bool
    seconds: float
    steps: int
    seed: int
    engine: str
    trained_on: Summary = field(repr=False)

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Constrained values by public name; posterior means of what all rows share; networks by the names of their weights."""
        values = {name: value.cpu().numpy() for name, value in self.theta.values().items()}
        values |= {name: value.mean(0) for name, value in self.shared_draws().items()}
        for name, network in self.theta.named_children():
            values |= {f"{name}.{key}": value.cpu().numpy().copy() for key, value in network.state_dict().items()}
        return values

    @property
    def program(self) -> Program:
        """The story with these parameters: a Pyro model function of a batch."""
        return partial(self.model.model, self.theta)

    @property
    def exact(self) -> Exact | None:
        """`exact_on` data of the training data's shape."""
        return self.exact_on(self._sketch)

    def exact_on(self, data: Data) -> Exact | None:
        """The exact posterior and marginal likelihood of these rows: the model's own, else those that its story gives away, else None."""
        known = CERTIFIED.setdefault(self, WeakKeyDictionary())
        if data not in known:
            known[data] = exact_forms(self.model, self.theta, data.batch())
        return known[data]

    @property
    def dtype(self) -> torch.dtype:
        return self._tensor.dtype

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    @property
    def _tensor(self) -> Tensor:
        return next(chain(self.theta.parameters(), self.guide.parameters(), self.guide.buffers()))

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The story's latents that all rows share, by name: their posterior is the guide's."""
        return tuple(shared_sites(self.model, self.theta, self._sketch))

    @cached_property
    def encodes(self) -> bool:
        """Whether the guide speaks of single rows."""
        return any(is_row_site(site) for site in sites_of(self.guide, self._sketch.head()).values())

    @cached_property
    def _sketch(self) -> Data:
        return self.trained_on.sketch().to(self.dtype, self.device)

    def shared_draws(self, draws: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
        """{site: (draws, ...)}: draws from the posterior of the latents that all rows share; empty for a story without any.

        draws: 1000 by default, or all that a sampler drew; fewer of a sampler's are taken at random, each at most once. Raises ValueError
        for more than a sampler drew.
        """
        draws, seed = None if draws is None else counted(draws, "draws"), seed_of(seed)
        if not self.shared:
            return {}
        if isinstance(self.guide, Draws):
            return {name: value.cpu().numpy() for name, value in self.guide.chosen(draws, seed).items()}
        draws = 1000 if draws is None else draws
        with seeded(seed, self.device), torch.no_grad():
            sites = random_sites(poutine.trace(in_draws(self.guide, draws)).get_trace(self._sketch.head()))
        return {name: sites[name]["value"].squeeze(1).cpu().numpy() for name in self.shared}

    def _available(self, draws: int) -> int:
        """As many draws of what all rows share, or as a sampler drew."""
        return min(draws, self.guide.count) if isinstance(self.guide, Draws) else draws

    def take(self, data: object) -> Data:
        """`data` as this fit reads it: columns and context found by their names (an array's by position), entries in the fit's units.

        A frame that has the columns of the context too is both. To a fit of rescaled data a table that was not is mapped by the same two
        entries, and a warning says so. Raises ValueError for other columns, for another context or words in it that the fit never saw, for
        data that were rescaled where the fit's were not, and for entries beyond its precision's range.
        """
        read = self.trained_on.read(data)
        check_rows(read, self.trained_on, self.dtype)
        read = read.to(self.dtype, self.device)
        self._check_use(read)
        return read

    def _check_use(self, data: Data) -> None:
        """Raise ValueError for a context that the story cannot take, for holes that it overlooks, as a fit to complete rows could not show,
        and, where the story or the guide reads the rows' numbers, for rows that are not those of the fit."""
        check_runs(self.model, self.theta, data.batch())
        check_holes(self.model, self.theta, data)
        if self.numbered and data.digest != self.trained_on.digest:
            raise ValueError(
                f"{self.model.name}: the story or the guide reads the rows' numbers, batch.index, which mean nothing elsewhere: give "
                "the fit the rows that it was made from, all of them, in their order"
            )

    @property
    def numbered(self) -> bool:
        """Whether the story or the guide reads the rows' numbers, so that no other rows can be scored."""
        return self.trained_on.digest is not None

    def shared_chains(self, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """{site: (chains, draws, ...)}: a sampler's chains as they are; for other guides `shared_draws` as one chain."""
        seed = seed_of(seed)
        if isinstance(self.guide, Draws):
            return {name: value.cpu().numpy() for name, value in self.guide.values.items()}
        return {name: value[np.newaxis] for name, value in self.shared_draws(draws, seed).items()}

    def log_likelihood(self, data: object, draws: int = 1000, seed: int = 0) -> Scores:
        """(N,) nats per row, log p(x_n | theta) of the observed entries: exact where the model is, else importance-sampled (`.how`).

        Where all rows share latents: the posterior predictive density of each row, log E_q p(x_n | shared). Raises ValueError, as all that
        takes `draws` does, for a number of them that is not whole, or below 1.
        """
        data, draws, seed = self.take(data), counted(draws, "draws"), seed_of(seed)
        exact = self.exact_on(data)
        if exact is not None:
            return Scores(exact_log_marginal(exact, self.theta, data))
        if self.shared and not self.encodes:
            drawn = {
                n: torch.as_tensor(v).to(data.x)
                for n, v in self.shared_draws(1 if self._is_point else self._available(draws), seed).items()
            }
            rows = rows_log_likelihood(self.model, self.theta, data, drawn)
            if rows is not None:
                return Scores(rows[0]) if self._is_point else predictive_density(rows, data)
        with seeded(seed, self.device):
            return sampled_evidence(self.program, self.guide, data, draws, bool(self.shared))

    def elbo(self, data: object, draws: int = 100, seed: int = 0) -> Scores:
        """(N,) nats per row, the evidence lower bound under this fit's guide: exact where the KL is, else Monte Carlo.

        What all rows share was learnt from the N rows of the fit, so each row, one of those or not, bears an N-th of its KL to the prior:
        a row's bound does not depend on the rows beside it, and those of the fit's own rows sum to the bound on their evidence. After CAVI
        it is the bound that was climbed, exactly.
        """
        data, draws, seed = self.take(data), counted(draws, "draws"), seed_of(seed)
        divergence, exact = self._exact_kl(data), self.exact_on(data)
        if divergence is not None and exact is not None:
            return Scores(exact_log_marginal(exact, self.theta, data) - divergence)
        if not self._has_density:
            return Scores(np.full(data.n_rows, np.nan), how="none: draws and points have no density, so no bound")
        bound = self._mean_field(data)
        if bound is not None:
            return Scores(bound)
        with seeded(seed, self.device):
            return sampled_elbo(self.program, self.guide, data, draws, bool(self.shared), self.trained_on.n_rows)

    def _mean_field(self, data: Data) -> Tensor | None:
        """(N,): the bound that CAVI climbs, of each row; None for another guide."""
        exact = self.model.closed_forms
        if not isinstance(self.guide, Factors) or exact is None:
            return None
        moments, share = self.guide.moments(), self.guide.divergence() / self.trained_on.n_rows
        return by_chunks(lambda batch: exact.mean_field(self.theta, moments, batch), data, exact.chunk_rows(data)) - share

    @cached_property
    def _has_density(self) -> bool:
        """Whether the guide has a density over what all rows share; draws and points have none."""
        sites = sites_of(self.guide, self._sketch.head()) if self.shared else {}
        return not any(isinstance(sites[name]["fn"], Delta) for name in self.shared)

    @property
    def _is_point(self) -> bool:
        """Whether the guide puts all its mass on one value of what all rows share."""
        return bool(self.shared) and not self._has_density and not isinstance(self.guide, Draws)

    def kl(self, data: object, draws: int = 100, seed: int = 0) -> Scores:
        """(N,) nats per row, KL(q(latents | x) || p(latents | x)): exact, or log-likelihood less ELBO with the error of both.

        Where all rows share latents: an N-th of the KL to their posterior given the N rows of the fit, so that ELBO and KL of those sum to
        their log-evidence (not to the log-likelihood, which is predictive); after CAVI, which takes the rows' latents as independent of
        what is shared, with theirs. It takes those rows to know; of others it is NaN.
        """
        data, draws, seed = self.take(data), counted(draws, "draws"), seed_of(seed)
        divergence = self._exact_kl(data)
        if divergence is not None:
            return Scores(divergence)
        if not self._has_density:
            return self.elbo(data)
        if self.shared:
            if not self._learnt_from(data):
                return Scores(np.full(data.n_rows, np.nan), how="unknown: what all rows share was learnt from others, so ask with those")
            climbed = self._mean_field(data)
            with seeded(seed, self.device):
                return shared_divergence(self.program, self.guide, data, bound=None if climbed is None else float(climbed.mean()))
        evidence, bound = self.log_likelihood(data, seed=seed), self.elbo(data, draws, seed)
        errors = [np.asarray(s.standard_error) for s in (evidence, bound) if s.standard_error is not None]
        return Scores(np.asarray(evidence) - np.asarray(bound), np.sqrt(sum(e**2 for e in errors)), f"{evidence.how} less {bound.how}")

    def _learnt_from(self, data: Data) -> bool:
        """Whether these are the rows of the fit, in any order, as far as a summary tells: as many, of the same means and spreads."""
        here, there = ((np.array(s.mean), np.array(s.scale)) for s in (data.summary(), self.trained_on))
        near = 1e-6 * there[1] + 8 * torch.finfo(self.dtype).eps * np.abs(there[0])
        return data.n_rows == self.trained_on.n_rows and all(bool((abs(a - b) <= near).all()) for a, b in zip(here, there, strict=True))

    def _exact_kl(self, data: Data) -> Tensor | None:
        exact = self.exact_on(data)
        if exact is None:
            return None
        if isinstance(self.guide, ExactGuide):
            return data.x.new_zeros(data.n_rows)
        parts = []
        with torch.no_grad():
            for batch in data.chunks(exact.chunk_rows(data)):
                q, p = read_guide(self.guide, batch), exact.posterior(self.theta, batch)
                if q is None:
                    return None
                if q.component is None and not self.model.guided_component:
                    p = p.without_component()
                found = kl(q, p) if p is not None else None
                if found is None:
                    return None
                parts.append(found)
        return torch.cat(parts)

    def posterior(self, data: object) -> Posterior:
        """The posterior of each row's latents: exact where the model is, else the guide's. Raises ValueError where neither is readable."""
        data = self.take(data)
        exact = self.exact_on(data)
        if isinstance(exact, Derived) and exact.several:
            raise ValueError(f"{self.model.name}: a row has {few(exact.several)}, and no posterior names them all: draw them with to_arviz")
        with torch.no_grad():
            if exact is not None:
                return Posterior.join([exact.posterior(self.theta, batch) for batch in data.chunks(exact.chunk_rows(data))])
            found = self._averaged_posterior(data) if self.shared else read_guide(self.guide, data.batch())
        if found is None:
            raise ValueError(f"{self.model.name}: the guide is not a Gaussian or a categorical of one site; draw from it with to_arviz")
        return found

    def _averaged_posterior(self, data: Data, draws: int = 200) -> Posterior | None:
        """Where rows share latents: what the story's one summed-out site is, averaged over them; else what the guide says of a row."""
        rows = {n: s for n, s in latent_sites(self.program, self._sketch.head()).items() if n not in self.shared}
        draws = self._available(draws)
        if len(rows) == 1 and all(is_finite(site) for site in rows.values()):
            held = {n: torch.as_tensor(v).to(data.x).unsqueeze(1) for n, v in self.shared_draws(draws).items()}
            given = [log_terms(self.program, batch, held, draws).log_softmax(0) for batch in data.chunks(AT_ONCE // draws)]
            return Posterior.categorical((torch.cat(given, -1).logsumexp(1) - np.log(draws)).mT, *rows)
        return read_guide(getattr(self.guide, "rows", self.guide), data.batch())

    def transform(self, data: object) -> np.ndarray:
        """(N, L): the posterior mean of each row's continuous latents. Raises ValueError for a model without any."""
        posterior = self.posterior(data)
        if posterior.latent is None:
            instead = "rows have nothing hidden" if posterior.component is None else "use predict for its components"
            raise ValueError(f"{self.model.name} has no continuous latents: {instead}")
        return posterior.mean.cpu().numpy()

    def predict(self, data: object) -> np.ndarray:
        """(N,) the most probable component of each row. Raises ValueError for a model without components."""
        posterior = self.posterior(data)
        if posterior.component is None:
            instead = "rows have nothing hidden" if posterior.latent is None else "use transform for its continuous latents"
            raise ValueError(f"{self.model.name} has no components: {instead}")
        return posterior.log_weights.argmax(-1).cpu().numpy()

    @property
    def n_parameters(self) -> int:
        """Free parameters of theta, as BIC and AIC count them."""
        return self.model.degrees_of_freedom(self.theta)

    def bic(self, data: object) -> float:
        """Bayesian information criterion, p ln N - 2 log-likelihood (total nats; lower is better), of N rows that hold something.

        Raises ValueError, as `aic` does, for a fit with a posterior over what all rows share, since both are about a point, and for a model
        without a density of rows.
        """
        self._refuse("bic")
        data = self.take(data)
        rows = int(data.observed.any(1).sum())  # one in which nothing is observed is no observation
        return float(self.n_parameters * np.log(rows) - 2 * self.log_likelihood(data).sum())

    def aic(self, data: object) -> float:
        """Akaike information criterion, 2 p - 2 log-likelihood (total nats; lower is better)."""
        self._refuse("aic")
        return float(2 * self.n_parameters - 2 * self.log_likelihood(data).sum())

    def _refuse(self, criterion: str) -> None:
        if self.model.no_density:
            raise ValueError(f"no {criterion}: {self.model.no_density}")
        if self.shared:
            raise ValueError(f"{criterion} is about a point estimate, this fit has a posterior: use arviz.loo(fit.to_arviz(data))")

    def sample(self, n: int, seed: int = 0, context: object = None) -> np.ndarray:
        """(n, D) new rows from the fitted model, latents from the prior, in the units of the data that were fitted: of rescaled data those
        after it (`fit.trained_on.restored(rows)` undoes it).

        Observed sites may have any names and columns; those whose distributions read columns of the table (an autoregression) are drawn
        after these. context: for a fit to data with a context, (C,) for all rows or (n, C); by name in a dict, a frame or a row of one,
        {"age": 30, "sex": "f"}; or in words. Raises ValueError where it is missing, of another shape, or of words or names that the fit
        does not know, and for a story whose rows cannot be drawn: one that observes the logarithm of a column, say, or not all columns.
        """
        from ppvae.criticism.predictive import blank_batch, prior_predictive

        n, seed = counted(n, "sample: n"), seed_of(seed)
        batch = blank_batch(n, len(self.trained_on.columns), self.dtype, self.device, self._context(context, n))
        check_runs(self.model, self.theta, batch)
        seen = self.observed(batch, drawn=False)
        return seen.table(prior_predictive(self.model, self.theta, batch, seed=seed, guide=self.guide, seen=seen))[0].cpu().numpy()

    def decode(self, latents: object, context: object = None) -> np.ndarray:
        """(n, D): E[x | z] at z (n, L), as `transform` gives them; `context` as in `sample`.

        Raises ValueError for a story without a single continuous latent, and for latents of another size.
        """
        from ppvae.criticism.predictive import blank_batch, expected_rows

        z = self._numbers(latents, "latents of shape (n, L)")
        if z.ndim != 2:
            raise ValueError(f"decode takes latents (n, L), not an array of shape {tuple(z.shape)}")
        batch = blank_batch(len(z), len(self.trained_on.columns), self.dtype, self.device, self._context(context, len(z)))
        check_runs(self.model, self.theta, batch)
        return expected_rows(self.model, self.theta, batch, z, self.observed(batch, drawn=False)).cpu().numpy()

    def observed(self, batch: Batch, drawn: bool = True) -> Observed:
        """What the story observes of such rows; drawn: whether they are rows of data, or yet to be made."""
        if batch.context is None and self._observed_of_any.plain:
            return self._observed_of_any
        return observed(self.model, self.theta, batch, self.trained_on.columns, None if drawn else self.trained_on.mean)

    @cached_property
    def _observed_of_any(self) -> Observed:
        """The same of rows without a context, at the means of those that were fitted."""
        return observed(self.model, self.theta, self._sketch.head(), self.trained_on.columns, self.trained_on.mean)

    def _context(self, context: object, n: int) -> Tensor | None:
        """The context of n rows to be made, (n, C); None for a fit without one."""
        width = self.trained_on.n_context
        if width is None:
            if context is not None:
                raise ValueError("the fit was made without a context: leave context out")
            return None
        if context is None:
            raise ValueError(f"the fit was made with a context of {width} columns: say what to condition on, context=(C,) or (n, C)")
        wanted = f"a context of shape ({width},) or ({n}, {width})"
        named = from_names(context, self.trained_on.covariates)
        values = self._numbers(context, wanted) if named is None else named.to(self.dtype).to(self.device)
        if width == 1 and values.ndim < 2:
            values = values.reshape(-1, 1)
        if values.shape not in ((width,), (1, width), (n, width)):
            raise ValueError(f"give {wanted}, not {tuple(values.shape)}")
        return values.expand(n, width)

    def _numbers(self, values: object, wanted: str) -> Tensor:
        """`values` as a tensor; raises ValueError, with what is `wanted`, for what is not numbers, or not finite."""
        try:
            found = torch.as_tensor(np.asarray(values, dtype=float), dtype=self.dtype, device=self.device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"give {wanted} as numbers, not {values!r}") from error
        if not torch.isfinite(found).all():
            raise ValueError(f"give {wanted} in finite numbers: NaN or inf is among them")
        return found

    def replicate(self, data: object, draws: int = 100, seed: int = 0, rows: str = "same") -> np.ndarray:
        """(draws, N, D) replicated data sets: for the "same" rows (latents from the posterior) or for "new" ones (from the prior).

        Raises ValueError, as `sample` does, for a story whose rows cannot be drawn.
        """
        from ppvae.criticism.predictive import posterior_predictive, prior_predictive

        batch, draws, seed = self.take(data).batch(), counted(draws, "draws"), seed_of(seed)
        kinds = {"same": posterior_predictive, "new": prior_predictive}
        if rows not in kinds:
            raise unknown("kind of rows", rows, kinds, "kinds")
        seen = self.observed(batch)
        return seen.table(kinds[rows](self.model, self.theta, batch, draws, seed, self.guide, seen)).cpu().numpy()

    def impute(self, data: object, draws: int | None = None, seed: int = 0, bootstrap: bool = False):
        """The table with its missing entries filled in.

        draws=None: the conditional means, in the form in which the table came (a frame with its rows, columns and dtypes, else an array).
        draws=M: (M, N, D) imputations, latents and noise drawn, the columns that the fit knows in the table's own order; with `bootstrap`
        theta too, by a refit for each draw, as pooling them by Rubin's rules asks: to rows drawn with replacement, such that every column
        is observed in some of them. Of a frame, columns that the fit does not know stay as they are, text too.

        For models without closed forms both are weighted by importance: `imputation_sample_size` says on how many effective draws each row
        rests, and a warning comes where they are too few; another, where an entry is imputed more than 20 times as far from its column's
        mean as anything in its row was observed (in standard deviations). Raises ValueError for columns that are not the fit's, for `draws`
        that are no whole number, and for a model whose distribution of a row has no mean or cannot be conditioned on a part of it.
        """
        from ppvae.imputation import impute

        return impute(self, data, draws, seed_of(seed), bootstrap)

    def imputation_sample_size(self, data: object, seed: int = 0) -> np.ndarray:
        """(N,): the effective number of draws behind each row's imputation; inf where none had to be weighted by importance."""
        from ppvae.imputation import conditional_mean

        with seeded(seed, self.device):
            return conditional_mean(self, self.take(self.trained_on.table(data, besides=True)))[1].cpu().numpy()

    def to_arviz(self, data: object, draws: int | None = None, seed: int = 0):
        """ArviZ data with posterior, posterior_predictive, log_likelihood (marginal) and observed_data.

        draws: by default 1000 of what all rows share and of the log-likelihood, 100 of each row's own latents and of replicated tables; a
        sampler's chains as they are. See `ppvae.criticism.arviz`.
        """
        from ppvae.criticism.arviz import fit_to_arviz

        draws = None if draws is None else counted(draws, "draws")
        return fit_to_arviz(self, self.take(data), draws=draws, seed=seed_of(seed))

    def save(self, folder: str | Path) -> Path:
        """Save to a new folder (JSON and safetensors, no pickle); raises ValueError if it exists."""
        from ppvae.saving import save

        return save(self, folder)
