"""What petseg wrote once is read for ever: `fixtures/format-2` holds shards, and a run stopped in its second epoch.

petseg-shard synthetic:12 shards --short-side 32 --samples-per-shard 8 --seed 4
petseg-train --shards shards --width 4 --depth 2 --size 32 --epochs 3 --batch-size 4 --gallery 0 --run-dir run
"""

import json
import shutil
from pathlib import Path

import pytest

from petseg.cli.app import run, train_app, umbrella
from petseg.run.checkpoint import load_checkpoint

FORMAT_2 = Path(__file__).parent / "fixtures" / "format-2"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the folders, in which the test works."""
    folder = shutil.copytree(FORMAT_2, tmp_path / "format-2")
    monkeypatch.chdir(folder)
    return folder


def test_old_shards_are_whole(old):
    assert run(umbrella, "petseg", ["verify", "shards"]) == 0
    assert run(umbrella, "petseg", ["index", "shards"]) == 0


def test_an_old_checkpoint_scores_what_it_scored(old, capsys):
    args = ["eval", "run", "--shards", "shards", "--split", "val", "--device", "cpu", "--json"]
    assert run(umbrella, "petseg", args) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["mean_iou"] == pytest.approx(0.221, abs=0.01)
    assert scores["iou"]["background"] == pytest.approx(0.371, abs=0.01)


@pytest.mark.parametrize("loader", ["webdataset", "dali"])
def test_an_old_run_resumes_inside_its_epoch(old, loader):
    before = load_checkpoint(Path("run/last.pt"))["loader"]
    assert (before["epoch"], before["consumed"]) == (1, 4)
    assert (
        run(train_app, "petseg-train", ["--resume", "--run-dir", "run", "--shards", "shards", "--loader", loader]) == 0
    )
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["samples"]) for record in records] == [(1, 8), (2, 8), (3, 8)]


def test_an_old_run_starts_a_new_one(old):
    args = "--init-from run --shards shards --run-dir new --width 4 --depth 2 --size 32 --epochs 1 --batch-size 4"
    assert run(train_app, "petseg-train", [*args.split(), "--gallery", "0"]) == 0
