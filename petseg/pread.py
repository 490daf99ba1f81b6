"""Reading at an offset without a shared position, also where the system has no pread."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_lock = threading.Lock()


def open_file(path: Path | str) -> int:
    """A descriptor for `read_at`; close it with os.close."""
    return os.open(path, _FLAGS)


def read_at(file: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`, fewer at the file's end. From any thread."""
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with _lock:  # Windows: position and read must not be parted
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)
