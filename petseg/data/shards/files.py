"""The bytes of samples, read from their tars."""

from __future__ import annotations

import os
import threading

from petseg.system import open_file, read_at

MAX_OPEN = 256
"""Tars that stay open; the others are opened read by read, well below any limit of descriptors."""

Span = tuple[int, str, int, int, int, int]
"""Where a sample is: its index, path of the tar, offset and size of the image, offset and size of the mask (bytes)."""


class TarFiles:
    """Tars that are opened when they are first read; for any number of threads.

    Reads go through pread and never a memory map: a tar that shrinks under a map is a SIGBUS, here it is an error.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def read(self, span: Span) -> tuple[memoryview, memoryview]:
        """Encoded bytes of a sample's image and mask, in one read.

        Raises:
            OSError: the tar went away.
            EOFError: it ends too early.
            ValueError: the files are closed.
        """
        _, path, image_at, image_size, mask_at, mask_size = span
        start = min(image_at, mask_at)
        length = max(image_at + image_size, mask_at + mask_size) - start
        data = self._pread(path, length, start)
        if len(data) != length:
            raise EOFError(path)
        view = memoryview(data)
        image, mask = image_at - start, mask_at - start
        return view[image : image + image_size], view[mask : mask + mask_size]

    def close(self) -> None:
        """Close the files. Reads that are under way in other threads must have ended."""
        with self._lock:
            self._closed = True
            files, self._files = self._files, {}
        for file in files.values():
            os.close(file)

    def _pread(self, path: str, length: int, start: int) -> bytes:
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= MAX_OPEN:
                file = open_file(path)
                try:
                    return read_at(file, length, start)
                finally:
                    os.close(file)
            file = self._open(path)
        return read_at(file, length, start)

    def _open(self, path: str) -> int:
        with self._lock:
            if self._closed:
                raise ValueError("this reader is closed")
            if path not in self._files:
                self._files[path] = open_file(path)
            return self._files[path]
