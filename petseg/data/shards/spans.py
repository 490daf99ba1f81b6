"""Offsets and sizes of an index's components, as an array."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import platformdirs

from petseg.data.shards.index import VERSION, read_index
from petseg.errors import PetsegError

COLUMNS = 5
"""Of a sample's row, i64 each: offset and size of the image, offset and size of the mask, and where the sample's line
begins in its index; bytes."""

_ROW = COLUMNS * 8
_UNUSED_S = 30 * 86400
"""Seconds after which a file that was not opened is removed."""


class SpanTable:
    """The rows of all samples of a split, as far as they are known.

    Args:
        samples: of the split.
        name: of what tells the split's shards from all others: then rows are kept in a file of the user's cache folder,
            which all processes map and which the next run finds filled. Without a name, or where there is no such
            folder or no room in it, the rows are this process's own.
    """

    def __init__(self, samples: int, name: str = "") -> None:
        self._file: int | None = None
        self.rows = np.zeros((0, COLUMNS), np.int64)
        """i64[samples, COLUMNS], zeros where nothing is known."""
        if name and samples:
            with contextlib.suppress(OSError):
                self._map(samples, name)
        if self._file is None:
            self.rows = np.zeros((samples, COLUMNS), np.int64)

    def _map(self, samples: int, name: str) -> None:
        folder = platformdirs.user_cache_path("petseg", appauthor=False) / "spans"
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _UNUSED_S:
                    path.unlink()
        path = folder / f"{hashlib.sha256(f'{name} {samples}'.encode()).hexdigest()[:32]}.i64"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, samples * _ROW)  # of holes, until something is written
            os.utime(file)
            self.rows = np.memmap(path, np.int64, "r", shape=(samples, COLUMNS))
        except OSError:
            os.close(file)
            raise
        self._file = file

    def known(self, first: int, end: int) -> bool:
        """Whether all rows from `first` to before `end` are known: a line never begins a file, and has some bytes."""
        return bool((self.rows[first:end, COLUMNS - 1] > 0).all())

    def fill(self, first: int, rows: np.ndarray) -> None:
        """Keep rows i64[n, COLUMNS], from `first` on."""
        if self._file is not None:
            try:
                # Not through the map, which would end the process where the disk is full.
                written = os.pwrite(self._file, np.ascontiguousarray(rows, np.int64).data, first * _ROW)
                if written == rows.nbytes:
                    return
            except OSError:
                pass
            self.close()
            self.rows = np.array(self.rows)
        self.rows[first : first + len(rows)] = rows

    def close(self) -> None:
        """Let the file go; rows stay readable."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_spans(path: Path, image: str, mask: str) -> np.ndarray:
    """Read offsets and sizes of the two components of every sample, many times faster than by `read_index`.

    Args:
        path: an index.
        image: extension of the one component.
        mask: extension of the other.

    Returns:
        i64[n, COLUMNS].

    Raises:
        PetsegError: as `read_index`, or a sample without one of the components.
    """
    # Nearly always every sample has the same components in the same order: then the file is one table.
    with contextlib.suppress(OSError, ValueError, OverflowError):
        return _read_table(path.read_bytes(), image.encode(), mask.encode())
    spans = []
    entries = read_index(path)
    lines = path.read_bytes().decode().splitlines(keepends=True)
    starts = np.cumsum([len(line.encode()) for line in lines])[: len(entries)].tolist()
    for entry, start in zip(entries, starts, strict=True):
        parts = {c.extension: c for c in entry.components}
        if image not in parts or mask not in parts:
            raise PetsegError(f"{path}: sample {entry.key} has no .{image} or no .{mask}: pack again.")
        spans.append((parts[image].offset, parts[image].size, parts[mask].offset, parts[mask].size, start))
    try:
        return np.asarray(spans, np.int64).reshape(-1, COLUMNS)
    except OverflowError:
        raise PetsegError(f"{path} names a place beyond any file: run `petseg index {path.parent}`.") from None


def _read_table(data: bytes, image: bytes, mask: bytes) -> np.ndarray:
    """See `read_spans`.

    Raises:
        ValueError: the samples differ in their components, or something is damaged.
    """
    head, _, rest = data.partition(b"\n")
    version, _, count = head.partition(b" ")
    text = np.frombuffer(rest, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    first = rest[: ends[0]].split(b" ") if len(ends) else []
    width = len(first)
    spaces = np.cumsum(text == ord(" "), dtype=np.int64)[ends]
    if version != VERSION.encode() or int(count) != len(ends) or not rest.endswith(b"\n") or width % 4:
        raise ValueError("no whole index")
    # `read_index` decodes the names and splits at more ends of line than this one.
    if (np.diff(spaces, prepend=0) != width - 1).any() or b"\r" in rest or len(rest.decode().splitlines()) != len(ends):
        raise ValueError("lines differ in their number of fields")
    fields = rest[:-1].replace(b"\n", b" ").split(b" ")
    for column in range(0, width, 4):
        if set(fields[column::width]) != {first[column]}:
            raise ValueError("samples differ in their components")
    extensions = first[::4]
    if extensions.count(image) != 1 or extensions.count(mask) != 1:
        raise ValueError("a component is not there once")
    columns = [4 * extensions.index(extension) + part for extension in (image, mask) for part in (1, 2)]
    numbers = [np.array(fields[column::width]) for column in columns]
    if not all(np.char.isdigit(each).all() for each in numbers):
        raise ValueError("a field is not a number")
    lines = len(head) + 1 + np.concatenate([[0], ends[:-1] + 1])
    return np.stack([*(each.astype(np.int64) for each in numbers), lines], axis=1)
