"""SVI: its defaults reach the optimum, its engines agree, and what goes wrong ends in a sentence."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event, Thread

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import runtime
from torch._inductor import config as inductor

import ppvae
from ppvae import guides
from ppvae.inference import svi
from ppvae.inference.fit import start
from ppvae.inference.method import Task, seeded
from ppvae.inference.svi import Step, Training, one_cycle
from ppvae.model import Model
from ppvae.models import GMM, PPCA, VAE
from ppvae.parameters import Parameters
from ppvae.program.capture import capture, tensors_of, with_opaque_sums

IRIS_OPTIMUM = -2.69975187  # PPCA with 2 latents, gold case D8


def settle(model, data: ppvae.Data, method: ppvae.SVI, optimum: float, tolerance: float, seed: int = 0) -> ppvae.Fit:
    """A fit that must end within `tolerance` nats per row of `optimum`, which its start must not."""
    fit = ppvae.fit(model, data, method, seed=seed)
    assert fit.history.log_likelihood.iloc[0] < optimum - 5 * tolerance
    assert float(fit.log_likelihood(data).mean()) == pytest.approx(optimum, abs=tolerance)
    return fit


def test_default_reaches_the_optimum_of_ppca_on_iris():
    data = ppvae.load_data("iris")
    fit = settle(PPCA(2), data, ppvae.SVI(), IRIS_OPTIMUM, 0.001)
    assert fit.converged
    assert fit.status == "ran all its steps; the ELBO has settled"
    # The default guide's family holds the posterior of a linear-Gaussian story, so nothing is lost to it.
    assert float(fit.kl(data).mean()) < 0.001


@pytest.mark.parametrize("component", ["summed", "guided"])
def test_default_reaches_the_optimum_of_a_mixture_on_faithful(component):
    data, model = ppvae.load_data("faithful"), GMM(2, component=component)
    em = ppvae.fit(model, data, ppvae.EM())
    fit = settle(model, data, ppvae.SVI(), float(em.log_likelihood(data).mean()), 0.001)
    lost = float(fit.kl(data).mean())
    assert lost == 0 if component == "summed" else 0 < lost < 0.01


def test_minibatches_reach_the_optimum_of_ppca_on_digits():
    data = ppvae.load_data("digits")
    settle(PPCA(10), data, ppvae.SVI(steps=1500), float(ppvae.fit(PPCA(10), data).log_likelihood(data).mean()), 0.01)


def step_of(model, data: ppvae.Data, method: ppvae.SVI, *rows: torch.Tensor) -> Step:
    """One step's loss and gradients at the start, ready to run on rows like these."""
    theta = start(model, data, 0)
    with seeded(0):
        guide = guides.build(model, theta, data)
    return Step(method, Task(model, data, theta, None, 0), guide, data, rows)


@pytest.mark.parametrize("compile", [False, "auto"])
def test_minibatches_average_to_the_whole(compile):
    """In a summed mixture the ELBO has no draws, so the mean of disjoint batches is the whole to rounding."""
    data, model = ppvae.load_data("faithful"), GMM(2)
    found = []
    for part in (torch.arange(272).reshape(4, 68), torch.arange(272).reshape(1, 272)):
        step = step_of(model, data, ppvae.SVI(compile=compile), part[0])
        losses, gradients = [], []
        for rows in part:
            losses.append(step.run(rows))
            gradients.append(torch.cat([p.grad.flatten() for p in step.parameters]))
        found.append((torch.stack(losses).mean(), torch.stack(gradients).mean(0)))
    (loss, gradient), (whole, whole_gradient) = found
    assert loss == pytest.approx(float(whole), rel=1e-10)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-8, atol=1e-8)


def losses(method: ppvae.SVI, model, data: ppvae.Data, repeats: int = 80) -> torch.Tensor:
    step = step_of(model, data, method)
    with seeded(1):
        return torch.stack([step.run() for _ in range(repeats)])


@pytest.fixture(scope="module")
def small_iris() -> ppvae.Data:
    return ppvae.load_data("iris").take(torch.arange(0, 150, 5))


@pytest.mark.parametrize("other", [ppvae.SVI(particles=16), ppvae.SVI(objective="analytic_kl"), ppvae.SVI(compile=False)])
def test_objectives_agree_in_expectation(other, small_iris):
    one, many = losses(ppvae.SVI(), PPCA(2), small_iris), losses(other, PPCA(2), small_iris)
    error = ((one.var() + many.var()) / len(one)).sqrt()
    assert abs(one.mean() - many.mean()) < 4 * error
    if other.particles == 16:  # a variance from 80 draws is known to 16 percent, so a ratio to about 25: 16 within a factor of 2.5
        assert 16 / 2.5 < one.var() / many.var() < 16 * 2.5


def test_held_out_rows_stop_the_training():
    data = ppvae.load_data("iris")
    fit = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=1000, holdout=0.3, patience=2, compile=False))
    assert fit.steps < 1000
    assert fit.status.startswith(f"stopped early at step {fit.steps}: the held-out ELBO no longer rises")
    held = fit.history.heldout_elbo
    assert np.isfinite(held).all()


def test_training_that_stops_early_ends_with_its_best_parameters():
    model, data = PPCA(2), ppvae.load_data("iris")
    train, held = data.split(0.3, seed=0)
    with seeded(0):
        theta = start(model, data, 0)
        task = Task(model, data, theta, None, 0)
        training = Training(
            ppvae.SVI(steps=1000, holdout=0.3, patience=2, compile=False), task, train, held, guides.build(model, theta, train)
        )
        training.loop()
    assert training.smoothed.index(max(training.smoothed)) <= len(training.smoothed) - 3  # two logged points ago
    for name, value in training.step.module.state_dict().items():
        assert (value == training.best_state[name]).all()


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro says so too
@pytest.mark.parametrize("compile", [False, "auto"])
@pytest.mark.parametrize(
    ("model", "name"), [(PPCA(2), "iris"), (GMM(2), "faithful"), (VAE(2, (8,), "gaussian"), "iris")], ids=["ppca", "gmm", "vae"]
)
def test_a_diverging_run_stops_with_finite_parameters(model, name, compile):
    data = ppvae.load_data(name)
    fit = ppvae.fit(model, data, ppvae.SVI(steps=200, learning_rate=1e6, compile=compile))
    assert not fit.converged
    assert fit.status.startswith("stopped: the ELBO was no longer finite by step")
    assert "try a lower learning_rate than 1e+06" in fit.status
    assert all(np.isfinite(value).all() for value in fit.params.values())
    assert all(bool(torch.isfinite(p).all()) for p in fit.guide.parameters())
    assert np.isfinite(fit.history.elbo[1:]).all()


QUICK = ppvae.SVI(steps=20, batch_size=50, compile=False)


def test_seeds_repeat_bit_for_bit():
    data = ppvae.load_data("iris")
    one = ppvae.fit(PPCA(2), data, QUICK, seed=1)
    torch.rand(7)  # the global generator has moved on: it must not matter
    same, other = (ppvae.fit(PPCA(2), data, QUICK, seed=seed) for seed in (1, 2))
    for name, value in one.params.items():
        assert (same.params[name] == value).all()
        assert name == "mean" or (other.params[name] != value).any()
    assert one.history.elbo.equals(same.history.elbo)
    assert (np.asarray(one.elbo(data)) == np.asarray(same.elbo(data))).all()


@pytest.mark.parametrize("compile", [False, "auto"])
def test_no_global_state_is_touched(compile):
    data = ppvae.load_data("iris")
    pyro.clear_param_store()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    settings = pyro.settings.get()
    fit = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=5, compile=compile))
    fit.elbo(data), fit.sample(3), fit.kl(data)
    assert (torch.get_rng_state() == before).all()
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert dict(pyro.get_param_store().items()) == {}
    assert pyro.settings.get() == settings


@pytest.mark.parametrize("model", [GMM(2), GMM(2, component="guided"), PPCA(2)], ids=lambda m: m.describe())
def test_plain_and_captured_runs_are_the_same_run(model):
    data = ppvae.load_data("iris")
    plain, captured = (ppvae.fit(model, data, ppvae.SVI(steps=20, compile=c)) for c in (False, "auto"))
    assert plain.engine == "plain Pyro, as asked"
    assert captured.engine == "captured; too few steps to win back a compilation"
    # The same draws and the same arithmetic in another order: Adam's first steps are signs, which magnify rounding by the learning rate.
    for name, value in plain.params.items():
        np.testing.assert_allclose(captured.params[name], value, rtol=1e-6, atol=1e-8)


@dataclass(frozen=True)
class Location(Model):
    """x ~ N(m, 1): as few operations as a story can have, so that it compiles quickly."""

    def init(self, data, generator):
        return Parameters(mean=torch.zeros_like(data.mean))

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, 1.0).to_event(1), obs=batch.x)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("compile", [False, "auto"])
def test_gradients_that_the_caller_has_switched_off_are_on_within_a_fit(surrounding, compile):
    data, method = ppvae.load_data("faithful"), ppvae.SVI(steps=5, compile=compile)
    usual = ppvae.fit(Location(), data, method)
    with surrounding():
        fit = ppvae.fit(Location(), ppvae.load_data("faithful") if surrounding is torch.no_grad else data, method)
        assert not torch.is_grad_enabled()
        if surrounding is torch.inference_mode:
            with pytest.raises(ValueError, match=r"made under torch\.inference_mode, .*: make them outside it"):
                ppvae.fit(Location(), ppvae.load_data("faithful"), method)
    assert (fit.params["mean"] == usual.params["mean"]).all()


class Interrupted(Location):
    """As by Ctrl-C, at a moment when no handler takes itself off Pyro's stack."""

    def model(self, theta, batch):
        if batch.size > 5:  # not a trial
            batch.rows.__enter__()
            raise KeyboardInterrupt
        super().model(theta, batch)


@pytest.mark.parametrize("compile", [False, "auto"])
def test_an_interrupted_fit_leaves_pyro_as_it_was(compile):
    data, method = ppvae.load_data("faithful"), ppvae.SVI(steps=5, compile=compile)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ppvae.fit(Interrupted(), data, method)
    assert runtime._PYRO_STACK == runtime._DIM_ALLOCATOR._stack == []


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_is_the_same_run():
    data = ppvae.load_data("faithful")
    captured, compiled = (ppvae.fit(Location(), data, ppvae.SVI(steps=50, compile=c)) for c in ("auto", True))
    assert compiled.engine == "captured and compiled"
    np.testing.assert_allclose(compiled.params["mean"], captured.params["mean"], rtol=1e-6)


@pytest.mark.parametrize(
    ("there", "words"), [(False, "there is no C[+][+] compiler [(]"), (True, "Inductor fails with the C[+][+] compiler .*compiler [(]")]
)
def test_without_a_compiler_the_graph_runs_as_it_is(monkeypatch, tmp_path, there, words):
    """As on a machine that has none, or one that gives its version and fails."""
    data, many = ppvae.load_data("faithful"), ppvae.SVI(steps=50)
    monkeypatch.setattr(svi, "COMPILING_PAYS", 0)
    compiler = tmp_path / "compiler"
    if there:
        compiler.write_text('#!/bin/sh\ncase "$1" in --version) echo g++ 12.0;; *) exit 1;; esac\n')
        compiler.chmod(0o755)
    with inductor.patch({"cpp.cxx": (str(compiler),), "force_disable_caches": True}):
        assert re.match(f"captured, not compiled: {words}", ppvae.fit(Location(), data, many).engine)
        with pytest.raises(ValueError, match=f"compile=True, but {words}.*: mend that, or use compile='auto'"):
            ppvae.fit(Location(), data, replace(many, compile=True))


def test_a_folder_that_cannot_be_written_leaves_the_graph_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "folder"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    monkeypatch.setattr(svi, "COMPILING_PAYS", 0)
    data, words = ppvae.load_data("faithful"), f"the folder that TORCHINDUCTOR_CACHE_DIR names, {folder}, cannot be written "
    for _ in range(2):
        assert ppvae.fit(Location(), data, ppvae.SVI(steps=5)).engine.startswith(f"captured, not compiled: {words}")
        with pytest.raises(ValueError, match=f"compile=True, but {words}.*: mend that, or use compile='auto'"):
            ppvae.fit(Location(), data, ppvae.SVI(steps=5, compile=True))


LOOKUPS = {
    "index": lambda table, rows: table[rows],
    "index_select": lambda table, rows: table.index_select(0, rows),
    "embedding": lambda table, rows: torch.nn.functional.embedding(rows, table),
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS)
def test_the_compiler_is_left_no_sum_into_indexed_places(lookup):
    """It may write them out of bounds (pytorch/pytorch#191837); each look-up's gradient is such a sum."""
    table, batch = torch.nn.Embedding(3, 2), ppvae.load_data("faithful").batch(torch.tensor([0, 1, 2, 1]))

    def loss(batch):
        return lookup(table.weight, batch.index).square().sum()

    arguments = list(table.parameters()), tensors_of(batch)
    graph = with_opaque_sums(capture(table, loss, batch))
    assert "ops.ppvae." in graph.code
    assert not any(f"ops.aten.{name}" in graph.code for name in ("index_put", "index_add", "embedding_dense_backward"))
    _, (gradient,) = graph(*arguments)
    (expected,) = torch.autograd.grad(loss(batch), table.weight)
    torch.testing.assert_close(gradient, expected)


@dataclass(frozen=True)
class Branching(PPCA):
    """A story that asks its own draw which way to go."""

    exact = None

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            sign = 1.0 if z.isfinite().all() else -1.0
            x = dist.Normal(theta.mean + sign * z @ theta.loadings.mT, theta.noise_variance.sqrt())
            pyro.sample("x", x.mask(batch.observed).to_event(1), obs=batch.x)


def test_a_story_that_branches_on_its_draws_runs_on_plain_pyro():
    data = ppvae.load_data("iris")
    fit = ppvae.fit(Branching(2), data, ppvae.SVI(steps=10))
    assert fit.engine.startswith("plain Pyro: the program could not be captured (")
    with pytest.raises(ValueError, match=r"cannot be captured .* use compile='auto'"):
        ppvae.fit(Branching(2), data, ppvae.SVI(steps=10, compile=True))


def test_what_stops_a_recording_is_said_with_its_line():
    fit = ppvae.fit(Branching(2), ppvae.load_data("iris"), ppvae.SVI(steps=2))
    line = "`sign = 1.0 if z.isfinite().all() else -1.0`, needs a tensor's value, as if, assert, .item(), .numpy() and iterating over a"
    assert line in fit.engine


VALUE, SHAPE, OUTSIDE = (
    "needs a tensor's value",
    "makes a tensor whose shape depends on values",
    "it takes numbers from outside the tensors",
)
WHOLE = torch.tensor([True, False])


def capped(theta, batch):
    loc = theta.mean.clone()
    loc[loc > 1] = 1.0
    return loc - theta.mean.detach()


LEAKS = {  # numbers that a recording would keep for ever, and what is said of them
    "tolist": (lambda theta, batch: torch.tensor(theta.mean.tolist()), VALUE),
    "numpy": (lambda theta, batch: int(theta.mean.detach().numpy().sum()), VALUE),  # hardly ever another number in the next run
    "array": (lambda theta, batch: np.asarray(batch.x.detach()).mean() > 100, VALUE),
    "equal": (lambda theta, batch: torch.equal(theta.mean, batch.x[0]), VALUE),
    "nonzero": (lambda theta, batch: (theta.mean > 100).nonzero().shape[0], SHAPE),
    "mask": (lambda theta, batch: theta.mean[theta.mean > 0].sum(), SHAPE),
    "counter": (lambda theta, batch: 1 / len(calls), OUTSIDE),
    "": (lambda theta, batch: 0.0, None),
    "put": (capped, None),
    "same": (lambda theta, batch: theta.mean[WHOLE].sum() + torch.arange(3)[1].item() + len(WHOLE.tolist()), None),
}
calls: list[int] = []


@dataclass(frozen=True)
class Leaking(Location):
    leak: str = ""

    def model(self, theta, batch):
        calls.append(1)
        leak, _ = LEAKS[self.leak]
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean + 1.0 * leak(theta, batch), 1.0).to_event(1), obs=batch.x)


@pytest.mark.parametrize("leak", LEAKS)
def test_values_that_leave_the_tensors_are_not_recorded(leak):
    data, method, (_, reason) = ppvae.load_data("faithful"), ppvae.SVI(steps=5, batch_size=20), LEAKS[leak]
    fit = ppvae.fit(Leaking(leak=leak), data, method)
    if reason is None:
        assert fit.engine.startswith("captured")
        return
    assert fit.engine.startswith("plain Pyro: the program could not be captured (")
    assert reason in fit.engine
    with pytest.raises(ValueError, match=rf"compile=True, but the story or guide cannot be captured \(.*{reason}"):
        ppvae.fit(Leaking(leak=leak), data, replace(method, compile=True))


def test_few_steps_settle_nothing():
    fit = ppvae.fit(PPCA(1), ppvae.load_data("faithful"), ppvae.SVI(steps=100, compile=False))
    assert not fit.converged
    assert fit.status == "ran all its steps, too few to say whether the ELBO has settled: raise steps"


def test_networks_rest_after_a_fit_and_tie_no_rows():
    theta = ppvae.fit(VAE(1, likelihood="gaussian"), ppvae.load_data("faithful"), ppvae.SVI(steps=2)).theta
    assert not any(part.training for part in theta.modules())
    with pytest.raises(ValueError, match=r"net: batch normalisation ties rows .* nn\.LayerNorm"):
        Parameters(net=torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))


def test_one_thread_at_a_time_has_the_generator():
    entered = Event()

    def other():
        with seeded(1):
            entered.set()

    with seeded(0):
        thread = Thread(target=other)
        thread.start()
        assert not entered.wait(0.3)
    thread.join()
    assert entered.is_set()


def test_fits_of_several_threads_take_turns():
    data, method = ppvae.load_data("faithful"), ppvae.SVI(steps=20, batch_size=32, compile=False)
    alone = [ppvae.fit(PPCA(1), data, method, seed=s).history.elbo for s in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda s: ppvae.fit(PPCA(1), data, method, seed=s).history.elbo, range(3)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_guide_without_reparametrised_draws_runs_on_plain_pyro():
    data = ppvae.load_data("faithful")

    def coin(batch):
        with batch.rows:
            pyro.sample("component", dist.Categorical(batch.x.new_tensor([0.4, 0.6])))

    fit = ppvae.fit(GMM(2), data, ppvae.SVI(steps=10), guide=coin)
    assert "site 'component' has no reparametrised gradient, so Pyro's score-function estimator is used" in fit.engine
    assert np.isfinite(fit.history.elbo[1:]).all()


def silent(batch):
    """Samples nothing."""


def chatty(batch):
    with batch.rows:
        for name in ("z", "w"):
            pyro.sample(name, dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))


def test_sites_of_story_and_guide_must_be_the_same():
    data = ppvae.load_data("iris")
    with pytest.raises(ValueError, match="the story samples 'z' but the guide never does: add it to the guide, or marginalise it"):
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=2), guide=silent)
    with pytest.raises(ValueError, match="the guide samples 'w' but the story never does: take it out of the guide"):
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=2), guide=chatty)
    with pytest.raises(ValueError, match="unknown guide 'ful': did you mean 'full'"):
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=2), guide="ful")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"particles": 0}, "particles must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"holdout": 1.0}, "share of the rows"),
        ({"compile": "yes"}, "True, False or 'auto'"),
        ({"objective": "elbow"}, "did you mean 'elbo'"),
    ],
)
def test_settings_are_checked(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.SVI(**settings)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size=1000 is larger than the data, 150 rows: choose a smaller batch"):
        ppvae.fit(PPCA(2), ppvae.load_data("iris"), ppvae.SVI(batch_size=1000))
    with pytest.raises(ValueError, match=r"batch_size=80 is larger than what holdout=0\.5 leaves of the data, 75 rows: choose"):
        ppvae.fit(PPCA(2), ppvae.load_data("iris"), ppvae.SVI(batch_size=80, holdout=0.5))


def test_an_objective_that_cannot_sum_out_is_refused():
    with pytest.raises(ValueError, match="sums out a discrete site"):
        ppvae.fit(GMM(2), ppvae.load_data("faithful"), ppvae.SVI(steps=2, objective="analytic_kl"))


def test_the_schedule_rises_to_its_peak_and_falls_to_nearly_nothing():
    rates = [one_cycle(step, 1000, 0.03) for step in range(1001)]
    assert max(rates) == pytest.approx(0.03)
    assert int(np.argmax(rates)) == 100
    assert rates[0] < 0.05 * 0.03
    assert rates[-1] < 1e-3 * 0.03


class Spoiling(Location):
    """Changes what it is given."""

    def model(self, theta, batch):
        batch.x.mul_(0.5)
        super().model(theta, batch)


class Frail(Location):
    """A finite score whose gradient is none: that of a root at 0."""

    def model(self, theta, batch):
        with batch.rows:
            loc = theta.mean + (theta.mean - theta.mean.detach()).square().sqrt()
            pyro.sample("x", dist.StudentT(4.0, loc, 1.0).to_event(1), obs=batch.x)


class Undefined(Location):
    """A score that is none in the row of the longest eruption, which is not among the few that trials have."""

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, 1.0).to_event(1), obs=batch.x)
            pyro.factor("none", (5.1 - batch.x[:, 0]).log())


class Table(torch.nn.Module):
    """A place for each row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.places = torch.nn.Embedding(rows, 2, sparse=True, dtype=torch.float64)

    def forward(self, batch):
        with batch.rows:
            pyro.sample("z", dist.Normal(self.places(batch.index), 1.0).to_event(1))


class Fixed(Location):
    def init(self, data, generator):
        return super().init(data, generator).freeze("mean")


def test_a_story_that_changes_its_rows_is_refused():
    data = ppvae.load_data("faithful")
    kept = data.x.clone()
    with pytest.raises(ValueError, match=r"changes batch\.x in place, .*: change a copy, batch\.x\.clone\(\)"):
        ppvae.fit(Spoiling(), data, ppvae.SVI(steps=2))
    assert (data.x == kept).all()


@pytest.mark.parametrize("compile", [False, "auto"])
def test_a_gradient_that_is_none_leaves_the_parameters_of_the_last_finite_point(compile):
    fit = ppvae.fit(Frail(), ppvae.load_data("faithful"), ppvae.SVI(steps=20, compile=compile))
    assert fit.status.startswith("stopped: the ELBO is finite at the parameters of step 0, but its gradient is not; look for a root")
    assert not fit.converged
    assert np.isfinite(fit.params["mean"]).all()


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_an_elbo_that_is_none_at_the_start_is_no_matter_of_the_learning_rate():
    fit = ppvae.fit(Undefined(), ppvae.load_data("faithful"), ppvae.SVI(steps=20))
    assert fit.status.startswith("stopped: the ELBO is not finite at the parameters of step 0; look for a log, a root")


def test_a_story_with_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="there is nothing to learn"):
        ppvae.fit(Fixed(), ppvae.load_data("faithful"), ppvae.SVI(steps=2))


def test_sparse_gradients_are_refused():
    data = ppvae.load_data("iris")
    with pytest.raises(ValueError, match="sparse=False"):
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=2), guide=Table(data.n_rows))


def test_a_guide_that_the_bound_sums_out_is_said_to_learn_nothing():
    fit = ppvae.fit(GMM(2, component="guided"), ppvae.load_data("faithful"), ppvae.SVI(steps=200, objective="iwae", particles=2))
    assert "the guide of component learnt nothing, since objective='iwae' sums it out" in fit.status
    assert not fit.converged


class Counting(torch.nn.Module):
    """A guide that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("runs", torch.zeros((), dtype=torch.float64))

    def forward(self, batch):
        self.runs += 1
        with batch.rows:
            pyro.sample("z", dist.Normal(self.loc.expand(batch.size, 2), 1.0).to_event(1))


class Annealed(Counting):
    """A guide that asks how often it has run."""

    def forward(self, batch):
        if self.runs.item() < 100:
            super().forward(batch)


class Normed(Counting):
    """A guide that keeps what a norm needs, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(2, 2).double())

    def forward(self, batch):
        self.runs += 1
        with batch.rows:
            pyro.sample("z", dist.Normal(self.norm(self.loc).expand(batch.size, 2), 1.0).to_event(1))


def test_buffers_that_a_program_changes_are_changed_alike():
    data, fits = ppvae.load_data("iris"), []
    for compile in (False, "auto"):
        torch.manual_seed(0)
        fits.append(ppvae.fit(PPCA(2), data, ppvae.SVI(steps=5, compile=compile), guide=Normed()))
    assert fits[1].engine.startswith("captured")
    for one, other in zip(*(fit.guide.state_dict().values() for fit in fits), strict=True):
        torch.testing.assert_close(one, other)
    engine = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=5), guide=Annealed()).engine
    assert "it reads the value of a tensor and changes its buffers as it runs" in engine


def test_trial_runs_leave_no_trace():
    data = ppvae.load_data("iris")
    task = Task(PPCA(2), data, start(PPCA(2), data, 0), None, 0)
    for compile in (False, "auto"):
        assert Step(ppvae.SVI(compile=compile), task, Counting(), data, ()).guide.runs == 0
