"""Names of classes from the files that annotation tools write beside masks."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Value = tuple[int, ...]
"""A code, (code,), or a colour, (red, green, blue)."""

_ABOVE = 2
"""Folders above the masks that are looked into too."""


def label_names(folder: Path) -> tuple[dict[Value, str], list[Path]]:
    """Names by the values that masks have, and the files that say so; of several that disagree, the nearest counts.

    Read are CVAT's `labelmap.txt`, Roboflow's `_classes.csv`, `class_dict.csv` and CamVid's `label_colors.txt`, in a
    folder, below it, and up to two folders above.

    Args:
        folder: where the masks are.
    """
    folders = [
        folder,
        *sorted(path for path in folder.rglob("*") if path.is_dir()),
        *list(folder.absolute().parents)[:_ABOVE],
    ]
    names: dict[Value, str] = {}
    used: list[Path] = []
    for where in folders:
        for name, read in _READERS.items():
            path = where / name
            if path.is_file() and (found := dict(_entries(path, read))):
                used.append(path)
                names = found | names
    return names, used


def _entries(path: Path, read: Callable[[str], Iterator[tuple[Value, str]]]) -> Iterator[tuple[Value, str]]:
    try:
        text = path.read_text("utf-8-sig")
        yield from read(text)
    except (OSError, UnicodeDecodeError, csv.Error):
        return


def _cvat(text: str) -> Iterator[tuple[Value, str]]:
    """`cat:250,50,83::`."""
    for line in text.splitlines():
        match = re.match(r"([^#:][^:]*):(\d+),\s*(\d+),\s*(\d+)\s*(:|$)", line.strip())
        if match:
            yield _colour(match.groups()[1:4]), match[1].strip()


def _roboflow(text: str) -> Iterator[tuple[Value, str]]:
    """`1, cat`, below a line of titles."""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) >= 2 and row[0].strip().isdecimal():
            yield (int(row[0]),), row[1].strip()


def _class_dict(text: str) -> Iterator[tuple[Value, str]]:
    """`cat,250,50,83`, below a line of titles."""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) >= 4 and all(value.strip().isdecimal() for value in row[1:4]):
            yield _colour(row[1:4]), row[0].strip()


def _camvid(text: str) -> Iterator[tuple[Value, str]]:
    """`64 128 64   Animal`."""
    for line in text.splitlines():
        match = re.match(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", line.strip())
        if match:
            yield _colour(match.groups()[:3]), match[4].strip()


def _colour(values: tuple[str, ...] | list[str]) -> Value:
    return tuple(int(value) for value in values)


_READERS = {
    "labelmap.txt": _cvat, "_classes.csv": _roboflow, "class_dict.csv": _class_dict, "label_colors.txt": _camvid,
}  # fmt: skip
