"""Shards of a store on this machine's disk: fetched once, whole or not at all, removed by when they are used next."""

import hashlib
import io
import os
import signal
import tarfile
import threading
import time

import numpy as np
import pytest

from petseg import Manifest
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import index_name, read_index
from petseg.data.shards.place import RemoteShards
from petseg.data.shards.shardcache import ShardCache, parse_bytes, refuse_small, verify
from petseg.data.shards.stage import Stage
from petseg.errors import PetsegError
from tests.servers import Faults, proxy, web_server


def tar_of(size, seed=0):
    """The bytes of a tar of one file of random bytes."""
    out, data = io.BytesIO(), np.random.default_rng(seed).bytes(size)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = size
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def remote(packed):
    """(address, faults) of the packed pets behind a proxy."""
    faults = Faults()
    with web_server(packed) as inner, proxy(inner, faults) as address:
        yield address, faults


@pytest.fixture
def stage(remote, packed, tmp_path):
    """Makes stages of the train split's shards; closes them."""
    made = []

    def make(**options):
        shards = Manifest.load(packed).split("train").shards
        notes = options.pop("notes", [])
        made.append(Stage(RemoteShards(remote[0], tmp_path / "cache", note=notes.append, **options), shards))
        return made[-1]

    yield make
    for each in made:
        each.close()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetched(faults):
    return [request.path for request in faults.requests]


def test_shards_come_in_order_whole_and_with_their_index(stage, remote, packed, tmp_path):
    one = stage()
    one.follow(range(len(one.shards)))
    assert one.take(range(len(one.shards)), wait=True)
    for number, shard in enumerate(one.shards):
        assert one.path(number).read_bytes() == (packed / shard.name).read_bytes()
        assert read_index(one.index(number)) == read_index(packed / index_name(shard.name))
    assert sorted(fetched(remote[1])) == sorted(f"/{shard.name}" for shard in one.shards)
    names = {f"{s.sha256[:2]}/{s.sha256}{end}" for s in one.shards for end in (".tar", ".idx")}
    assert set(files(tmp_path / "cache")) == names
    assert all(sound for _, sound in verify(one.cache))
    one.close()
    again = stage(offline=True)
    again.follow(range(len(again.shards)))
    assert again.take([0], wait=False) and again._helper is None, "nothing is fetched, or hashed, again"


def test_what_is_not_kept_is_said_offline(stage, remote):
    with pytest.raises(PetsegError, match=r"--offline: http.*train-000000.tar is not in .*: petseg fetch http"):
        stage(offline=True).take([0], wait=False)
    assert not remote[1].requests


@pytest.mark.parametrize("fault", ["lie", "short"])
def test_wrong_bytes_are_fetched_once_more_then_refused(stage, remote, fault, tmp_path):
    faults = remote[1]
    faults.plan = lambda request: fault if len(faults.requests) == 1 else ""
    one = stage()
    assert one.take([0], wait=True) and len(faults.requests) == 2
    faults.plan = lambda request: fault
    with pytest.raises(
        PetsegError, match=rf"/{one.shards[1].name} has SHA-256 \w+, fetched twice, .*{one.shards[1].sha256}"
    ):
        one.take([1], wait=True)
    assert not one.cache.holds(one.shards[1].sha256)
    faults.plan = lambda request: ""
    assert one.take([1], wait=True), "asked for again, it is fetched again"


def test_a_shard_that_is_not_there_is_said(stage, remote):
    remote[1].plan = lambda request: "404"
    with pytest.raises(PetsegError, match=r"train-000000.tar: there is no such object"):
        stage().take([0], wait=True)


def test_a_helper_that_dies_is_said_and_its_part_is_gone_on_with(tmp_path):
    data = tar_of(3_000_000)
    shard = ShardInfo(name="large.tar", samples=1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "large.tar").write_bytes(data)
    faults = Faults(plan=lambda request: "stall", stalls=30)
    with web_server(tmp_path / "served") as inner, proxy(inner, faults) as address:
        one = Stage(RemoteShards(address, tmp_path / "cache"), [shard])
        one.take([0], wait=False)
        part = one.cache.tar(shard.sha256).with_suffix(".partial")
        deadline = time.monotonic() + 20
        while not (part.is_file() and part.stat().st_size > 1_000_000) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(one._helper.pid, signal.SIGKILL)
        with pytest.raises(PetsegError, match="the process that fetches shards died"):
            one.take([0], wait=True)
        size = part.stat().st_size
        assert 1_000_000 < size < len(data) and files(tmp_path / "cache") == [f"{shard.sha256[:2]}/{part.name}"]
        faults.plan = lambda request: ""
        again = Stage(RemoteShards(address, tmp_path / "cache"), [shard])
        assert again.take([0], wait=True) and again.path(0).read_bytes() == data
        assert faults.requests[-1].start == size, "under the same ETag"
        again.close()


def test_processes_of_a_machine_fetch_each_shard_once(stage, remote):
    stages = [stage() for _ in range(3)]
    for one in stages:
        one.follow(range(len(one.shards)))
    for one in stages:
        assert one.take(range(len(one.shards)), wait=True)
    assert len(fetched(remote[1])) == len(set(fetched(remote[1]))) == len(stages[0].shards)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_under_a_limit_what_is_used_last_goes_first(tmp_path, share):
    """Hit rates come to the share that fits, where the least recently used would have .03, .15 and .39."""
    count, epochs, rng = 24, 4, np.random.default_rng(1)
    (served := tmp_path / "served").mkdir()
    shards = []
    for number in range(count):
        data = tar_of(20_000, number)
        (served / f"{number}.tar").write_bytes(data)
        shards.append(
            ShardInfo(name=f"{number}.tar", samples=1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        )
    limit = int(share * count) * len(data)
    order = np.concatenate([rng.permutation(count) for _ in range(epochs)]).tolist()
    faults = Faults()
    with web_server(served) as inner, proxy(inner, faults) as address:
        one = Stage(RemoteShards(address, tmp_path / "cache", limit), shards)
        for at, number in enumerate(order):
            if at % count == 0:  # a run knows this epoch and the next
                one.follow(order[at : at + 2 * count])
            one.reach(at % count)
            assert one.take([number], wait=True)
            assert sum(each.bytes for each in one.cache.stored()) <= limit
            one.release([number])
        one.close()
    hits = 1 - (len(faults.requests) - count) / (count * (epochs - 1))
    assert hits > share - 0.12, f"{hits:.2f}"


def test_what_somebody_reads_and_what_is_not_petsegs_is_never_removed(tmp_path):
    cache = ShardCache(tmp_path / "cache")
    names = []
    for number in range(3):
        data = tar_of(1000, number)
        sha = hashlib.sha256(data).hexdigest()
        names.append(sha)
        with cache.filling(sha) as filling:
            filling.begin('"tag"')
            filling.append(memoryview(data))
            assert filling.finish() == sha
    foreign = [tmp_path / "cache" / "notes.txt", tmp_path / "cache" / "ab" / "mine.tar"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("keep me")
    held = cache.hold(names[1])
    small = ShardCache(tmp_path / "cache", limit=len(data) + 100)
    assert small.make_room(1000, lambda sha: float("inf"), 0.0) is False, "the one that is read still is there"
    assert [each.sha256 for each in cache.stored()] == [names[1]]
    held.close()
    assert small.make_room(1000, lambda sha: float("inf"), 0.0)
    assert not cache.stored() and all(path.read_text() == "keep me" for path in foreign)


def test_two_at_one_shard(tmp_path):
    cache = ShardCache(tmp_path)
    data = np.random.default_rng(0).bytes(100_000)
    sha = hashlib.sha256(data).hexdigest()
    winners = []

    def fill():
        for _ in range(50):
            with cache.filling(sha) as filling:
                if filling:
                    filling.restart()
                    filling.append(memoryview(data))
                    winners.append(filling.finish())

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [sha] and cache.tar(sha).read_bytes() == data
    assert files(tmp_path) == [f"{sha[:2]}/{sha}.tar"]


def test_a_full_disk_makes_room_or_says_so(stage, remote, monkeypatch, tmp_path):
    from petseg.data.shards import shardcache

    writes = []

    def full(file, data):
        writes.append(len(data))
        raise OSError(28, "No space left on device")

    cache = ShardCache(tmp_path / "c")
    sha = hashlib.sha256(b"x").hexdigest()
    with cache.filling(sha) as filling:
        monkeypatch.setattr(shardcache.os, "write", full)
        with pytest.raises(shardcache.FullDisk, match=r"is full: give --shard-cache a larger disk"):
            filling.append(memoryview(b"x"))
        assert filling.size == 0


def test_sizes_in_words():
    assert [parse_bytes(text) for text in ("200GB", "1.5 TB", "500000", "3k")] == [
        200 * 10**9,
        15 * 10**11,
        500000,
        3000,
    ]
    for text in ("much", "", "-1", "1XB"):
        with pytest.raises(PetsegError, match="number of bytes"):
            parse_bytes(text)
    refuse_small(None, 10**9, "two windows")
    with pytest.raises(
        PetsegError, match=r"--shard-cache-limit 1.0 MB is too small: two windows take 2.0 MB \(2000000 bytes\)"
    ):
        refuse_small(10**6, 2 * 10**6, "two windows")
