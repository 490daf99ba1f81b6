"""The index of a tar: which sample lies where. DALI's own format, `v1.2`, as its `wds2idx` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    advice = f"run `petseg index {path.parent}` to write it again."
    try:
        return parse_index(path.read_bytes(), str(path), advice)
    except FileNotFoundError:
        raise PetsegError(f"{path} is missing: {advice}") from None
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error}): {advice}") from error


def parse_index(data: bytes, path: str, advice: str) -> list[Entry]:
    """Read an index's content.

    Args:
        data: the file.
        path: where it is, and
        advice: what to do about it, for messages.

    Raises:
        PetsegError: another version, or damaged lines.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise PetsegError(f"{path} cannot be read ({error}): {advice}") from error
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] != VERSION or not head[1].isdecimal() or int(head[1]) != len(lines) - 1:
        raise PetsegError(f"{path} is not a whole index of version {VERSION}: {advice}")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value
