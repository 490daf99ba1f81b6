"""Decoding processes: as good as threads, and gone when nobody needs them."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from petseg import build_loader
from petseg.data.loaders import build
from petseg.data.loaders.child import LARGEST_MESSAGE
from petseg.data.loaders.crew import Processes, ThreadCrew
from petseg.errors import PetsegError

ALONE = 3
"""Processes of a loader that shares them with no other test."""


def loader_of(shards, **options):
    given = {"split": "train", "batch_size": 8, "size": (48, 40), "training": True, "num_threads": ALONE, **options}
    return build_loader("webdataset", shards=shards, **given)


def children() -> set[int]:
    every = {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
    return {int(pid) for pid in every if b"petseg.data.loaders.child" in command_of(int(pid))}


def command_of(pid: int) -> bytes:
    """A process's command line, waited for: it is empty for a moment after the process was started."""
    while alive(pid):
        if command := Path(f"/proc/{pid}/cmdline").read_bytes():
            return command
        time.sleep(0.01)
    return b""


def test_threads_and_processes_give_the_same_batches(packed, same, monkeypatch):
    with_processes = loader_of(packed)
    monkeypatch.delattr(os, "memfd_create")  # as in several builds of Python
    with_threads = loader_of(packed)
    assert isinstance(with_processes._engine._crew, Processes) and isinstance(with_threads._engine._crew, ThreadCrew)
    for ours, theirs in zip(with_processes, with_threads, strict=True):
        assert same(ours, theirs)
    with_processes.close()
    with_threads.close()


def test_batches_that_are_kept_stay_what_they_were(packed):
    loader = loader_of(packed, batch_size=4)
    kept, copies = [], []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            kept.append(batch)
            copies.append((batch.images.clone(), batch.codes.clone()))
            if batch.indices[0] % 3 == 0:
                del kept[0], copies[0]  # their places are used again
    loader.close()
    assert 5 < len(kept) < 25
    for batch, (images, codes) in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, images) and torch.equal(batch.codes, codes)


def test_loaders_share_their_processes_and_the_last_one_ends_them(packed):
    before = children()
    first, second = loader_of(packed), loader_of(packed, split="val", training=False)
    started = children() - before
    assert len(started) == ALONE
    next(iter(first))
    first.close()
    assert len(list(second)) == 2 and children() - before == started
    second.close()
    assert children() == before


def test_a_loader_that_is_merely_forgotten_ends_them_too(packed):
    before = children()
    loader = loader_of(packed)
    next(iter(loader))
    assert children() != before
    del loader
    gc.collect()
    assert children() == before


def test_a_process_that_is_killed_is_said_and_the_next_loader_has_new_ones(packed):
    before = children()
    loader = loader_of(packed)
    batches = iter(loader)
    next(batches)
    os.kill(min(children() - before), signal.SIGKILL)
    with pytest.raises(PetsegError, match=r"a decoding process died \(signal 9.*fewer --num-threads"):
        for _ in range(5):
            list(loader)
    other = loader_of(packed)
    assert len(list(other)) == 5
    loader.close()
    other.close()
    assert children() == before


def test_a_long_queue_does_not_lock_up(packed):
    """More tasks than the sockets hold, in both directions."""
    loader = loader_of(packed, batch_size=1, size=(16, 16), num_threads=2, prefetch_batches=3000)
    start = time.monotonic()
    assert sum(1 for _ in loader) == 42
    assert time.monotonic() - start < 30
    loader.close()


def test_a_path_that_no_message_holds_is_said():
    processes = Processes(1)
    with pytest.raises(PetsegError, match="shorter"):
        processes.submit([(0, ("x" * LARGEST_MESSAGE, 0, 0, 0), 0, 1, 1, 1)], (1, 1), [0, 3])
    processes.release()


def test_they_end_with_the_process_that_started_them(packed, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from petseg import build_loader\n"
        "loader = build_loader('webdataset', shards=sys.argv[1], split='train', batch_size=8, size=(48, 48))\n"
        "next(iter(loader))\n"
        "print(*(process.pid for _, process in loader._engine._crew._answers.values()), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script, packed], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids and all(alive(pid) for pid in pids)
        parent.kill()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_batch_may_be_far_larger_than_a_task(packed):
    loader = loader_of(packed, batch_size=42, size=(300, 200))
    (batch,) = loader
    assert batch.images.shape == (42, 300, 200, 3) and sorted(batch.indices.tolist()) == list(range(42))
    assert np.unique(batch.codes.numpy()).tolist() == [1, 2, 3]
    loader.close()


def test_memory_that_may_not_be_shared_is_said(packed):
    script = (
        "import resource, sys\n"
        "from petseg import build_loader\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
        "next(iter(build_loader('webdataset', shards=sys.argv[1], split='train', batch_size=8, size=(48, 48))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, packed], capture_output=True, text=True, check=False)
    assert "PetsegError: 131,072 bytes of memory cannot be shared" in done.stderr and "ulimit -f" in done.stderr


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(2, 1, 2), (96, 1, 16), (96, 8, 12), (4, 8, 1)])
def test_ranks_of_a_machine_share_its_cores(monkeypatch, cores, ranks, expected):
    monkeypatch.setattr(build, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert build.decoders(0) == expected and build.decoders(5) == 5
