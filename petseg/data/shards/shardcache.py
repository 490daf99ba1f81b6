"""Shards of stores, kept on disk under their SHA-256: `DIR/ab/SHA256.tar`, and its index beside it.

A tar has its final name only when it holds the bytes of that name, so nothing is hashed twice. Whoever reads it holds a
shared lock on it, and whoever removes it an exclusive one; whoever writes it locks `SHA256.partial`. So any number of
processes use one folder, and each shard comes once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from petseg.data.shards.index import index_name, write_index
from petseg.data.tar import scan_tar
from petseg.errors import PetsegError
from petseg.system import bytes_in_words, replace_durably

_NAME = re.compile(r"([0-9a-f]{64})\.(tar|idx|partial)")
_ETAG = "user.petseg.etag"
_BLOCK = 1 << 20


class FullDisk(PetsegError):  # noqa: N818
    """There is no room for a shard."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the cache."""

    sha256: str
    path: Path
    bytes: int
    used_ns: int
    """When it was last asked for, in ns since 1970."""

    @property
    def whole(self) -> bool:
        """Whether it is a shard, and not a part of one."""
        return self.path.suffix == ".tar"


def default_folder() -> Path:
    """The default cache folder."""
    return platformdirs.user_cache_path("petseg", appauthor=False) / "shards"


class ShardCache:
    """A folder of shards.

    Args:
        folder: made when the first shard comes.
        limit: bytes that it may take; None for what the disk has.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit

    def tar(self, sha256: str) -> Path:
        """Where a shard is, if it is there."""
        return self.folder / sha256[:2] / f"{sha256}.tar"

    def index(self, sha256: str) -> Path:
        """Where its index is."""
        return self.tar(sha256).with_name(index_name(f"{sha256}.tar"))

    def holds(self, sha256: str) -> bool:
        """Whether a shard is there, whole."""
        return self.tar(sha256).is_file()

    def hold(self, sha256: str) -> Held | None:
        """Lock a shard against removal; None if it is not there.

        Raises:
            PetsegError: it is there and cannot be read.
        """
        path = self.tar(sha256)
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return None
            except OSError as error:
                raise PetsegError(f"{path} cannot be read ({error.strerror}).") from None
            try:
                _lock(file.fileno(), shared=True)
                # Between the opening and the lock it may have been removed, and come anew.
                if _same(file, path):
                    with contextlib.suppress(OSError):
                        # Not the time of change, by which readers recognise the file.
                        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
                    if not self.index(sha256).is_file():
                        write_index(self.index(sha256), scan_tar(path, "remove it: petseg cache verify"))
                    return Held(path, file)
            except BaseException:
                file.close()
                raise
            file.close()

    @contextlib.contextmanager
    def filling(self, sha256: str) -> Iterator[Filling | None]:
        """Write a shard; None if another process is writing it, or it is there by now."""
        path = self.tar(sha256).with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            try:
                _lock(file.fileno(), shared=False)
            except BlockingIOError:
                yield None
                return
            if not _same(file, path) or self.holds(sha256):
                if _same(file, path):
                    path.unlink()  # made by this very open
                yield None
                return
            filling = Filling(self, sha256, file)
            try:
                yield filling
            finally:
                # A part stays for whoever comes next, but not an empty one.
                if not filling.finished and not filling.size and _same(file, path):
                    path.unlink()

    def stored(self) -> list[Stored]:
        """All shards and parts of them that are there; nothing else in the folder is petseg's."""
        found = []
        for folder in _entries(self.folder):
            for entry in _entries(Path(folder.path)) if re.fullmatch("[0-9a-f]{2}", folder.name) else ():
                name = _NAME.fullmatch(entry.name)
                if not name or name[2] == "idx" or not entry.name.startswith(folder.name):
                    continue
                with contextlib.suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    found.append(Stored(name[1], Path(entry.path), stat.st_size, stat.st_atime_ns))
        return found

    def remove(self, stored: Stored) -> bool:
        """Remove a shard, or a part of one, unless another process reads or writes it; whether it is gone."""
        try:
            with stored.path.open("rb") as file:
                _lock(file.fileno(), shared=False)
                if _same(file, stored.path):
                    # The index last: a tar without one gets it anew, an index without a tar is nothing.
                    stored.path.unlink()
                    if stored.whole:
                        self.index(stored.sha256).unlink(missing_ok=True)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        except OSError as error:
            raise PetsegError(f"{stored.path} cannot be removed ({error.strerror}).") from None
        return True

    def make_room(self, size: int, next_use: Callable[[str], float], mine: float) -> bool:
        """Remove what is used furthest from now until so many bytes fit under the limit; whether they do.

        Args:
            size: bytes that are to come.
            next_use: of a shard, by its SHA-256: the larger, the later; infinite for never.
            mine: when what is to come is used; what is used before it stays. Infinite: nothing is removed.
        """
        if self.limit is None:
            return True
        stored = self.stored()
        taken = sum(each.bytes for each in stored)
        removed = self._removed(stored, next_use, mine)
        while taken + size > self.limit:
            gone = next(removed, None)
            if gone is None:
                return False
            taken -= gone.bytes
        return True

    def remove_one(self, next_use: Callable[[str], float], mine: float) -> bool:
        """Remove the one that is used furthest from now, and after `mine`; whether one was."""
        return next(self._removed(self.stored(), next_use, mine), None) is not None

    def _removed(self, stored: list[Stored], next_use: Callable[[str], float], mine: float) -> Iterator[Stored]:
        """Remove one after the other, and yield what is gone.

        The furthest first (Belady's rule, which is the best there is); of those that no run plans for, the oldest.
        """
        for each in sorted(stored, key=lambda each: (-next_use(each.sha256), each.used_ns)):
            if next_use(each.sha256) <= mine:
                return
            if self.remove(each):
                yield each


class Held:
    """A shard that stays as long as this is not closed."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    def stat(self) -> os.stat_result:
        """Of its tar."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Release it."""
        self._file.close()


class Filling:
    """A shard that is being written, by no other process meanwhile."""

    def __init__(self, cache: ShardCache, sha256: str, file: IO[bytes]) -> None:
        self._cache, self._sha256, self._file = cache, sha256, file
        self._path = Path(file.name)
        self.size = os.fstat(file.fileno()).st_size
        """Bytes that are there."""
        self.etag = _etag(file.fileno()) if self.size else None
        """Of the object that these are of."""
        self.finished = False
        if self.size and self.etag is None:
            self.restart()
        self._hash = self._hashed()

    def begin(self, etag: str | None) -> None:
        """Note which object the bytes are of; without that, what is there when this breaks off is not continued."""
        if etag is not None:
            with contextlib.suppress(OSError, AttributeError):
                os.setxattr(self._file.fileno(), _ETAG, etag.encode())
        self.etag = etag

    def restart(self) -> None:
        """Forget what is there."""
        self._file.truncate(0)
        self.size, self.etag = 0, None
        with contextlib.suppress(OSError, AttributeError):
            os.removexattr(self._file.fileno(), _ETAG)
        self._hash = hashlib.sha256()

    def append(self, data: memoryview) -> None:
        """Write more of it.

        Raises:
            FullDisk: it does not fit.
            PetsegError: it cannot be written.
        """
        try:
            rest = data
            while len(rest):
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            self._file.truncate(self.size)  # what the hash knows of
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise FullDisk(f"{self._path.parent} is full: give --shard-cache a larger disk.") from None
            raise PetsegError(f"{self._path} cannot be written ({error.strerror}).") from None
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Give it its final name if it holds the right bytes; returns the SHA-256 of those that it holds.

        Raises:
            PetsegError: it cannot be written.
        """
        found = self._hash.hexdigest()
        if found != self._sha256:
            return found
        try:
            os.fsync(self._file.fileno())
            with contextlib.suppress(OSError, AttributeError):
                os.removexattr(self._file.fileno(), _ETAG)
            replace_durably(self._path, self._cache.tar(self._sha256))
        except OSError as error:
            raise PetsegError(f"{self._path} cannot be written ({error.strerror}).") from None
        self.finished = True
        return found

    def _hashed(self) -> hashlib._Hash:
        made = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            made.update(block)
        return made


def verify(cache: ShardCache) -> Iterator[tuple[Stored, bool]]:
    """Hash every shard; which are what their names say."""
    for each in cache.stored():
        if each.whole:
            with each.path.open("rb") as file:
                yield each, hashlib.file_digest(file, "sha256").hexdigest() == each.sha256


def parse_bytes(text: str) -> int:
    """`200GB`, `1.5 TB`, `500000` as bytes.

    Raises:
        PetsegError: it is not a number of bytes.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGTP]?)B?\s*", text, re.IGNORECASE)
    if not found:
        raise PetsegError(f"'{text}' is not a number of bytes; give 200GB, 1.5TB or the like.")
    return int(float(found[1]) * 1000 ** " kmgtp".index(found[2].lower() or " "))


def refuse_small(limit: int | None, window_bytes: int, what: str) -> None:
    """Refuse a limit under which a run would wait for every shard.

    Args:
        limit: of the cache, in bytes.
        window_bytes: of the largest two windows that follow each other.
        what: the windows, in words.

    Raises:
        PetsegError: it is too small; names the bytes that are needed.
    """
    if limit is not None and limit < window_bytes:
        raise PetsegError(
            f"--shard-cache-limit {bytes_in_words(limit)} is too small: {what} take {bytes_in_words(window_bytes)} "
            f"({window_bytes} bytes); give at least that, or a smaller --window."
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PetsegError(f"{folder} cannot be read ({error.strerror}).") from None


def _lock(file: int, *, shared: bool) -> None:
    """Take a lock; waits only for a shared one, which is never held up for long."""
    try:
        import fcntl
    except ImportError:  # Windows: one process at a time, then
        return
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _same(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False))
    except OSError:
        return False


def _etag(file: int) -> str | None:
    try:
        return os.getxattr(file, _ETAG).decode()
    except (OSError, AttributeError, UnicodeDecodeError):
        return None
