"""The process that fetches remote shards to this machine's disk ahead of their use.

It fetches what comes next in the given order, and removes what comes last if space is short. It imports
little, so that it is there at once, and ends when the process that started it does.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from petseg.data.objects import ObjectChanged, Objects
from petseg.data.shards.shardcache import Filling, FullDisk, ShardCache
from petseg.errors import PetsegError
from petseg.system import bytes_in_words

FETCHERS = 4
"""Shards that are fetched at once."""

_NO_ROOM = 60.0
"""Seconds after which a shard is given up for which nothing can be removed."""

_ELSEWHERE = 0.1
"""Seconds between looks at a shard that another process fetches."""

_LONGEST_WAIT = 1.0
"""Seconds between looks at whether there is room by now."""


class Shard(NamedTuple):
    """The shards to fetch."""

    name: str
    sha256: str
    bytes: int


class _Fetching:
    """The fetching process."""

    def __init__(self, first: dict[str, Any], say: Callable[..., None]) -> None:
        self._cache = ShardCache(Path(first["cache"]), first["limit"])
        self._shards = [Shard(*each) for each in first["shards"]]
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

    def handle(self, message: dict[str, Any]) -> None:
        """Handle a message of the parent process."""
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
        """Fetch one shard after another, forever."""
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
        """The missing shard that is needed first."""
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

    def _filled(self, filling: Filling, shard: Shard) -> str:
        """Download a shard; its SHA-256."""

        def take(piece: memoryview) -> None:
            while True:
                try:
                    filling.append(piece)
                except FullDisk as error:
                    if not self._cache.remove_one(self._next_use, self._next_use(shard.sha256)):
                        raise PetsegError(
                            f"{self._cache.folder} is full, and everything in it is in use: {shard.name} takes "
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
    """Fetch as long as the parent process lives."""
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
            fetching.handle(message)
    os._exit(0)  # whatever is being fetched: what has come of it stays as a part
