"""Whether shards still hold the bytes that their manifest names: hashed once a file, then remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from petseg.data.shards.index import index_name, is_index_of
from petseg.data.shards.manifest import ShardInfo
from petseg.errors import PetsegError
from petseg.system import usable_cores, write_atomic

_RACY_NS = 2_000_000_000
"""A file younger than this could change again under the same time stamp, so it is not remembered."""


def check_hashes(folder: Path, shards: Sequence[ShardInfo], *, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the SHA-256 of shards with the manifest's, and their indices with the tars.

    What was found sound is remembered in the user's cache folder by path, size, times and inode, so that the next run
    reads nothing. A cache that cannot be read or written is no error.

    Args:
        folder: shard folder.
        shards: those to check.
        share: (k, n) checks every n-th of them from the k-th on: the ranks of one machine split the work.

    Raises:
        PetsegError: a shard cannot be read, holds other bytes, or has an index that is not its own.
    """
    for shard in unsound_shards(folder, shards[share[0] :: share[1]]):
        raise PetsegError(
            f"{folder / shard.name} has another SHA-256 than the manifest says: copy or pack it again (`petseg verify "
            f"{folder}` names what is damaged; --on-bad-sample skip goes on without that, --no-verify with it)."
        )


def unsound_shards(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    """Those of `shards` that hold other bytes than the manifest says; sound ones are remembered.

    Raises:
        PetsegError: a shard cannot be read, or has an index that is not its own.
    """
    mine = unknown_shards(folder, shards)
    if not mine:
        return []
    with ThreadPoolExecutor(min(len(mine), usable_cores()), "petseg-hash") as pool:
        checked = list(pool.map(lambda shard: _check(folder, shard), mine))
    _remember(folder, {shard.name: stamp for shard, (_, stamp) in zip(mine, checked, strict=True) if stamp})
    return [shard for shard, (sound, _) in zip(mine, checked, strict=True) if not sound]


def unknown_shards(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    """Those of `shards` whose bytes were not checked since they last changed."""
    known = _known(folder)
    return [shard for shard in shards if not _is_known(folder / shard.name, shard, known.get(shard.name))]


def _check(folder: Path, shard: ShardInfo) -> tuple[bool, list[int | str] | None]:
    """(whether it holds the manifest's bytes; the stamp to remember it by)."""
    path, index = folder / shard.name, folder / index_name(shard.name)
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        indexed = index.stat()
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}): copy it again, or pack again.") from error
    if digest != shard.sha256:
        return False, None
    if not is_index_of(index, path):
        raise PetsegError(f"{index} is not the index of its tar: copy or pack it again, or run petseg index {folder}.")
    stamp = _stamp(after, indexed, digest)
    young = time.time_ns() - max(after.st_mtime_ns, indexed.st_mtime_ns) <= _RACY_NS
    settled = _stamp(before, index.stat(), digest) == stamp and not young
    return True, stamp if settled else None


def _is_known(path: Path, shard: ShardInfo, known: object) -> bool:
    try:
        return known == _stamp(path.stat(), path.with_name(index_name(path.name)).stat(), shard.sha256)
    except OSError:
        return False


def _stamp(tar: os.stat_result, index: os.stat_result, sha256: str) -> list[int | str]:
    every = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in (tar, index)]
    return [*every[0], *every[1], sha256]


def _memory(folder: Path) -> Path:
    """One file a shard folder, so that runs on different shards never write the same one."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("petseg", appauthor=False) / "hashes" / f"{name}.json"


def _known(folder: Path) -> dict[str, object]:
    try:
        known = json.loads(_memory(folder).read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(folder: Path, sound: dict[str, list[int | str]]) -> None:
    try:
        path = _memory(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**_known(folder), **sound}).encode())
    except (OSError, RuntimeError):
        return
