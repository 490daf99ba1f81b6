"""Ranks that die: torchrun starts them again with the same command, and the run ends as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.kill import TRAIN, Tally, differences, marked, outcome, run_petseg, survivors

RESTARTS = 4


def kill_ranks(folder: Path, rng: random.Random, enough: Callable[[Tally], bool]) -> Tally:
    """Kill one rank of two, again and again, until `enough`.

    Args:
        folder: where everything is made.
        rng: decides about moments and ranks.
        enough: asked before each run.
    """
    tally = Tally()
    shards, reference, run = folder / "shards", folder / "reference", folder / "run"
    # One sample in test: one of the ranks has none of it.
    run_petseg(["shard", "synthetic:12", str(shards), "--short-side", "48", "--split", "random"])
    options = ["--shards", str(shards), *TRAIN, "--save-every-steps", "1"]
    began = time.perf_counter()
    _Torchrun([*options, "--run-dir", str(reference)]).check()
    seconds = time.perf_counter() - began
    expected = outcome(reference)
    while not enough(tally):
        job = _Torchrun([*options, "--run-dir", str(run), "--auto-resume"])
        for _ in range(rng.randint(1, RESTARTS)):
            if job.kill_one(rng.uniform(0.3, 0.9) * seconds, rng):
                tally.kills += 1
        job.check()
        if found := differences(expected, outcome(run)):
            tally.faults.append(f"other than the unbroken run's: {', '.join(found)}")
        tally.finished += 1
        shutil.rmtree(run)
    return tally


class _Torchrun:
    """`torchrun` with two ranks on this machine, which restarts them where one dies."""

    def __init__(self, options: list[str]) -> None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(RESTARTS)]
        self._mark, environment = marked()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *launcher, "-m", "petseg", "train", *options],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def kill_one(self, after: float, rng: random.Random) -> bool:
        """Kill a rank after some seconds; False where the job had ended by then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(after)
            return False
        number = self._process.pid
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        if not children:  # between two starts
            return False
        os.kill(int(rng.choice(children)), signal.SIGKILL)
        return True

    def check(self) -> None:
        """Wait for the end.

        Raises:
            RuntimeError: it failed, or left processes behind.
        """
        _, err = self._process.communicate(timeout=300)
        if self._process.returncode:
            raise RuntimeError(f"torchrun exited with {self._process.returncode}: {err[-4000:]}")
        if left := survivors(self._mark):
            raise RuntimeError(f"torchrun left the processes {left}")
