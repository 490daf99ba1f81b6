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

from petseg.data.shards.manifest import ShardInfo
from petseg.errors import PetsegError
from petseg.system import usable_cores, write_atomic

_RACY_NS = 2_000_000_000
"""A file younger than this could change again under the same time stamp, so it is not remembered."""


def check_hashes(folder: Path, shards: Sequence[ShardInfo], *, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the SHA-256 of shards with the manifest's.

    What was found sound is remembered in the user's cache folder by path, size, times and inode, so that the next run
    reads nothing. A cache that cannot be read or written is no error.

    Args:
        folder: shard folder.
        shards: those to check.
        share: (k, n) checks every n-th of them from the k-th on: the ranks of one machine split the work.

    Raises:
        PetsegError: a shard cannot be read, or holds other bytes.
    """
    for shard in unsound_shards(folder, shards[share[0] :: share[1]]):
        raise PetsegError(
            f"{folder / shard.name} has another SHA-256 than the manifest says: copy or pack it again (`petseg verify "
            f"{folder}` names what is damaged; --on-bad-sample skip goes on without that, --no-verify with it)."
        )


def unsound_shards(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    """Those of `shards` that hold other bytes than the manifest says; sound ones are remembered.

    Raises:
        PetsegError: a shard cannot be read.
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
    path = folder / shard.name
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}): copy it again, or pack again.") from error
    if digest != shard.sha256:
        return False, None
    stamp = _stamp(after, digest)
    settled = _stamp(before, digest) == stamp and time.time_ns() - after.st_mtime_ns > _RACY_NS
    return True, stamp if settled else None


def _is_known(path: Path, shard: ShardInfo, known: object) -> bool:
    try:
        return known == _stamp(path.stat(), shard.sha256)
    except OSError:
        return False


def _stamp(stat: os.stat_result, sha256: str) -> list[int | str]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sha256]


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
