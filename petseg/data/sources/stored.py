"""Files of a source that lie in a store, with as much of a path's ways as sources of files need."""

from __future__ import annotations

import errno
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from petseg.data.objects import Meta, ObjectMissing, is_remote, opened
from petseg.data.sources import Pair
from petseg.errors import PetsegError

R = TypeVar("R")

_LISTED = {"s3", "s3a", "gs", "gcs", "az"}

REQUESTS = 16
"""Files that are asked for at once: a store answers each after tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class StorePath:
    """An object, or a folder of such."""

    store: str
    """`s3://BUCKET`, `gs://BUCKET` or `az://CONTAINER`."""
    path: str = ""
    """Below it."""

    @classmethod
    def of(cls, address: str) -> StorePath:
        """The object that an address names.

        Raises:
            PetsegError: of a server that does not list what it has.

        Examples:
            >>> StorePath.of("s3://pets/images/a.jpg")
            StorePath(store='s3://pets', path='images/a.jpg')
        """
        scheme, _, rest = address.partition("://")
        if scheme.lower() not in _LISTED:
            raise PetsegError(f"{address}: a web server does not list its files; name a folder, s3://, gs:// or az://.")
        bucket, _, path = rest.partition("/")
        return cls(f"{scheme.lower()}://{bucket}", PurePosixPath(path).as_posix() if path.strip("/") else "")

    def __str__(self) -> str:
        return f"{self.store}/{self.path}" if self.path else self.store

    def __truediv__(self, more: PurePosixPath | str) -> StorePath:
        return StorePath(self.store, (PurePosixPath(self.path) / more).as_posix())

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> StorePath:
        """The folder that it is in."""
        above = PurePosixPath(self.path).parent.as_posix()
        return StorePath(self.store, "" if above == "." else above)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            opened(self.store).head(self.path)
        except ObjectMissing:
            return False
        return True

    def below(self) -> dict[str, Meta]:
        """All objects below it by their path from here on, but for those that stand for a folder.

        Raises:
            PetsegError: they cannot be listed.
        """
        start = len(self.path) + 1 if self.path else 0
        found = {each.name[start:]: each.meta for each in opened(self.store).every(self.path)}
        folders = {parent.as_posix() for name in found for parent in PurePosixPath(name).parents}
        return {name: meta for name, meta in found.items() if name and name not in folders}

    def read_bytes(self, most: int | None = None) -> bytes:
        """All of it, or its beginning.

        Raises:
            FileNotFoundError: there is no such object.
            PetsegError: it cannot be read.
        """
        try:
            return opened(self.store).get(self.path, most)
        except ObjectMissing as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self)) from error

    def read_text(self, encoding: str) -> str:
        """All of it as text.

        Raises:
            FileNotFoundError: there is no such object.
            UnicodeDecodeError: it is in another encoding.
        """
        return self.read_bytes().decode(encoding)


def read_each(read: Callable[[Pair], R], pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Callable[[], R]]]:
    """Pairs, in order, and how to have what is read of each: its result, or its error.

    Where they lie in a store, the next ones are on their way in threads meanwhile; on a disk, each is read when asked.
    """
    if not pairs or not is_remote(pairs[0].image):
        yield from ((pair, functools.partial(read, pair)) for pair in pairs)
        return
    pool = ThreadPoolExecutor(REQUESTS, "petseg-read")
    try:
        waiting: deque[tuple[Pair, Future[R]]] = deque()
        for pair in pairs:
            waiting.append((pair, pool.submit(read, pair)))
            if len(waiting) > REQUESTS:
                first, future = waiting.popleft()
                yield first, future.result
        for first, future in waiting:
            yield first, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
