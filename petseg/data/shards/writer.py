"""One tar and its index, which appear under their names only when they are whole."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType

from petseg.data.shards.columns import ShardInfo
from petseg.data.shards.index import index_name, write_index
from petseg.data.tar import Component, Entry
from petseg.system import open_fresh, partial_of, replace_durably

_BLOCK = 512
_RECORD = 20 * _BLOCK  # tars end on a whole record, as GNU tar and Python write them


class ShardWriter:
    """Writes a sample's image and mask side by side; equal samples give equal bytes.

    Used as a context manager: leaving it gives the files their names, leaving it by an error removes them.

    Args:
        folder: where the tar goes.
        name: its final name.
        extensions: of image and mask.
    """

    def __init__(self, folder: Path, name: str, extensions: tuple[str, str] = ("jpg", "png")) -> None:
        self._path = folder / name
        self._extensions = extensions
        self._partial = partial_of(self._path)
        self._file = open_fresh(self._partial)
        self._hash = hashlib.sha256()
        self._offset = 0
        self._entries: list[Entry] = []
        self.info: ShardInfo | None = None
        """What was written, once it is whole."""

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self.info = self._finish()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def add(self, key: str, image: bytes, mask: bytes) -> None:
        """Append a sample.

        Raises:
            OSError: the disk is full.
        """
        parts = []
        for extension, data in zip(self._extensions, (image, mask), strict=True):
            name = f"{key}.{extension}"
            header = tarfile.TarInfo(name)  # its defaults are what we want: time 0, owner 0, mode 0644
            header.size = len(data)
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            parts.append(Component(extension, self._offset, len(data), name))
            self._write(data)
            self._write(bytes(-len(data) % _BLOCK))
        self._entries.append(Entry(key, tuple(parts)))

    def _finish(self) -> ShardInfo:
        end = self._offset + 2 * _BLOCK
        self._write(bytes(2 * _BLOCK + -end % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        replace_durably(self._partial, self._path)
        write_index(self._path.with_name(index_name(self._path.name)), self._entries)
        return ShardInfo(
            name=self._path.name, samples=len(self._entries), bytes=self._offset, sha256=self._hash.hexdigest()
        )

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)
