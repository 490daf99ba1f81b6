"""Whether shards still hold the bytes that their manifest names: hashed once a file, then remembered."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import index_name, is_index_of
from petseg.errors import PetsegError
from petseg.system import locked, usable_cores

_RACY_NS = 2_000_000_000
"""A file younger than this could change again under the same time stamp, so it is not remembered."""

_MOST_BYTES = 1 << 26
"""Of the memory of one folder: some two million shards. A larger one is begun anew."""


def check_hashes(folder: Path, shards: Sequence[ShardInfo], *, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the SHA-256 of shards with the manifest's, and their indices with the tars.

    What was found sound is remembered in the user's cache folder by path, size, times and inode, so that the next run
    reads nothing. A cache that cannot be read or written is not an error.

    Args:
        folder: shard folder.
        shards: those to check.
        share: (k, n) checks every n-th of them from the k-th on: the ranks of one machine split the work.

    Raises:
        PetsegError: a shard cannot be read, holds other bytes, or has an index that is not its own.
    """
    for shard in unsound_shards(folder, shards[share[0] :: share[1]]):
        raise refused(folder, shard)


def refused(folder: Path, shard: ShardInfo) -> PetsegError:
    """The sentence for a shard that holds other bytes than the manifest says."""
    return PetsegError(
        f"{folder / shard.name} has another SHA-256 than the manifest says: copy or pack it again (`petseg verify "
        f"{folder}` names what is damaged; --on-bad-sample skip continues without it, --no-verify with it)."
    )


def unsound_shards(folder: Path, shards: Sequence[ShardInfo], known: set[str] | None = None) -> list[ShardInfo]:
    """Those of `shards` that hold other bytes than the manifest says; sound ones are remembered.

    Args:
        folder: shard folder.
        shards: those to check.
        known: what is remembered of the folder (`remembered`), where the caller has it.

    Raises:
        PetsegError: a shard cannot be read, or has an index that is not its own.
    """
    mine = unknown_shards(folder, shards, known)
    if not mine:
        return []
    with ThreadPoolExecutor(min(len(mine), usable_cores()), "petseg-hash") as pool:
        sound = list(pool.map(lambda shard: _is_sound(folder, shard), mine))
    return [shard for shard, is_sound in zip(mine, sound, strict=True) if not is_sound]


def unknown_shards(folder: Path, shards: Sequence[ShardInfo], known: set[str] | None = None) -> list[ShardInfo]:
    """Those of `shards` whose bytes were not checked since they last changed."""
    known = remembered(folder) if known is None else known
    return [shard for shard in shards if stamp_of(folder, shard) not in known]


def _is_sound(folder: Path, shard: ShardInfo) -> bool:
    """Whether a shard holds the manifest's bytes; if so it is remembered, whatever becomes of the others."""
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
        return False
    if not is_index_of(index, path):
        raise PetsegError(f"{index} is not the index of its tar: copy or pack it again, or run petseg index {folder}.")
    stamp = _stamp(shard, after, indexed)
    young = time.time_ns() - max(after.st_mtime_ns, indexed.st_mtime_ns) <= _RACY_NS
    if not young and _stamp(shard, before, index.stat()) == stamp:
        _remember(folder, stamp)
    return True


def stamp_of(folder: Path, shard: ShardInfo) -> str:
    """A stamp that tells a shard and its index from others of the same names; empty if one is missing."""
    path = folder / shard.name
    try:
        return _stamp(shard, path.stat(), path.with_name(index_name(path.name)).stat())
    except OSError:
        return ""


def _stamp(shard: ShardInfo, tar: os.stat_result, index: os.stat_result) -> str:
    """The stamp of a sound shard: a digest of its name, its hash, and the identity of its file and index."""
    every = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in (tar, index)]
    return hashlib.sha256(repr((shard.name, shard.sha256, every)).encode()).hexdigest()[:32]


def _memory(folder: Path) -> Path:
    """One file a shard folder: a line for each shard that was found sound.

    Lines are only added, so that ranks, and machines that have copies of their own behind one home folder, remember
    beside each other.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return platformdirs.user_cache_path("petseg", appauthor=False) / "hashes" / f"{name}.txt"


def remembered(folder: Path) -> set[str]:
    """What shards of a folder were found sound by (`stamp_of`)."""
    try:
        return set(_memory(folder).read_text("ascii", errors="replace").split())
    except (OSError, RuntimeError):
        return set()


def _remember(folder: Path, stamp: str) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        path = _memory(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file, locked(file.fileno()):
            if file.seek(0, os.SEEK_END) > _MOST_BYTES:
                file.truncate(0)
            file.write(f"\n{stamp}\n".encode())  # on a line of its own, even behind one that was cut off
