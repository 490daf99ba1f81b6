"""The index of a tar: which sample lies where. DALI's own format, `v1.2`, as its `wds2idx` writes it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from petseg.errors import PetsegError
from petseg.system import write_atomic

VERSION = "v1.2"


class Component(NamedTuple):
    """One file of a sample, such as its image."""

    extension: str
    """What follows the first dot of the member's name: `jpg`."""
    offset: int
    """Bytes from the start of the tar to the file's first byte."""
    size: int
    """Bytes of the file."""
    name: str
    """The member's name: `Abyssinian_1.jpg`."""


class Entry(NamedTuple):
    """One sample: adjacent members with the same name up to the first dot."""

    key: str
    components: tuple[Component, ...]


def index_name(shard: str) -> str:
    """Name of the index that belongs to a tar: `train-000000.tar` has `train-000000.idx`, as `wds2idx` names it."""
    return shard.removesuffix(".tar") + ".idx"


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member's name: cut at the first dot after the last slash, as webdataset does."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def group(members: Iterable[Component]) -> list[Entry]:
    """Gather adjacent members into samples; members whose file name begins with a dot are passed over."""
    found: list[tuple[str, list[Component]]] = []
    for member in members:
        key, _ = split_name(member.name)
        if not key or key.endswith("/"):
            continue
        if not found or found[-1][0] != key:
            found.append((key, []))
        found[-1][1].append(member)
    return [Entry(key, tuple(components)) for key, components in found]


def scan_tar(path: Path) -> list[Entry]:
    """Find the samples of an uncompressed tar by its headers alone.

    Raises:
        PetsegError: the file cannot be read, is no tar, or ends in the middle of a member.
    """
    members: list[Component] = []
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                if member.offset_data + member.size > size:
                    raise PetsegError(f"{path} ends in the middle of {member.name}: pack it again.")
                if member.issparse():
                    raise PetsegError(f"{path} holds {member.name} with holes left out: pack it again as a plain tar.")
                extension = split_name(member.name)[1]
                members.append(Component(extension, member.offset_data, member.size, member.name))
    except PetsegError:
        raise
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged headers lead tarfile to raise nearly anything
        raise PetsegError(f"{path} is no whole, uncompressed tar ({error}): pack it again.") from error
    return group(members)


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


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value
