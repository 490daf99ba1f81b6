"""SIGKILL at random moments: what is on disk is absent or whole, and the same command resumes to the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from petseg.data.sources.files import MANIFEST_NAME, WORK_FOLDER
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError
from petseg.run.checkpoint import load_checkpoint

MOST_KILLS = 6
"""Kills in a row before a run may finish."""

SAMPLES = 150
PACK = ("--short-side", "96", "--samples-per-shard", "16", "--split", "random")
TRAIN = (
    "--size", "32", "--width", "4", "--depth", "3", "--batch-size", "4", "--epochs", "4", "--device", "cpu",
    "--amp", "off", "--compile", "off", "--gallery", "0",
)  # fmt: skip


@dataclass
class Tally:
    """What was done, and what went wrong."""

    kills: int = 0
    finished: int = 0
    """Runs that were killed and then went on to their end."""
    kept: int = 0
    """Shards, or runs, that a later run found finished and left as they were."""
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"kills": self.kills, "finished": self.finished, "kept": self.kept, "faults": self.faults}


def kill_packs(folder: Path, rng: random.Random, enough: Callable[[Tally], bool]) -> Tally:
    """Kill `petseg-shard` until `enough`; from drawn pets and from files, with one worker and two.

    Args:
        folder: where everything is made.
        rng: decides about moments and sources.
        enough: asked before each run.
    """
    tally = Tally()
    sources = {"drawn": f"synthetic:{SAMPLES}", "files": str(_files(folder / "files"))}
    references: dict[str, tuple[Path, float]] = {}
    for name, source in sources.items():
        out = folder / f"reference-{name}"
        references[name] = out, run_petseg(["shard", source, str(out), *PACK, "--workers", "2"])
    while not enough(tally):
        name, workers, out = rng.choice(list(sources)), rng.choice((1, 2)), folder / "out"
        reference, seconds = references[name]
        command = ["shard", sources[name], str(out), *PACK, "--workers", str(workers)]
        before: dict[str, int] = {}
        for _ in range(rng.randint(1, MOST_KILLS)):
            if not _kill(command, rng.uniform(0, 1.1 * seconds), rng, tally):
                break
            tally.faults += [f"{name}, {workers} workers: {fault}" for fault in _pack_faults(out, reference)]
            before = _whole_shards(out)
            if (out / MANIFEST_NAME).exists():  # it was finished before the kill came
                break
        if not (out / MANIFEST_NAME).exists():
            run_petseg(command)
        after = {path.name: path.stat().st_ino for path in out.iterdir()}
        redone = [shard for shard, inode in before.items() if after.get(shard) != inode]
        tally.kept += len(before) - len(redone)
        tally.faults += [f"{name}: {shard} was finished and made again" for shard in redone]
        if (found := _bytes_of(out)) != _bytes_of(reference):
            tally.faults.append(f"{name}, {workers} workers: other bytes than the unbroken run's ({sorted(found)})")
        tally.finished += 1
        shutil.rmtree(out)
    return tally


def kill_trainings(folder: Path, rng: random.Random, enough: Callable[[Tally], bool]) -> Tally:
    """Kill `petseg-train` until `enough`: every cache, both loaders, with and without saves inside the epochs.

    Args:
        folder: where everything is made.
        rng: decides about moments and options.
        enough: asked before each run.
    """
    tally = Tally()
    shards = folder / "shards"
    run_petseg(
        ["shard", "synthetic:60", str(shards), "--short-side", "48", "--samples-per-shard", "8", "--split", "random"]
    )
    references: dict[tuple[str, str], tuple[dict[str, Any], float]] = {}
    while not enough(tally):
        cache, loader = rng.choice(("none", "host", "device")), rng.choice(("webdataset", "webdataset", "dali"))
        saves = rng.choice((("--save-every-steps", "1"), ("--save-every-steps", "3"), ()))
        common = ["train", "--shards", str(shards), *TRAIN, "--cache", cache, "--loader", loader]
        if (cache, loader) not in references:
            seconds = run_petseg([*common, "--run-dir", str(folder / "reference")])
            references[cache, loader] = outcome(folder / "reference"), seconds
            shutil.rmtree(folder / "reference")
        expected, seconds = references[cache, loader]
        run = folder / "run"
        command = [*common, *saves, "--run-dir", str(run), "--auto-resume"]
        for _ in range(rng.randint(1, MOST_KILLS)):
            if not _kill(command, rng.uniform(0.2, 1.1) * seconds, rng, tally):
                break
            for file in (run / "last.pt", run / "best.pt"):
                if file.exists():
                    try:
                        load_checkpoint(file)
                    except PetsegError as error:
                        tally.faults.append(f"{cache}, {loader}: {error}")
        tally.kept += (run / "last.pt").exists()
        run_petseg(command)
        if found := differences(expected, outcome(run)):
            tally.faults.append(f"{cache}, {loader}, {saves}: other than the unbroken run's: {', '.join(found)}")
        tally.finished += 1
        shutil.rmtree(run)
    return tally


def _files(folder: Path) -> Path:
    """Drawn pets as a folder of images and masks, of odd sizes."""
    source = SyntheticSource(SAMPLES, 3)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for pair in source.listing().pairs:
        image, mask = source.read(pair)
        (folder / "images" / f"{pair.key}.jpg").write_bytes(image)
        (folder / "masks" / f"{pair.key}.png").write_bytes(mask)
    return folder


def run_petseg(words: list[str]) -> float:
    """Run a command to its end; the seconds that it took.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "petseg", *words],
        env=marked()[1], capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}: {done.stderr[-3000:]}")
    return time.perf_counter() - began


def _kill(words: list[str], after: float, rng: random.Random, tally: Tally) -> bool:
    """Start a command and kill it, alone or with all its processes; False if it ended before."""
    mark, environment = marked()
    with subprocess.Popen(
        [sys.executable, "-m", "petseg", *words], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        _, err = process.communicate(timeout=60)
    if process.returncode != -signal.SIGKILL:
        if process.returncode:
            tally.faults.append(f"{' '.join(words)} exited with {process.returncode}: {err[-500:]}")
        return False
    tally.kills += 1
    if left := survivors(mark):
        tally.faults.append(f"{' '.join(words)}: processes {left} outlived it")
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    return True


def marked() -> tuple[bytes, dict[str, str]]:
    """A mark, and an environment that hands it on to every process that is started in it."""
    mark = f"PETSEG_TORTURE={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    return mark.encode(), {**os.environ, name: value}


def survivors(mark: bytes, seconds: float = 20) -> list[int]:
    """Processes with a mark that are still there after some time."""
    end = time.monotonic() + seconds
    while (left := list(_members(mark))) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _members(mark: bytes) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark in (entry / "environ").read_bytes():
                    yield int(entry.name)


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _pack_faults(out: Path, reference: Path) -> list[str]:
    """Files under a final name that are not those of the unbroken run."""
    if not out.exists():
        return []
    names = [path.name for path in out.iterdir() if path.is_file() and not path.name.startswith(".")]
    return [
        f"{name} is not whole"
        for name in names
        if not (reference / name).exists() or (out / name).read_bytes() != (reference / name).read_bytes()
    ]


def _whole_shards(out: Path) -> dict[str, int]:
    """Tars that are noted as finished, and their inodes."""
    notes = out / WORK_FOLDER
    names = [path.stem for path in notes.glob("*.tar.json")] if notes.is_dir() else []
    return {name: (out / name).stat().st_ino for name in names if (out / name).exists()}


def outcome(run: Path) -> dict[str, Any]:
    """What a run came to, without times."""
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "model": last["model"], "ema": last["ema"], "step": last["step"], "best model": best["model"],
        "best ema": best["ema"], "best epoch": best["epoch"],
        "records": [{key: each[key] for key in ("epoch", "train_loss", "lr", "val", "samples")} for each in records],
        "scores": {key: summary[key] for key in ("iou", "mean_iou", "confusion", "best_epoch")},
    }  # fmt: skip


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of what is not equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [each for key in one for each in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for n, (a, b) in pairs for each in differences(a, b, f"{name}/{n}")]
    return [] if one == other else [name]
