"""Whole runs on a GPU."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from petseg.run.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu

TINY = {"size": "32", "width": 4, "depth": 3, "batch_size": 8, "epochs": 4, "device": "cuda:0", "num_threads": 2}


def petseg_train(*options):
    command = [sys.executable, "-m", "petseg", "train", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def train(train_with):
    return train_with(TINY)


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_a_run_of_every_loader_and_cache(train, loader, cache):
    result, listener = train(loader=loader, cache=cache)
    assert result.summary["mean_iou"] > 0 and result.summary["device"].startswith("cuda:0 (")
    assert result.summary["amp"] == "bf16" and result.summary["loader"] == loader
    assert not any("CUDA graph" in note for note in listener.notes)


def test_on_a_gpu_samples_are_kept_on_it_where_they_fit(train):
    result, listener = train(epochs=1)
    assert load_checkpoint(result.run.path / "last.pt")["config"]["cache"] == "device"
    assert any("--cache device takes" in note for note in listener.notes)


def test_a_stopped_run_resumes_to_the_same_weights(train, repeatable, monkeypatch):
    monkeypatch.setattr("petseg.training.auto.tune_process", lambda device: None)
    options = {"loader": "webdataset", "amp": "off", "compile": "off", "cache": "none"}
    whole, _ = train("whole", **options)

    def interrupt(step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    stopped, _ = train("parts", on_step=interrupt, **options)
    assert stopped.exit_code == 128 + signal.SIGINT
    resumed, _ = train("parts", resume=True)
    ours, theirs = (load_checkpoint(r.run.path / "last.pt")["ema"] for r in (resumed, whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-4, msg=name)
    assert resumed.summary["mean_iou"] == pytest.approx(whole.summary["mean_iou"], abs=1e-2)


def test_a_run_begun_on_a_cpu_resumes_on_a_gpu_and_back(train, tmp_path, packed):
    """Optimiser states and learning rates are of the device that the run is on."""
    folder = tmp_path / "moved"
    given = {**TINY, "shards": packed, "schedule": "constant", "loader": "webdataset", "amp": "off"}
    begin = [word for k, v in given.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    for epochs, device in enumerate(("cpu", "cuda", "cpu"), start=2):
        options = begin if epochs == 2 else ["--resume"]
        petseg_train(*options, "--run-dir", folder, "--epochs", epochs, "--device", device)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 4


def test_the_oxford_recipe_runs(packed, tmp_path):
    run = tmp_path / "run"
    petseg_train("--recipe", "oxford", "--shards", packed, "--size", 64, "--epochs", 3, "--run-dir", run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == 3 and summary["mean_iou"] > 0
