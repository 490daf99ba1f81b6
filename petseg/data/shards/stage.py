"""Shards of a store, brought to this machine's disk ahead of their use by a process beside this one.

The process (`fetching`) gets the order in which shards are used, and the run's position in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.manifest import Split
from petseg.data.shards.place import RemoteShards
from petseg.data.shards.shardcache import Held, ShardCache, refuse_small
from petseg.errors import PetsegError
from petseg.system import start_module

_LONGEST_WAIT = 1.0
"""Seconds between checks that the helper is alive."""


def window_bytes(split: Split, window: int | None) -> int:
    """The most bytes that two windows of a split's shards take; of all of them without a window."""
    sizes = sorted((shard.bytes for shard in split.shards), reverse=True)
    return sum(sizes[: 2 * window] if window else sizes)


def largest_window(split: Split, limit: int) -> int:
    """The most shards of which two windows fit into so many bytes; 0 for all of the split, which fit together.

    Raises:
        PetsegError: not even two shards do.
    """
    if window_bytes(split, None) <= limit:
        return 0
    refuse_small(limit, window_bytes(split, 1), "two shards")
    window = 1
    while window_bytes(split, window + 1) <= limit:
        window += 1
    return window


class Stage:
    """The shards of a store, as far as they are on this machine.

    Args:
        remote: the store, and how they come.
        shards: those that may be asked for, by their number.
    """

    def __init__(self, remote: RemoteShards, shards: Sequence[ShardInfo]) -> None:
        self.remote, self.shards = remote, shards
        self.cache = ShardCache(remote.cache, remote.limit)
        self._lock = threading.RLock()
        self._held: dict[int, Held] = {}
        self._failed: dict[int, str] = {}
        self._helper: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._plan: tuple[list[int], int] = ([], 0)
        self._ahead = 1
        self._close: Callable[[], object] = lambda: None

    def follow(self, sequence: Sequence[int], at: int = 0, ahead: int = 1) -> None:
        """Set the order in which shards will be used.

        Args:
            sequence: numbers of shards, each as often as it is used.
            at: what stands before it has been used.
            ahead: so many of the next are worth the room of what comes later; the others take room that is free.
        """
        self._plan, self._ahead = (list(sequence), at), ahead
        if self._helper is not None:
            self._tell(sequence=self._plan[0], at=at, ahead=ahead)
        elif any(not self.cache.holds(self.shards[number].sha256) for number in set(self._plan[0][at:])):
            self._start()

    def reach(self, at: int) -> None:
        """Set how much of the sequence has been used."""
        self._plan = self._plan[0], at
        if self._helper is not None:
            self._tell(at=at)

    def take(self, numbers: Collection[int], *, wait: bool) -> bool:
        """Keep shards on the disk until they are released; whether all of them are there.

        Args:
            numbers: of the shards.
            wait: until they are; else, what is not there is fetched before all others.

        Raises:
            PetsegError: one of them cannot be had.
        """
        with self._lock:
            missing = [number for number in numbers if number not in self._held and not self._hold(number)]
            if missing:
                self._make_way(numbers, missing)
                self._ask(missing)
            while missing:
                if not self._hear(_LONGEST_WAIT if wait else 0) and wait:
                    self._tell(need=missing)  # in case an exception broke off the hearing of an answer
                for number in missing:
                    if number in self._failed:
                        raise PetsegError(self._failed.pop(number))
                missing = [number for number in missing if not self._hold(number)]
                if not wait:
                    break
            return not missing

    def path(self, number: int) -> Path:
        """A shard that was taken."""
        return self._held[number].path

    def index(self, number: int) -> Path:
        """Its index."""
        return self.cache.index(self.shards[number].sha256)

    def stat(self, number: int) -> os.stat_result:
        """Of its tar."""
        return self._held[number].stat()

    def held(self) -> set[int]:
        """The shards that were taken and not released."""
        return set(self._held)

    def release(self, numbers: Iterable[int]) -> None:
        """Release shards, which may be removed from now on."""
        with self._lock:
            for number in numbers:
                held = self._held.pop(number, None)
                if held is not None:
                    held.close()

    def close(self) -> None:
        """Release all shards, and end the helper."""
        self.release(list(self._held))
        self._close()
        self._helper = None

    def _hold(self, number: int) -> bool:
        held = self.cache.hold(self.shards[number].sha256)
        if held is None:
            return False
        self._held[number] = held
        return True

    def _make_way(self, keep: Collection[int], missing: list[int]) -> None:
        """Where no order is followed, release what was taken longest ago, as soon as half of the cache is held."""
        if self.remote.limit is None or self._plan[0]:
            return
        taken = sum(self.shards[number].bytes for number in {*self._held, *missing})
        for number in list(self._held):
            if taken > self.remote.limit // 2 and number not in keep:
                taken -= self.shards[number].bytes
                self.release([number])

    def _ask(self, missing: list[int]) -> None:
        if self.remote.offline:
            names = [self.shards[number].name for number in missing]
            raise PetsegError(
                f"--offline: {self.remote}/{names[0]} is not in {self.remote.cache}: petseg fetch {self.remote}."
            )
        if self._helper is None:
            self._start()
        self._tell(need=missing)
        for number in missing:
            self._failed.pop(number, None)  # of an earlier try

    def _start(self) -> None:
        if self.remote.offline:
            return
        if sys.platform == "win32":
            raise PetsegError(f"{self.remote}: remote shards are fetched on Linux and macOS only.")
        remote = self.remote
        helper = start_module("petseg.data.shards.fetching", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert helper.stdin and helper.stdout
        self._close = weakref.finalize(self, _end, os.getpid(), helper)
        self._helper = helper
        os.set_blocking(helper.stdout.fileno(), False)
        self._tell(
            address=remote.address, cache=str(remote.cache.absolute()), limit=remote.limit, patience=remote.patience,
            shards=[[shard.name, shard.sha256, shard.bytes] for shard in self.shards],
        )  # fmt: skip
        self._tell(sequence=self._plan[0], at=self._plan[1], ahead=self._ahead)

    def _tell(self, **message: Any) -> None:
        assert self._helper is not None and self._helper.stdin is not None
        self._hear(0)  # or both could wait for each other
        try:
            self._helper.stdin.write(json.dumps(message).encode() + b"\n")
            self._helper.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._died()

    def _hear(self, seconds: float) -> bool:
        """Wait for a message of the helper and handle it; whether there was one."""
        assert self._helper is not None and self._helper.stdout is not None
        out = self._helper.stdout
        if not select.select([out], [], [], seconds)[0]:
            return False
        data = out.read()
        if data == b"":
            self._died()
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "note" in message:
                self.remote.note(message["note"])
            elif "failed" in message:
                self._failed[message["failed"]] = message["why"]
        return True

    def _died(self) -> None:
        assert self._helper is not None
        code = self._helper.wait()
        self._helper = None
        raise PetsegError(f"the process that fetches shards died (exit code {code}): start again.")


def _end(parent: int, helper: subprocess.Popen[bytes]) -> None:
    if os.getpid() == parent:
        helper.kill()
        helper.wait()
    for stream in (helper.stdin, helper.stdout):
        _close(stream)


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        if stream:
            stream.close()
