"""Findings of a long check of shards, kept until its end, so that a killed check can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from types import TracebackType
from typing import Any

import platformdirs


class Journal:
    """Findings by stamp: a line for each, in a file that goes when the look has come to its end.

    A file that cannot be read or written is not an error: then a look that was killed begins anew.

    Args:
        kind: of look.
        what: is looked at, and how; others have another file.
    """

    def __init__(self, kind: str, what: str) -> None:
        name = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = platformdirs.user_cache_path("petseg", appauthor=False) / kind / f"{name}.jsonl"
        self._known: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # cut off by a kill
                    stamp, found = json.loads(line)
                    self._known[str(stamp)] = found
        self._file = None
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def find(self, stamp: str) -> Any:
        """The finding of an earlier check; None if there is none."""
        return self._known.get(stamp)

    def add(self, stamp: str, found: Any) -> None:
        """Remember a finding, as plain JSON data; an empty stamp stands for what cannot be identified."""
        if self._file and stamp:
            with contextlib.suppress(OSError):
                self._file.write(f"\n{json.dumps([stamp, found])}\n".encode())

    def finish(self) -> None:
        """Delete the journal: the check is complete, and the next one starts from scratch."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
