"""The bytes of samples, read from their tars."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict

from petseg.system import open_file, read_at

MAX_OPEN = 256
"""Tars that stay open, well below any limit of descriptors; the one that was read longest ago is closed first."""

TarFile = tuple[str, int, int, int]
"""A tar as a reader found it: its absolute path, inode, size in bytes, and time of change in ns."""

Span = tuple[int, TarFile, int, int, int, int]
"""Where a sample is: its index, its tar, offset and size of the image, offset and size of the mask (bytes)."""


def tar_file(path: str, stat: os.stat_result) -> TarFile:
    """A tar's identity on the file system, by which a file that replaces it is noticed."""
    return path, stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Descriptor:
    """An open file, closed when the last one who reads from it lets go of it."""

    def __init__(self, file: TarFile) -> None:
        self.number = -1
        self.number = open_file(file[0])
        self.file = tar_file(file[0], os.fstat(self.number))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class TarFiles:
    """Tars that are opened when they are first read; for any number of threads.

    Reads go through pread and never a memory map: a tar that shrinks under a map is a SIGBUS, here it is an error.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, span: Span) -> tuple[memoryview, memoryview]:
        """Encoded bytes of a sample's image and mask, in one read.

        Raises:
            OSError: the tar went away, or another file has its place (ESTALE).
            EOFError: it ends too early.
            ValueError: the files are closed.
        """
        _, file, image_at, image_size, mask_at, mask_size = span
        start = min(image_at, mask_at)
        length = max(image_at + image_size, mask_at + mask_size) - start
        data = read_at(self._descriptor(file).number, length, start)
        if len(data) != length:
            raise EOFError(file[0])
        view = memoryview(data)
        image, mask = image_at - start, mask_at - start
        return view[image : image + image_size], view[mask : mask + mask_size]

    def close(self) -> None:
        """Close the files, once reads that are under way in other threads have ended."""
        with self._lock:
            self._closed = True
            self._open.clear()

    def _descriptor(self, file: TarFile) -> _Descriptor:
        path = file[0]
        with self._lock:
            if self._closed:
                raise ValueError("this reader is closed")
            found = self._open.get(path)
            if found is None or found.file != file:
                # A folder may have been packed again: what was opened under this name then is another file.
                found = self._open[path] = _Descriptor(file)
            self._open.move_to_end(path)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        if found.file != file:
            if found.file[1] == file[1] and found.file[2] < file[2]:
                raise EOFError(path)
            raise OSError(errno.ESTALE, "another file has replaced it", path)
        return found
