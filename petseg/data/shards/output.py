"""Outputs of a pack: a folder, or a store. Every file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from petseg.data.objects import ObjectMissing, Objects, is_remote, opened
from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import format_index, index_name
from petseg.data.sources.files import MANIFEST_NAME, WORK_FOLDER
from petseg.data.tar import scan_tar
from petseg.errors import PetsegError
from petseg.system import locked, partial_of, write_atomic

PLAN_NAME = f"{WORK_FOLDER}/plan.json"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a cluster's file system says that has no locks."""


class Output(Protocol):
    """The files of a pack, by their names below it. Picklable; `str` of it is the name that was given."""

    def top(self) -> set[str]:
        """Names at the top level.

        Raises:
            PetsegError: it cannot be read, or is a file.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of the files at the top."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file, or None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, replacing any."""
        ...

    def create(self, name: str, data: bytes) -> bytes:
        """Write a small file unless there is one; returns the file's content, which may be another process's."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, if they are there."""
        ...

    def clear(self) -> None:
        """Remove the work folder, and the folder itself if it is empty."""
        ...

    def claim(self, *, alone: bool) -> contextlib.AbstractContextManager[None]:
        """Lock the output against other packs; with `alone` also against packs of parts.

        Raises:
            PetsegError: another process holds it.
        """
        ...

    def shard_folder(self) -> contextlib.AbstractContextManager[Path]:
        """The folder of this machine that a shard and its index are written to."""
        ...

    def deliver(self, folder: Path, name: str) -> str:
        """Move a shard and its index to the output; a tag that identifies these bytes there, if it has one."""
        ...

    def holds(self, shard: ShardInfo, tag: str) -> bool:
        """Whether a shard is there as it was delivered, and its index."""
        ...


def output_of(out: Path | str) -> Output:
    """The output that a text names, a folder or a store.

    Examples:
        >>> output_of("shards/oxford")
        FolderOutput(folder=PosixPath('shards/oxford'))
    """
    if isinstance(out, str) and is_remote(out):
        return StoreOutput(out.rstrip("/"))
    return FolderOutput(Path(out))


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A folder, which several machines may share."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def top(self) -> set[str]:
        """See `Output`."""
        try:
            found = {entry.name for entry in self.folder.iterdir()}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise PetsegError(f"{self} is a file: give a folder to pack into.") from None
        except OSError as error:
            raise PetsegError(f"{self} cannot be read ({error.strerror}): choose another folder.") from error
        if (self.folder / WORK_FOLDER).is_symlink():
            raise PetsegError(
                f"{self.folder / WORK_FOLDER} is a link, through which nothing is written: choose another folder."
            )
        return found

    def sizes(self) -> dict[str, int]:
        """See `Output`."""
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        write_atomic(self.folder / name, data)

    def create(self, name: str, data: bytes) -> bytes:
        """See `Output`."""
        path = self.folder / name
        fresh = partial_of(path)
        try:
            write_atomic(fresh, data)
            try:
                os.link(fresh, path)
            except FileExistsError:
                pass
            except OSError:  # there are no links on this file system
                if not path.exists():
                    fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        return path.read_bytes()

    def remove(self, names: Iterable[str]) -> None:
        """See `Output`."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """See `Output`."""
        shutil.rmtree(self.folder / WORK_FOLDER, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    @contextlib.contextmanager
    def claim(self, *, alone: bool) -> Iterator[None]:
        """See `Output`. Alone, it removes what runs that ended too early had begun to write."""
        work = self.folder / WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        # Never through a link: somebody else may have made the folder.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(work / "lock", flags, 0o666), "r+b") as file, contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(file.fileno(), wait=False, shared=not alone))
            except BlockingIOError:
                raise PetsegError(f"{self} is being packed by another process: wait for it.") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            try:
                if alone:
                    self._sweep()
                yield
            finally:
                if alone:
                    self._sweep()

    @contextlib.contextmanager
    def shard_folder(self) -> Iterator[Path]:
        """See `Output`."""
        yield self.folder

    def deliver(self, folder: Path, name: str) -> str:  # noqa: ARG002 - it is there
        """See `Output`."""
        return ""

    def holds(self, shard: ShardInfo, tag: str) -> bool:  # noqa: ARG002 - it is read
        """See `Output`."""
        tar = self.folder / shard.name
        try:
            with tar.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            index = tar.with_name(index_name(shard.name)).read_bytes()
        except OSError:
            return False
        return digest == shard.sha256 and index == format_index(scan_tar(tar))

    def _sweep(self) -> None:
        for folder in (self.folder, self.folder / WORK_FOLDER):
            for partial in folder.glob(".*.partial-*"):
                partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class StoreOutput:
    """Objects below an address. There are no locks: what several write at once are the same bytes."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def _objects(self) -> Objects:
        return opened(self.address)

    def top(self) -> set[str]:
        """See `Output`; one name tells that something else is there, so that not all are listed."""
        known = {name.partition("/")[0] for name in (PLAN_NAME, MANIFEST_NAME) if self.read(name) is not None}
        first = next(iter(self._objects.every()), None)
        return known | ({first.name.partition("/")[0]} if first else set())

    def sizes(self) -> dict[str, int]:
        """See `Output`."""
        return {each.name: each.meta.size for each in self._objects.every() if "/" not in each.name}

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        try:
            return self._objects.get(name)
        except ObjectMissing:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        self._objects.put(name, data)

    def create(self, name: str, data: bytes) -> bytes:
        """See `Output`."""
        return data if self._objects.put_new(name, data) else self._objects.get(name)

    def remove(self, names: Iterable[str]) -> None:
        """See `Output`."""
        self._objects.remove(list(names))

    def clear(self) -> None:
        """See `Output`."""
        self.remove([each.name for each in self._objects.every(WORK_FOLDER)])

    @contextlib.contextmanager
    def claim(self, *, alone: bool) -> Iterator[None]:  # noqa: ARG002 - there are no locks
        """See `Output`."""
        yield

    @contextlib.contextmanager
    def shard_folder(self) -> Iterator[Path]:
        """See `Output`."""
        with tempfile.TemporaryDirectory(prefix="petseg-shard-") as folder:
            yield Path(folder)

    def deliver(self, folder: Path, name: str) -> str:
        """See `Output`: the ETag of the tar."""
        self._objects.put(index_name(name), folder / index_name(name))
        return self._objects.put(name, folder / name) or ""

    def holds(self, shard: ShardInfo, tag: str) -> bool:
        """See `Output`."""
        try:
            found = self._objects.head(shard.name)
            self._objects.head(index_name(shard.name))
        except ObjectMissing:
            return False
        return bool(tag) and found == (shard.bytes, tag)
