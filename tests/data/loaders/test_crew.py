"""Decoding processes: as good as threads, and gone when nobody needs them."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import petseg
from petseg import Manifest, build_loader
from petseg.data.decode.boxes import Framing
from petseg.data.decode.resize import resize_image
from petseg.data.loaders import build
from petseg.data.loaders.child import LARGEST_MESSAGE
from petseg.data.loaders.crew import Processes, ThreadCrew
from petseg.data.shards import files
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError
from tests.data.loaders.ways import open_loader

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
        processes.submit([(0, ("x" * LARGEST_MESSAGE, 0, 0, 0), 0, 1, 1, 1)], Framing((1, 1)), [0, 3])
    processes.close()


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


def repack(shards, seed):
    """Other samples in the place of a folder's."""
    shutil.rmtree(shards)
    pack(
        SyntheticSource(60, seed),
        shards,
        PackOptions(split="random", seed=86, short_side=64, samples_per_shard=12),
        workers=1,
    )


@pytest.mark.parametrize("name", ["webdataset", "dali"])
def test_a_folder_that_was_packed_anew_is_read_anew(packed_copy, name):
    """Another loader keeps the processes alive, and with them the files that they have opened."""
    old = open_loader(name, packed_copy, training=False)
    before = torch.cat([batch.images for batch in old])
    repack(packed_copy, 77)
    new = open_loader(name, packed_copy, training=False)
    after = torch.cat([batch.images for batch in new])
    reader = ShardReader(packed_copy, Manifest.load(packed_copy), "train")
    expected = resize_image(reader.decoded(5)[0], 32, 32)
    assert not torch.equal(before, after)
    assert np.abs(after[5].numpy().astype(int) - expected).max() <= 6
    if name == "webdataset":  # the processes have the new files under these names, or none for a moment
        words = r"train-.*\.tar(: sample .* cannot be read| is another file than when it was opened| is shorter than)"
        with pytest.raises(PetsegError, match=words):
            list(old)
    else:
        assert torch.equal(torch.cat([batch.images for batch in old]), before)
    for each in (old, new, reader):
        each.close()


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(packed, tmp_path, closed):
    script = (
        "import sys\nfrom pathlib import Path\nfrom petseg import build_loader\n"
        "loader = build_loader('webdataset', shards=sys.argv[1], split='train', batch_size=8, size=(48, 48))\n"
        "Path(sys.argv[2]).write_text(str(len(list(loader))))\n"
    )
    told = tmp_path / "told"
    command = f'"{sys.executable}" -c "$0" "{packed}" "{told}" {closed}'
    subprocess.run(["sh", "-c", command, script], check=True, timeout=60)
    assert told.read_text() == "6"


def test_a_backport_beside_petseg_does_not_hide_the_standard_library(packed, tmp_path):
    """Where petseg is installed, other people's `typing.py` and the like may be too."""
    site = tmp_path / "site"
    shutil.copytree(Path(petseg.__file__).parent, site / "petseg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mmap", "socket", "pickle"):
        (site / f"{name}.py").write_text("raise ImportError('a backport')")
    script = (
        "import mmap, pickle, socket, sys\n"  # the parent has the true ones
        f"sys.path.insert(0, {str(site)!r})\n"
        "import petseg\n"
        f"assert petseg.__file__.startswith({str(site)!r})\n"
        "loader = petseg.build_loader('webdataset', shards=sys.argv[1], split='train', batch_size=8, size=(48, 48))\n"
        "assert len(list(loader)) == 6\n"
    )
    subprocess.run([sys.executable, "-c", script, packed], check=True, timeout=60)


def test_few_tars_stay_open_and_few_are_opened_again(packed, monkeypatch):
    monkeypatch.setattr(files, "MAX_OPEN", 3)
    opened = []
    real = files.open_file
    monkeypatch.setattr(files, "open_file", lambda path: opened.append(path) or real(path))
    tars = []
    for number in range(20):
        tar = Path(shutil.copy(next(packed.glob("train-*.tar")), packed.parent / f"copy-{number}.tar"))
        tars.append(files.tar_file(str(tar), tar.stat()))
    reads = files.TarFiles()
    for first in range(0, 20, 2):  # a window of two shards, read in turn
        for turn in range(30):
            reads.read((0, tars[first + turn % 2], 512, 64, 576, 64))
        assert len(descriptors_of(tars)) <= 3
    assert len(opened) == 20
    reads.close()
    assert not descriptors_of(tars)


def descriptors_of(tars) -> list[str]:
    paths = {tar[0] for tar in tars}
    return [link for file in Path("/proc/self/fd").iterdir() if (link := os.path.realpath(file)) in paths]
