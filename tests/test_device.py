"""Two ranks on this machine, by torchrun and gloo, through the same command as everybody's."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from petseg.cli.app import run, train_app, umbrella
from petseg.cli.ranks import wants_ranks
from petseg.device import World, local_share, open_world, resolve_device
from petseg.errors import PetsegError

OPTIONS = {
    "--size": "32", "--width": "4", "--depth": "3", "--device": "cpu", "--amp": "off", "--epochs": "2",
    "--norm": "group", "--dropout": "0", "--dice": "0", "--ema": "0", "--lr": "1e-3", "--schedule": "constant",
}  # fmt: skip


def start(environment, ranks: int, *more: str) -> None:
    options = [word for pair in OPTIONS.items() for word in pair]
    if ranks == 1:
        assert run(train_app, "petseg-train", [*options, *more]) == 0
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *launcher, "-m", "petseg", "train", *options, *more]
    done = subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("loader", [pytest.param("dali", marks=pytest.mark.slow), "webdataset"])
def test_two_ranks_learn_what_one_does_with_twice_the_batch(packed, tmp_path, environment, loader):
    common = ("--shards", str(packed), "--loader", loader, "--cache", "host")
    start(environment, 2, *common, "--batch-size", "4", "--run-dir", str(tmp_path / "two"))
    start(environment, 1, *common, "--batch-size", "8", "--run-dir", str(tmp_path / "one"))
    two, one = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one"))
    assert (two["ranks"], one["ranks"]) == (2, 1)
    assert two["samples"] == one["samples"] == 6, "evaluation did not see each sample once"
    losses = [
        [json.loads(line)["train_loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert two["mean_iou"] == pytest.approx(one["mean_iou"], abs=0.02)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("two", "one"))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 5e-3
    assert (tmp_path / "two" / "report.html").is_file()


STOPPED = """
import os, signal, sys
from pathlib import Path
from petseg.config import resolve
from petseg.device import open_world
from petseg.run.folder import RunFolder
from petseg.training.fit import fit
from petseg.training.reporter import Reporter

shards, run, stop_at, resume = sys.argv[1], RunFolder(Path(sys.argv[2])), int(sys.argv[3]), sys.argv[4] == "resume"


class Stopping(Reporter):
    steps = 0

    def step(self, images_per_s, data_wait_pct, memory_mb):
        self.steps += 1
        if self.steps == stop_at:
            os.kill(os.getpid(), signal.SIGINT)


flags = {"shards": shards, "size": "32", "width": 4, "depth": 3, "batch_size": 1, "epochs": 2}
config = resolve({}, run.config) if resume else resolve({**flags, "amp": "off", "device": "cpu"})
with open_world("cpu") as world:
    result = fit(config, run, world, Stopping(), resume=resume)
assert (result.summary is None) == bool(stop_at), result
"""


@pytest.mark.slow
def test_two_ranks_stopped_in_the_middle_of_an_epoch_resume_to_the_same_bits(packed, tmp_path, environment):
    """By the default options. Each rank has a loss of its own, and all of them belong to the epoch's mean."""
    script = tmp_path / "script.py"
    script.write_text(STOPPED)

    def torchrun(run: str, stop_at: int, how: str) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [sys.executable, *launcher, str(script), str(packed), str(tmp_path / run), str(stop_at), how],
            env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    torchrun("whole", 0, "start")
    torchrun("stopped", 7, "start")
    saved = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)
    assert saved["step"]["steps"] == 10 and saved["loader"]["epoch"] == 0, "it was not stopped inside the first epoch"
    torchrun("stopped", 0, "resume")
    whole, stopped = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    )
    assert [record["train_loss"] for record in stopped] == [record["train_loss"] for record in whole]
    assert [record["val"] for record in stopped] == [record["val"] for record in whole]
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "stopped"))
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])


def test_a_world_of_one_needs_no_process_group():
    world = World(rank=0, size=1, device=torch.device("cpu"))
    tensor = torch.ones(3)
    assert world.sum(tensor) is tensor and world.any(True) and not world.any(False)
    assert world.broadcast("text") == "text" and world.is_main
    world.barrier()


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:x", "cpu:0", "cpu:", "", "cuda:-1", "cuda:1.0"])
def test_unknown_devices(text):
    with pytest.raises(PetsegError, match="--device: unknown device"):
        resolve_device(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("text", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there(text):
    with pytest.raises(PetsegError, match="no usable CUDA GPU; use --device cpu"):
        resolve_device(text)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("text", ["auto", "cuda", "cuda:0", "cuda:3"])
def test_under_torchrun_each_rank_has_its_own_gpu(monkeypatch, text):
    """A run's config.toml may name rank 0's GPU: every rank would go there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert resolve_device(text) == torch.device("cuda", rank)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(PetsegError, match=r"LOCAL_RANK 4: this machine has 4 GPU\(s\)"):
        resolve_device(text)
    monkeypatch.delenv("LOCAL_RANK")
    assert resolve_device("cuda:3") == torch.device("cuda", 3) and resolve_device("cuda") == torch.device("cuda", 0)


LONG = ("-m", "petseg", "train", "--ranks", "2", "--size", "32", "--width", "4", "--depth", "3", "--device", "cpu",
        "--epochs", "9999", "--compile", "off")  # fmt: skip


def stopped(command, environment, stop) -> tuple[int, str, str]:
    """Exit code, output and errors of a run that is stopped after its first epoch."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        stop(process)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ranks_that_are_stopped_end_in_one_sentence(packed, tmp_path, environment, how):
    """Ctrl-C reaches the process that started the ranks."""
    command = [sys.executable, "-u", *LONG, "--shards", str(packed), "--run-dir", str(tmp_path / "run")]
    code, out, err = stopped(command, environment, lambda process: process.send_signal(how))
    assert (code, err) == (128 + how, "")
    assert out.strip().splitlines()[-1] == (
        f"Stopped and saved. Resume with: petseg-train --resume --run-dir {tmp_path / 'run'} --ranks 2"
    )


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_the_others_with_it(packed, tmp_path, environment):
    def kill_one(process):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    command = [sys.executable, "-u", *LONG, "--shards", str(packed), "--run-dir", str(tmp_path / "run")]
    code, _, err = stopped(command, environment, kill_one)
    assert code == 2
    assert re.search(r"^error: the other ranks were stopped because rank \d ended with signal 9 ", err, re.MULTILINE)


HURRIED = """
import sys
from torch.distributed.elastic.rendezvous import dynamic_rendezvous, utils
from petseg.cli.app import run, umbrella

begin = utils._PeriodicTimer.__init__
beats = 0

def hurried(timer, interval, *rest, **named):
    begin(timer, interval / 1e6, *rest, **named)

def beat(weak):
    global beats
    beats += 1
    handler = weak()
    for _ in range(100 if handler is not None else 0):
        handler._state_holder._backend.get_state()

utils._PeriodicTimer.__init__ = hurried
dynamic_rendezvous.DynamicRendezvousHandler._keep_alive_weak = staticmethod(beat)
code = run(umbrella, "petseg", sys.argv[1:])
assert beats < 10, "torchrun's heartbeat was not slowed down"
sys.exit(code)
"""


@pytest.mark.slow
def test_no_heartbeat_is_on_its_way_when_ranks_are_stopped(packed, tmp_path, environment):
    """A million of torchrun's heartbeats where there is one; each that met the end of the process aborted it."""
    script = tmp_path / "hurried.py"
    script.write_text(HURRIED)
    command = [sys.executable, "-u", str(script), *LONG[2:], "--shards", str(packed), "--run-dir", str(tmp_path / "r")]
    code, _, err = stopped(command, environment, lambda process: process.send_signal(signal.SIGINT))
    assert (code, err) == (130, "")


def test_ranks_that_cannot_be_started(monkeypatch):
    with pytest.raises(PetsegError, match="--ranks: 0 is out of range"):
        wants_ranks(0, "cpu")
    assert wants_ranks(2, "cpu") and not wants_ranks(1, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert wants_ranks(4, "auto")
    with pytest.raises(PetsegError, match=r"--ranks: this machine has 4 GPU\(s\)"):
        wants_ranks(5, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not wants_ranks(2, "cpu") and not wants_ranks(1, "cpu")
    with pytest.raises(PetsegError, match="torchrun has started 2 processes"):
        wants_ranks(4, "cpu")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (1, 4)),
        ({"LOCAL_RANK": "1"}, (0, 1)),  # Lightning's launcher; then each hashes all
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE: '0' is not a number of at least 1"),
        ({"LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK: 'x' is not a number"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK 2 does not fit LOCAL_WORLD_SIZE 2"),
    ],
)
def test_the_share_of_a_machine_is_what_a_launcher_says(monkeypatch, names, expected):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(PetsegError, match=expected):
            local_share()
    else:
        assert local_share() == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set: start by torchrun"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' is not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 does not fit WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "TAKEN"}, "choose a free port"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"},
            "the 2 ranks cannot meet",
        ),
    ],
)
def test_ranks_that_cannot_meet_say_why(monkeypatch, names, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in names.items():
            monkeypatch.setenv(name, str(taken.getsockname()[1]) if value == "TAKEN" else value)
        with pytest.raises(PetsegError, match=words), open_world("cpu"):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_ranks_score_the_network_that_is_saved(packed, tmp_path, environment, capsys, fit):
    """By the default options: BatchNorm, averaged weights, dropout, Dice. Each rank's BatchNorm sees other batches."""
    folder = tmp_path / "run"
    launcher = ["-m", "petseg", "train", "--ranks", "2"]
    options = ["--size", "32", "--width", "4", "--depth", "3", "--device", "cpu", "--amp", "off", "--epochs", "2",
               "--batch-size", "4", "--lr", "1e-2", "--shards", str(packed), "--run-dir", str(folder),
               "--fit", fit]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, *options], env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert run(umbrella, "petseg", ["eval", str(folder), "--split", "val", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    best = records[json.loads((folder / "summary.json").read_text())["best_epoch"] - 1]["val"]
    assert found["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-9)
    assert found["loss"] == pytest.approx(best["loss"], rel=1e-5)
