"""Samples in a tar, found by its headers."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from petseg.errors import PetsegError


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


def scan_tar(path: Path, advice: str = "pack it again") -> list[Entry]:
    """Find the samples of an uncompressed tar by its headers alone: see `members_of`."""
    return group(members_of(path, advice))


def members_of(path: Path, advice: str, *, links: bool = False) -> list[Component]:
    """Find the files in an uncompressed tar by its headers alone.

    Args:
        path: the tar.
        advice: what to do about one that is not fit, for messages.
        links: count hard links too, as what they link to; no loader follows them.

    Raises:
        PetsegError: the file cannot be read, is not a tar, or ends in the middle of a member.
    """
    members: list[Component] = []
    by_name: dict[str, Component] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if links and member.islnk() and (target := by_name.get(member.linkname)):
                    extension = split_name(member.name)[1]
                    members.append(target._replace(extension=extension, name=member.name))
                if not member.isreg():
                    continue
                if member.offset_data + member.size > size:
                    raise PetsegError(f"{path} ends in the middle of {member.name}: {advice}.")
                if member.issparse():
                    raise PetsegError(f"{path} holds {member.name} with holes left out: {advice}, as a plain tar.")
                extension = split_name(member.name)[1]
                members.append(Component(extension, member.offset_data, member.size, member.name))
                if links:
                    by_name[member.name] = members[-1]
    except PetsegError:
        raise
    except OSError as error:
        raise PetsegError(f"{path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # damaged headers lead tarfile to raise nearly anything
        raise PetsegError(f"{path} is not a whole, uncompressed tar ({error}): {advice}.") from error
    return members
