"""Worker processes: results, errors, and the deaths of both ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petseg.data.shards.pool import run_jobs
from petseg.errors import PetsegError

WORK = """
import os, signal, sys, time
from petseg.errors import PetsegError
from petseg.data.shards.pool import run_jobs

class Work:
    def __call__(self, job, report):
        if job == "refuse":
            raise PetsegError("the disk is full.")
        if job == "fail":
            raise ZeroDivisionError("a bug")
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "wait":
            print(os.getpid(), flush=True)
            for _ in range(600):
                report(0)
                time.sleep(0.1)
        report(job if isinstance(job, int) else 1)
        return job

if __name__ == "__main__":
    ticks = []
    jobs = [int(word) if word.isdecimal() else word for word in sys.argv[2:]]
    try:
        print(sorted(run_jobs(Work(), jobs, workers=int(sys.argv[1]), progress=ticks.append)), sum(ticks))
    except (PetsegError, RuntimeError) as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def start(tmp_path, environment):
    script = tmp_path / "script.py"
    script.write_text(WORK)

    def begin(*args) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, script, *map(str, args)], env=environment, stdout=subprocess.PIPE, text=True
        )

    return begin


def test_every_job_is_done_once(start):
    out, _ = start(3, *range(1, 11)).communicate(timeout=60)
    assert out.strip() == f"{list(range(1, 11))} 55"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("refuse", ["PetsegError the disk is full."]),
        ("fail", ["RuntimeError packing failed in a worker process", "ZeroDivisionError: a bug"]),
        ("die", ["PetsegError a packing process died (exit code -9)", "fewer --workers"]),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said(start, job, words):
    out, _ = start(2, 1, 2, job, 3, 4).communicate(timeout=60)
    assert all(word in out for word in words), out


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_workers_end_with_their_parent(start):
    process = start(2, "wait", 1)
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    process.stdout.close()
    deadline = time.monotonic() + 30
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(pid)


def test_one_worker_needs_no_process():
    here = []

    def work(job, report):
        report(1)
        here.append(os.getpid())
        return job

    ticks: list[int] = []
    assert list(run_jobs(work, [1, 2, 3], workers=1, progress=ticks.append)) == [1, 2, 3]
    assert set(here) == {os.getpid()} and sum(ticks) == 3

    def refuse(job, report):
        raise PetsegError("no.")

    with pytest.raises(PetsegError):
        list(run_jobs(refuse, [1], workers=1, progress=ticks.append))
