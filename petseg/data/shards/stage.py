"""Shards of a store, brought to this machine's disk ahead of their use by a process beside this one.

The process is told in which order shards are used, and where in it the run is; it fetches what comes next, and where
room is short removes what comes last. It imports no torch, and ends when the process that started it does.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from petseg.data.objects import ObjectChanged, Objects
from petseg.data.shards.manifest import ShardInfo, Split
from petseg.data.shards.place import RemoteShards
from petseg.data.shards.shardcache import Filling, FullDisk, Held, ShardCache, refuse_small
from petseg.errors import PetsegError
from petseg.system import bytes_in_words, start_module

FETCHERS = 4
"""Shards that are fetched at once."""

_NO_ROOM = 60.0
"""Seconds after which a shard is given up for which nothing can be removed."""

_ELSEWHERE = 0.1
"""Seconds between looks at a shard that another process fetches."""

_LONGEST_WAIT = 1.0
"""Seconds between looks at whether the helper lives."""


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
        """Say in which order shards will be used.

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
        """Say how much of the sequence has been used."""
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
        """Let shards go, which may be removed from now on."""
        with self._lock:
            for number in numbers:
                held = self._held.pop(number, None)
                if held is not None:
                    held.close()

    def close(self) -> None:
        """Let all go, and end the helper."""
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
            raise PetsegError(f"{self.remote}: shards of a store are fetched on Linux and macOS alone.")
        remote = self.remote
        helper = start_module("petseg.data.shards.stage", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        """Take what the helper says, after waiting for it; whether it said anything."""
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


# --- the process


class _Fetching:
    """What the process does."""

    def __init__(self, first: dict[str, Any], say: Callable[..., None]) -> None:
        self._cache = ShardCache(Path(first["cache"]), first["limit"])
        self._shards = [ShardInfo(name=name, samples=0, bytes=size, sha256=sha) for name, sha, size in first["shards"]]
        self._say = say
        self._objects = Objects(first["address"], patience=first["patience"], note=lambda text: say(note=text))
        self._changed = threading.Condition()
        self._needed: list[int] = []
        self._sequence: list[int] = []
        self._at, self._ahead = 0, 1
        self._busy: set[int] = set()
        self._failed: set[int] = set()
        self._there: set[int] = set()
        """Shards that were found to be there, and are not looked for again unless they are waited for."""
        self._elsewhere: dict[int, float] = {}
        """When to look again for a shard that another process fetches."""
        self._no_room: dict[int, float] = {}
        """Since when there has been none for a shard."""
        self._uses: dict[str, list[int]] = {}
        """The places of each shard in the sequence, by its SHA-256."""

    def hear(self, message: dict[str, Any]) -> None:
        """Note what the other process says."""
        with self._changed:
            self._needed = [*message.get("need", []), *(n for n in self._needed if n not in message.get("need", []))]
            if "sequence" in message:
                self._sequence, self._uses = message["sequence"], {}
                for place, number in enumerate(self._sequence):
                    self._uses.setdefault(self._shards[number].sha256, []).append(place)
            self._at = message.get("at", self._at)
            self._ahead = message.get("ahead", self._ahead)
            self._failed -= set(message.get("need", []))
            self._changed.notify_all()

    def work(self) -> None:
        """Fetch one after the other, for ever."""
        while True:
            number = self._next()
            try:
                done = self._fetch(number)
                failure = ""
            except PetsegError as error:
                done, failure = False, str(error)
            except Exception as error:
                done, failure = (
                    False,
                    f"{self._objects.url(self._shards[number].name)}: {type(error).__name__}: {error}",
                )
            with self._changed:
                self._busy.discard(number)
                awaited = number in self._needed
                if awaited and (done or failure):
                    self._needed.remove(number)
                if failure:
                    self._failed.add(number)
                elif not done:
                    self._elsewhere[number] = time.monotonic() + _ELSEWHERE
                self._changed.notify_all()
            if failure:
                self._say(failed=number, why=failure)
            elif done and awaited:
                self._say(ready=number)

    def _next(self) -> int:
        """The shard that is missed first."""
        with self._changed:
            while True:
                now, pause = time.monotonic(), math.inf
                near = len(self._needed) + self._ahead
                for place, number in enumerate([*self._needed, *self._sequence[self._at :]]):
                    if number in self._busy or number in self._failed:
                        continue
                    if number in self._there and number not in self._needed:
                        continue
                    if self._elsewhere.get(number, 0) > now:
                        pause = _ELSEWHERE
                        continue
                    if self._cache.holds(self._shards[number].sha256) and number not in self._needed:
                        if self._cache.limit is None:
                            self._there.add(number)
                        continue
                    if not self._room(number, removing=place < near):
                        pause = _ELSEWHERE if number in self._needed else _LONGEST_WAIT
                        self._give_up(number, now)
                        break  # what comes later has less of a claim
                    self._no_room.clear()
                    self._busy.add(number)
                    return number
                self._changed.wait(None if pause == math.inf else pause)

    def _give_up(self, number: int, now: float) -> None:
        """Say that there is no room for a shard that is waited for, after a while."""
        if number in self._needed and now - self._no_room.setdefault(number, now) > _NO_ROOM:
            self._needed.remove(number)
            shard = self._shards[number]
            self._say(
                failed=number,
                why=f"{self._cache.folder}: no room for {shard.name} ({bytes_in_words(shard.bytes)}), as all that it "
                "holds is in use: give a larger --shard-cache-limit.",
            )

    def _room(self, number: int, *, removing: bool) -> bool:
        """Whether there is room for a shard.

        Far ahead, nothing is removed for it: by the time that it is used, others will be the ones to go.
        """
        shard = self._shards[number]
        coming = sum(self._shards[each].bytes for each in self._busy)
        mine = self._next_use(shard.sha256) if removing else math.inf
        return self._cache.make_room(coming + shard.bytes, self._next_use, mine)

    def _next_use(self, sha256: str) -> float:
        if any(self._shards[number].sha256 == sha256 for number in self._needed):
            return -1
        places = self._uses.get(sha256, [])
        place = bisect.bisect_left(places, self._at)
        return places[place] if place < len(places) else math.inf

    def _fetch(self, number: int) -> bool:
        """Whether a shard is there now; else another process is at it.

        Raises:
            PetsegError: it cannot be had.
        """
        shard, tries = self._shards[number], 0
        while True:
            with self._cache.filling(shard.sha256) as filling:
                if filling is None:
                    return self._cache.holds(shard.sha256)
                with contextlib.suppress(ObjectChanged):
                    found = self._filled(filling, shard)
                    if found == shard.sha256:
                        return True
                    tries += 1
                    if tries > 1:
                        filling.restart()
                        raise PetsegError(
                            f"{self._objects.url(shard.name)} has SHA-256 {found}, fetched twice, and not the "
                            f"manifest's {shard.sha256}: copy or pack it again."
                        )
                filling.restart()

    def _filled(self, filling: Filling, shard: ShardInfo) -> str:
        """The SHA-256 of what has come."""

        def take(piece: memoryview) -> None:
            while True:
                try:
                    filling.append(piece)
                except FullDisk as error:
                    if not self._cache.remove_one(self._next_use, self._next_use(shard.sha256)):
                        raise PetsegError(
                            f"{self._cache.folder} is full, and nothing in it can be spared: {shard.name} takes "
                            f"{bytes_in_words(shard.bytes)}; give --shard-cache a larger disk."
                        ) from error
                else:
                    return

        if filling.size > shard.bytes:
            filling.restart()
        if filling.size < shard.bytes:
            self._objects.fetch(
                shard.name,
                take,
                start=filling.size,
                etag=filling.etag,
                begin=lambda meta: filling.begin(meta.etag),
            )
        return filling.finish()


def main() -> None:
    """Fetch for as long as there is somebody to fetch for."""
    writing = threading.Lock()

    def say(**message: Any) -> None:
        with writing, contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps(message).encode() + b"\n")

    fetching: _Fetching | None = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if fetching is None:
            try:
                fetching = _Fetching(message, say)
            except PetsegError as error:
                for number in range(len(message["shards"])):
                    say(failed=number, why=str(error))
                continue
            for _ in range(FETCHERS):
                threading.Thread(target=fetching.work, daemon=True).start()
        else:
            fetching.hear(message)
    os._exit(0)  # whatever is being fetched: what has come of it stays as a part


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
