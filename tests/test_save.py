"""Save and load: the same numbers in a new process, and nothing half-written or half-read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import twins

import ppvae
from ppvae.models import GMM, PPCA, VAE

QUICK = ppvae.SVI(steps=5, compile=False)


def fits() -> dict[str, tuple[ppvae.Fit, ppvae.Data]]:
    faithful, iris, airquality = (ppvae.load_data(name) for name in ("faithful", "iris", "airquality"))
    return {
        "closed": (ppvae.fit(PPCA(2), iris), iris),
        "em": (ppvae.fit(GMM(2, covariance="diag"), airquality, ppvae.EM(max_steps=20)), airquality),
        "summed": (ppvae.fit(GMM(2), faithful, QUICK), faithful),
        "guided": (ppvae.fit(GMM(2, component="guided"), faithful, QUICK), faithful),
        "family": (ppvae.fit(PPCA(2), airquality, QUICK, guide="full"), airquality),
        "network": (ppvae.fit(VAE(2, (8, 4), "gaussian"), iris, QUICK), iris),
        "half": (ppvae.fit(PPCA(2), iris, dtype=torch.float32), iris),
    }


def answers(fit: ppvae.Fit, data: ppvae.Data) -> dict[str, np.ndarray]:
    posterior = fit.posterior(data)
    return fit.params | {
        "log_likelihood": np.asarray(fit.log_likelihood(data)),
        "elbo": np.asarray(fit.elbo(data)),
        "kl": np.asarray(fit.kl(data)),
        "weights of the posterior": posterior.log_weights.numpy(),
        "mean of the posterior": posterior.mean.numpy(),
        "sample": fit.sample(5),
        "replicate": fit.replicate(data, draws=2),
    }


ASK = """
import sys, numpy as np, ppvae
sys.path.insert(0, {tests!r})
from test_save import answers
for name, data in {names!r}.items():
    fit = ppvae.load({folder!r} + "/" + name)
    np.savez({folder!r} + "/" + name + ".npz", **answers(fit, ppvae.load_data(data)))
    print(fit.status, fit.model.describe(), fit.method.describe(), fit.engine, sep="|")
"""


def test_a_loaded_fit_answers_bit_for_bit_in_a_new_process(tmp_path):
    made = fits()
    for name, (fit, _) in made.items():
        assert fit.save(tmp_path / name) == tmp_path / name
    script = ASK.format(tests=str(Path(__file__).parent), names={name: data.name for name, (_, data) in made.items()}, folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for (name, (fit, data)), line in zip(made.items(), run.stdout.splitlines(), strict=True):
        assert line == "|".join([fit.status, fit.model.describe(), fit.method.describe(), fit.engine])
        found, expected = np.load(tmp_path / f"{name}.npz"), answers(fit, data)
        assert set(found.files) == set(expected)
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            assert (found[key] == value).all(), (name, key)


@pytest.fixture(scope="module")
def fit() -> ppvae.Fit:
    return ppvae.fit(GMM(2), ppvae.load_data("faithful"), ppvae.EM(max_steps=5))


@pytest.fixture
def folder(fit, tmp_path) -> Path:
    return fit.save(tmp_path / "fit")


def test_history_and_record_are_kept(fit, folder):
    again = ppvae.load(folder)
    pd.testing.assert_frame_equal(again.history, fit.history, check_dtype=False)
    for name in ("model", "method", "status", "converged", "seconds", "steps", "seed", "engine", "trained_on"):
        assert getattr(again, name) == getattr(fit, name)


def test_nothing_is_pickled(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "history.csv", "tensors.safetensors"]
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_no_row_of_the_data_is_saved(fit, folder):
    about = json.loads((folder / "fit.json").read_text())
    assert len(json.dumps(about)) < 4000
    assert about["trained_on"]["n_rows"] == 272


def test_an_existing_folder_is_refused_and_left_alone(fit, folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="exists already: choose another name, or remove it first"):
        fit.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        fit.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_parent_is_refused_and_nothing_written(fit, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere to write fit in: make it first"):
        fit.save(tmp_path / "nowhere" / "fit")
    assert list(tmp_path.iterdir()) == []


def test_a_guide_that_load_could_not_find_is_refused_and_nothing_written(tmp_path):
    data = ppvae.load_data("iris")
    fit = ppvae.fit(PPCA(2), data, QUICK, guide=twins.Misreported(4, 2))
    with pytest.raises(ValueError, match="the guide is a Misreported of your own: let the model's guide"):
        fit.save(tmp_path / "fit")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_nothing(fit, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("ppvae.saving.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        fit.save(tmp_path / "fit")
    assert list(tmp_path.iterdir()) == []


def spoil(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def edit(about: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(about) | changes).encode()


DAMAGE = {
    "no record": ("fit.json", None, "fit.json is missing"),
    "no tensors": ("tensors.safetensors", None, "tensors.safetensors is missing"),
    "no history": ("history.csv", None, "history.csv is missing"),
    "half a record": ("fit.json", lambda b: b[: len(b) // 2], "damaged or not a saved fit"),
    "half the tensors": ("tensors.safetensors", lambda b: b[: len(b) // 2], "damaged or not a saved fit"),
    "empty tensors": ("tensors.safetensors", lambda b: b"", "damaged or not a saved fit"),
    "empty history": ("history.csv", lambda b: b"", "damaged or not a saved fit"),
    "binary record": ("fit.json", lambda b: b"\xff\xfe\x00", "damaged or not a saved fit"),
    "a list": ("fit.json", lambda b: b"[1, 2]", "damaged or not a saved fit"),
    "another format": ("fit.json", lambda b: edit(b, format=99), "was saved in format 99"),
    "no model": ("fit.json", lambda b: edit(b, model={}), "damaged or not a saved fit"),
    "an unknown model": ("fit.json", lambda b: edit(b, model={"source": "gmn", "config": {}}), "gmn"),
    "another shape": ("fit.json", lambda b: edit(b, model={"source": "gmm", "config": {"n_components": 3}}), "damaged or not a saved fit"),
    "an unknown setting": ("fit.json", lambda b: edit(b, model={"source": "gmm", "config": {"k": 3}}), "k"),
    "a wrong dtype": ("fit.json", lambda b: edit(b, dtype="float99"), "damaged or not a saved fit"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_a_sentence(folder, damage):
    name, change, sentence = DAMAGE[damage]
    if change is None:
        (folder / name).unlink()
    else:
        spoil(folder / name, change)
    with pytest.raises(ValueError, match=sentence) as refusal:
        ppvae.load(folder)
    assert "\n" not in str(refusal.value)


OWN = """
from dataclasses import dataclass
import ppvae, pyro
import pyro.distributions as dist

@dataclass(frozen=True)
class Centre(ppvae.Model):
    def init(self, data, generator):
        return ppvae.Parameters(loc=data.mean)

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.loc, 1.0).to_event(1), obs=batch.x)
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.rename(file.with_name("moved.py")), "no such model file"),
        (lambda file: file.write_text(OWN.replace("loc", "middle")), "Missing key"),
        (lambda file: file.write_text(OWN.replace("Centre", "Middle")), "unknown model 'Centre'"),
        (lambda file: file.write_text(OWN + "("), "is not valid Python"),
    ],
)
def test_a_model_file_that_is_not_as_it_was_is_named(tmp_path, change, reason):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    folder = ppvae.fit(ppvae.load_model(str(file)), ppvae.load_data("faithful"), ppvae.DirectML(steps=1)).save(tmp_path / "fit")
    assert ppvae.load(folder).model.name == "centre"
    change(file)
    with pytest.raises(ValueError, match=r"needs its model as it was, and .*own\.py was moved or changed: put it back \(.*" + reason):
        ppvae.load(folder)


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder with a saved fit"):
        ppvae.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"is not a saved fit: fit.json is missing"):
        ppvae.load(tmp_path)


SCRIPT = """
from dataclasses import dataclass
import numpy as np, pyro, pyro.distributions as dist, ppvae
from ppvae import Model, Parameters

@dataclass(frozen=True)
class Mine(Model):
    def init(self, data, generator):
        return Parameters(m=data.mean)
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.m, 1.0).mask(batch.observed).to_event(1), obs=batch.x)

print("running", __name__)
x = np.arange(12.0).reshape(6, 2)
fit = ppvae.fit(Mine(), x, ppvae.SVI(steps=2, compile=False))
again = ppvae.load(fit.save("fit"))
print((np.asarray(again.log_likelihood(x)) == np.asarray(fit.log_likelihood(x))).all(), type(again.model) is Mine)
"""


def test_a_script_that_loads_its_own_fit_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run([sys.executable, "script.py"], check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.stdout.split("\n") == ["running __main__", "True True", ""]
