"""What a check of shards has found, remembered for the case that it is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import platformdirs

from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.hashes import stamp_of
from petseg.data.shards.index import read_index
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.errors import PetsegError


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a shard."""

    shard: ShardInfo
    problems: list[str]
    """One clause each."""
    counts: dict[int, int]
    """Mask pixels by code."""
    keys: list[str]


class Journal:
    """The sound shards of a check: a line for each, in a file that goes when the check has come to its end.

    A file that cannot be read or written is no error: then a check that was killed begins anew.

    Args:
        folder: where the shards are.
        manifest: theirs.
    """

    def __init__(self, folder: Place, manifest: Manifest) -> None:
        self._folder = folder
        where = os.fsencode(folder.resolve()) if isinstance(folder, Path) else folder.address.encode()
        name = hashlib.sha256(where + manifest.digest.encode()).hexdigest()[:32]
        self._path = platformdirs.user_cache_path("petseg", appauthor=False) / "verified" / f"{name}.jsonl"
        self._known: dict[str, dict[int, int]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # cut off by a kill
                    stamp, counts = json.loads(line)
                    self._known[stamp] = {int(code): int(n) for code, n in counts.items()}
        self._file = None
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def find(self, shard: ShardInfo, index: Path) -> Checked | None:
        """What an earlier check found in a shard that was sound, and is the same; None where it is to be checked."""
        counts = self._known.get(self._stamp(shard))
        if counts is None:
            return None
        try:
            return Checked(shard, [], counts, [entry.key for entry in read_index(index)])
        except PetsegError:
            return None

    def add(self, checked: Checked) -> None:
        """Remember a shard, if it is sound."""
        stamp = self._stamp(checked.shard)
        if self._file and stamp and not checked.problems:
            with contextlib.suppress(OSError):
                self._file.write(f"\n{json.dumps([stamp, checked.counts])}\n".encode())

    def finish(self) -> None:
        """The check has come to its end: the next one begins anew."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _stamp(self, shard: ShardInfo) -> str:
        """What tells its bytes from others; in the cache of a store's shards that is their name."""
        return stamp_of(self._folder, shard) if isinstance(self._folder, Path) else shard.sha256
