"""Whole files, reads at an offset with and without pread, and the limits of containers."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from petseg.system import available_memory, cpu_quota, memory_limit, open_file, read_at, usable_cores, write_atomic


@pytest.mark.parametrize("there", [True, False])
def test_threads_do_not_move_each_others_position(tmp_path, monkeypatch, there):
    if not there:
        monkeypatch.delattr(os, "pread")
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 64)
    file = open_file(path)
    try:
        offsets = range(0, 256 * 63, 7)
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda at: read_at(file, 256, at), offsets))
        assert all(part[0] == at % 256 and len(part) == 256 for part, at in zip(parts, offsets, strict=True))
        assert len(read_at(file, 100, 256 * 64 - 10)) == 10
    finally:
        os.close(file)


def test_a_short_read_is_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 7), at))
    file = open_file(path)
    assert read_at(file, 100, 3) == bytes(range(3, 103)) and len(read_at(file, 100, 250)) == 6
    os.close(file)


@pytest.mark.parametrize(
    ("quota", "affinity", "cores"), [(4.0, 128, 4), (3.5, 128, 3), (0.5, 8, 1), (None, 8, 8), (16.0, 2, 2)]
)
def test_cores_are_those_that_a_container_may_use(monkeypatch, quota, affinity, cores):
    monkeypatch.setattr("petseg.system.cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(affinity))
    assert usable_cores() == cores


def test_write_atomic_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_limits_of_a_container_are_read(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    root.mkdir()
    own.write_text("0::/\n")
    (root / "cpu.max").write_text("150000 100000\n")
    (root / "memory.max").write_text("1073741824\n")
    assert cpu_quota(root, own) == 1.5 and memory_limit(root, own) == 2**30
    (root / "cpu.max").write_text("max 100000\n")
    (root / "memory.max").write_text("max\n")
    assert cpu_quota(root, own) is None and memory_limit(root, own) is None
    assert usable_cores() >= 1


def test_memory_is_what_the_tightest_cgroup_leaves_and_page_cache_does_not_count(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    deep = root / "slice" / "job"
    deep.mkdir(parents=True)
    own.write_text("0::/slice/job\n")
    assert available_memory(root, own) > 10**8, "no limit there: what the machine has"
    (root / "slice" / "memory.max").write_text("100000\n")
    (root / "slice" / "memory.current").write_text("60000\n")
    (root / "slice" / "memory.stat").write_text("anon 20000\ninactive_file 30000\nactive_file 10000\n")
    assert available_memory(root, own) == 80_000
    (deep / "memory.max").write_text("50000\n")
    (deep / "memory.current").write_text("20000\n")
    assert available_memory(root, own) == 30_000 and memory_limit(root, own) == 50_000
    (deep / "memory.current").write_text("70000\n")
    assert available_memory(root, own) == 0


def test_version_1_cgroups_are_read_too(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    folder = root / "memory" / "job"
    folder.mkdir(parents=True)
    own.write_text("7:memory:/job\n3:cpu,cpuacct:/job\n")
    (root / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    (folder / "memory.limit_in_bytes").write_text("90000\n")
    (folder / "memory.usage_in_bytes").write_text("50000\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20000\ntotal_active_file 0\n")
    assert available_memory(root, own) == 60_000 and memory_limit(root, own) == 90_000


def test_a_rename_is_on_the_disk_too(tmp_path, monkeypatch):
    """Without its folder's fsync a new name can be gone after a power cut."""
    synced, real = [], os.fsync

    def fsync(file):
        synced.append(stat.S_ISDIR(os.fstat(file).st_mode))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "data", b"new")
    assert synced == [False, True] and (tmp_path / "data").read_bytes() == b"new"
