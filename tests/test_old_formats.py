"""What earlier versions wrote is read for ever: `fixtures/format-1` was made by petseg before its six packages.

petseg-shard synthetic:12 shards --short-side 32 --samples-per-shard 8
petseg-train --shards shards --width 4 --depth 2 --size 32 --epochs 1 --batch-size 4 --gallery 0 --run-dir run
"""

import json
import shutil
from pathlib import Path

import pytest

from petseg.cli.app import run, train_app, umbrella

FORMAT_1 = Path(__file__).parent / "fixtures" / "format-1"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the folders, and the working directory that their relative paths mean."""
    folder = shutil.copytree(FORMAT_1, tmp_path / "format-1")
    monkeypatch.chdir(folder)
    return folder


def test_old_shards_are_whole(old):
    assert run(umbrella, "petseg", ["verify", "shards"]) == 0
    assert run(umbrella, "petseg", ["index", "shards"]) == 0


def test_an_old_checkpoint_scores_what_it_scored(old, capsys):
    assert run(umbrella, "petseg", ["eval", "run", "--device", "cpu", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["mean_iou"] == pytest.approx(0.226, abs=0.01)
    assert scores["iou"]["background"] == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize("loader", ["webdataset", "dali"])
def test_an_old_run_goes_on(old, loader):
    args = ["--resume", "--run-dir", "run", "--epochs", "2", "--loader", loader]
    assert run(train_app, "petseg-train", args) == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]


def test_an_old_run_starts_a_new_one(old):
    args = [
        "--init-from",
        "run",
        "--shards",
        "shards",
        "--run-dir",
        "new",
        "--width",
        "4",
        "--depth",
        "2",
        "--stem",
        "1",
    ]
    args += ["--size", "32", "--epochs", "1", "--batch-size", "4", "--gallery", "0"]
    assert run(train_app, "petseg-train", args) == 0
