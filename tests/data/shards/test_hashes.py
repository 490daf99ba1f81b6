"""Shards are hashed once, remembered, and hashed again when they change; both loaders refuse what was altered."""

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import platformdirs
import pytest

from petseg import Manifest, build_loader
from petseg.data.shards.hashes import _memory, _remember, check_hashes, unknown_shards
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError


@pytest.fixture
def settled(packed_copy) -> Path:
    """Shards that were written long enough ago to be remembered."""
    for file in packed_copy.glob("*.*"):
        os.utime(file, ns=(1_700_000_000_000_000_000,) * 2)
    return packed_copy


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed."""
    names: list[str] = []
    real = hashlib.file_digest

    def counting(file, digest):
        names.append(Path(file.name).name)
        return real(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return names


def check(shards: Path) -> None:
    check_hashes(shards, Manifest.load(shards).split("train").shards)


def break_an_image(shards: Path) -> Path:
    """Zeros inside one JPEG, its end intact: DALI would fill the rest up and say nothing."""
    manifest = Manifest.load(shards)
    reader = ShardReader(shards, manifest, "train", verify=False)
    image = bytes(reader.read(17)[0])
    tar = Path(reader.where(17).partition(": ")[0])
    reader.close()
    data = bytearray(tar.read_bytes())
    at = data.find(image) + len(image) // 2
    data[at : at + 60] = bytes(60)
    stat = tar.stat()
    tar.write_bytes(data)
    os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return tar


def test_an_index_that_is_not_its_tars_is_refused_even_where_it_could_be_read(settled, hashed):
    check(settled)
    index = settled / "train-000000.idx"
    lines = index.read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    index.write_text("\n".join(lines) + "\n")
    with pytest.raises(PetsegError, match=r"train-000000\.idx is not the index of its tar"):
        check(settled)


@pytest.mark.parametrize("name", ["dali", "webdataset"])
def test_a_loader_refuses_shards_that_were_altered(settled, name):
    def load(**more):
        return build_loader(name, shards=settled, split="train", batch_size=4, size=(32, 32), **more)

    load().close()  # remembered as sound, and altered since, with the time stamp put back
    tar = break_an_image(settled)
    with pytest.raises(PetsegError, match=rf"{tar.name} has another SHA-256 .*petseg verify .*--no-verify"):
        load()
    load(verify=False).close()


def test_sound_shards_are_hashed_once(settled, hashed):
    check(settled)
    assert sorted(hashed) == sorted(path.name for path in settled.glob("train-*.tar"))
    check(settled)
    check(settled)
    assert len(hashed) == len(set(hashed))


def test_a_shard_that_was_just_written_is_not_remembered_yet(packed_copy, hashed):
    first = next(packed_copy.glob("train-*.tar"))
    os.utime(first, ns=(time.time_ns(),) * 2)
    check(packed_copy)
    check(packed_copy)
    assert hashed.count(first.name) == 2


def test_a_copy_is_hashed_for_itself(settled, hashed, tmp_path):
    check(settled)
    check(Path(shutil.copytree(settled, tmp_path / "copy")))
    assert len(hashed) == 2 * len(set(hashed))


@pytest.mark.parametrize("content", [b"", b"[]", b"0123\n", b"\xff"])
def test_a_damaged_memory_is_no_error(settled, hashed, content):
    check(settled)
    for file in platformdirs.user_cache_path("petseg", appauthor=False).rglob("*.txt"):
        file.write_bytes(content)
    check(settled)
    assert len(hashed) == 2 * len(set(hashed))


def test_a_cache_that_cannot_be_written_is_no_error(settled, hashed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check(settled)
    check(settled)
    assert len(hashed) == 2 * len(set(hashed))


def test_the_ranks_of_a_machine_share_the_work(settled, hashed):
    shards = Manifest.load(settled).split("train").shards
    for rank in range(3):
        check_hashes(settled, shards, share=(rank, 3))
    assert sorted(hashed) == sorted(shard.name for shard in shards)
    assert unknown_shards(settled, shards) == []


def test_what_is_sound_is_remembered_whatever_becomes_of_the_rest(settled, hashed):
    shards = Manifest.load(settled).split("train").shards
    index = settled / "train-000002.idx"
    kept = index.read_bytes()
    index.unlink()
    with pytest.raises(PetsegError, match=r"train-000002\.tar cannot be read"):
        check(settled)
    index.write_bytes(kept)
    os.utime(index, ns=(1_700_000_000_000_000_000,) * 2)
    unknown = {shard.name for shard in unknown_shards(settled, shards)}
    assert unknown == {"train-000002.tar"} | {shard.name for shard in shards} - set(hashed)
    assert len(unknown) < len(shards)


def test_ranks_that_hash_at_once_lose_nothing_of_each_others(settled):
    shards = Manifest.load(settled).split("train").shards
    for each in range(40):
        _remember(settled, f"{each:032x}")  # a memory of some size takes longer to read
    ranks = [multiprocessing.get_context("fork").Process(target=check_hashes, args=(settled, shards), kwargs={
        "share": (rank, len(shards))
    }) for rank in range(len(shards))]  # fmt: skip
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(shards) > 2 and unknown_shards(settled, shards) == []


def test_copies_of_two_machines_at_one_path_do_not_forget_each_other(settled, hashed, tmp_path):
    """Local disks behind one home folder: what is remembered is one file."""
    other = shutil.copytree(settled, tmp_path / "other")
    for file in other.glob("*.*"):
        os.utime(file, ns=(1_600_000_000_000_000_000,) * 2)
    check(settled)
    first = len(hashed)
    for machine in (other, settled, other):
        away = settled.rename(tmp_path / "away")
        if machine is other:
            other.rename(settled)
            check(settled)
            settled.rename(other)
        else:
            away.rename(settled)
            check(settled)
            settled.rename(away)
        away.rename(settled)
    assert len(hashed) == 2 * first


def test_a_path_in_other_bytes_than_utf8_is_remembered_too(settled, hashed, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9t"))
    settled.rename(folder)
    check(folder)
    first = len(hashed)
    check(folder)
    assert len(hashed) == first > 0


def test_a_memory_that_grew_too_large_is_begun_anew(settled, hashed, monkeypatch):
    check(settled)
    (memory,) = platformdirs.user_cache_path("petseg", appauthor=False).rglob(_memory(settled).name)
    monkeypatch.setattr("petseg.data.shards.hashes._MOST_BYTES", 10)
    _remember(settled, "0" * 32)
    assert memory.read_text().split() == ["0" * 32]
