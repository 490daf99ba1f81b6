"""The index of a tar: which sample lies where. DALI's own format, `v1.2`, as its `wds2idx` writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petseg.data.tar import Component, Entry, scan_tar, split_name
from petseg.errors import PetsegError
from petseg.system import read_at, write_atomic

VERSION = "v1.2"

_BLOCK = 512


def index_name(shard: str) -> str:
    """Name of the index that belongs to a tar: `train-000000.tar` has `train-000000.idx`, as `wds2idx` names it."""
    return shard.removesuffix(".tar") + ".idx"


def format_index(entries: Sequence[Entry]) -> bytes:
    """The index file's bytes, equal to what `wds2idx` writes for the same tar."""
    lines = [f"{VERSION} {len(entries)}"]
    lines += [" ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in entry.components) for entry in entries]
    return ("\n".join(lines) + "\n").encode()


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Write an index, whole or not at all."""
    write_atomic(path, format_index(entries))


def read_index(path: Path) -> list[Entry]:
    """Read an index.

    Raises:
        PetsegError: no such file, another version, or damaged lines.
    """
    advice = f"run `petseg index {path.parent}` to write it anew."
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise PetsegError(f"{path} is missing: {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"{path} cannot be read ({error}): {advice}") from error
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] != VERSION or not head[1].isdecimal() or int(head[1]) != len(lines) - 1:
        raise PetsegError(f"{path} is no whole index of version {VERSION}: {advice}")
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(" ")
        try:
            components = tuple(
                Component(extension, _count(offset), _count(size), name)
                for extension, offset, size, name in zip(*[iter(fields)] * 4, strict=True)
            )
            key = split_name(components[0].name)[0]
        except (ValueError, IndexError):
            raise PetsegError(f"{path}, line {number} is damaged: {advice}") from None
        entries.append(Entry(key, components))
    return entries


def read_key(path: Path, line: int) -> str:
    """The key of one sample, from its line alone.

    Args:
        path: an index.
        line: where its line begins, in bytes (see `read_spans`).

    Raises:
        PetsegError: the index cannot be read, or holds something else there by now.
    """
    try:
        with path.open("rb") as file:
            file.seek(line)
            fields = file.readline().decode().splitlines()[0].split(" ")
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror}): run `petseg index {path.parent}`.") from error
    except (UnicodeDecodeError, IndexError):
        fields = []
    if len(fields) < 4:
        raise PetsegError(f"{path} has changed since it was opened: open it again.")
    return split_name(fields[3])[0]


def is_index_of(path: Path, tar: Path) -> bool:
    """Whether an index lists the samples of a tar, each once and where it is.

    Raises:
        PetsegError: either cannot be read, or is damaged.
    """
    components = [component for entry in read_index(path) for component in entry.components]
    if not components:
        return not scan_tar(tar)
    end = 0
    with tar.open("rb") as file:
        for component in components:
            # A plain header: name at its beginning, size in octal from byte 124 on (POSIX.1-1988, ustar).
            at = component.offset - _BLOCK
            header = read_at(file.fileno(), _BLOCK, at) if 0 <= at < 2**62 else b""
            name, size = header[:100].rstrip(b"\0"), header[124:135]
            if component.offset < end or name != component.name.encode() or size != b"%011o" % component.size:
                break
            end = component.offset + component.size
        else:
            return True
    # Other tools write other headers, and may leave files between the samples.
    return path.read_bytes() == format_index(scan_tar(tar))


def read_spans(path: Path, image: str, mask: str) -> np.ndarray:
    """Where the two components of every sample lie, many times faster than by `read_index`.

    Args:
        path: an index.
        image: extension of the one component.
        mask: extension of the other.

    Returns:
        i64[n, 5]: offset and size of the image, offset and size of the mask, and where the sample's line begins; bytes.

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
        return np.asarray(spans, np.int64).reshape(-1, 5)
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
    # `read_index` decodes the names and knows more ends of line than this one.
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
        raise ValueError("a number is none")
    lines = len(head) + 1 + np.concatenate([[0], ends[:-1] + 1])
    return np.stack([*(each.astype(np.int64) for each in numbers), lines], axis=1)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value
