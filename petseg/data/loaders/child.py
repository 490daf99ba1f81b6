"""What a worker does with a sample, and the process that does it.

The process takes tasks from one socket, writes pixels into a shared file, and answers on another socket. It imports no
torch, and ends when the process that started it does, however that ended: then nobody holds its sockets' other ends.
"""

from __future__ import annotations

import math
import mmap
import pickle
import socket
from typing import NamedTuple

import cv2
import numpy as np

from petseg.data.decode.images import check_encoded, decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.pictures import DecodeError
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.shards.files import Span, TarFiles

LARGEST_MESSAGE = 1 << 17
"""Bytes; a task of 32 samples whose tars have paths of 3,000 characters."""


class Task(NamedTuple):
    """Part of a batch."""

    batch: int
    """Number of the batch."""
    number: int
    """Of this task in its batch."""
    images_at: list[int]
    """Where each image begins, and where the last one ends, in bytes of the memory that they go to."""
    codes_at: int
    """Where its codes u8[n, H, W] begin."""
    size: tuple[int, int]
    """(height, width) of the codes, and of the images unless they stay encoded."""
    spans: list[Span]
    encoded: bool
    """Whether images go as they are, for a decoder elsewhere."""

    @property
    def ends(self) -> int:
        """Where its codes end: it writes to nothing behind."""
        return self.codes_at + len(self.spans) * math.prod(self.size)


Failure = tuple[int, OSError | EOFError | DecodeError]
"""A sample, and why it could not be read or decoded."""


class Done(NamedTuple):
    """What became of a task."""

    batch: int
    number: int
    failure: Failure | None = None


class SharedFile:
    """A file without a name as an array; it only grows."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._bytes = np.zeros(0, np.uint8)

    def upto(self, end: int) -> np.ndarray:
        """u8[`end` or more]: its bytes."""
        if end > len(self._bytes):
            self._bytes = np.frombuffer(mmap.mmap(self._file, 0), np.uint8)
        return self._bytes


def prepare(
    image: memoryview, mask: memoryview, size: tuple[int, int], encoded: bool, image_out: np.ndarray, out: np.ndarray
) -> None:
    """Turn a sample's bytes into what a batch holds of it.

    Args:
        image: its encoded bytes.
        mask: likewise.
        size: (height, width) in pixels.
        encoded: the image goes as it is, once it has been found whole.
        image_out: u8[bytes] to write the image to: as it is, or the rows of its pixels.
        out: u8[height, width] to write the codes to.

    Raises:
        DecodeError: one of them is damaged.
    """
    if encoded:
        check_encoded(image)
        image_out[:] = np.frombuffer(image, np.uint8)
    else:
        resize_image(decode_image(image), *size, out=image_out.reshape(*size, 3))
    resize_nearest(decode_mask(mask), *size, out=out)


def work(task: Task, files: TarFiles, memory: np.ndarray) -> Done:
    """Do a task, up to the first sample that cannot be read or decoded.

    Args:
        task: which samples, and where they go.
        files: the tars.
        memory: u8[...] to write to.
    """
    codes = memory[task.codes_at : task.ends].reshape(len(task.spans), *task.size)
    for row, span in enumerate(task.spans):
        try:
            image, mask = files.read(span)
            image_out = memory[task.images_at[row] : task.images_at[row + 1]]
            prepare(image, mask, task.size, task.encoded, image_out, codes[row])
        except (OSError, EOFError, DecodeError) as fault:
            return Done(task.batch, task.number, (span[0], fault))
    return Done(task.batch, task.number)


def main(shared: int, tasks_from: int, done_to: int) -> None:
    """Work until there is nobody to work for.

    Args:
        shared: descriptor of the file that pixels go to.
        tasks_from: of the socket that tasks come from.
        done_to: of the socket to answer on.
    """
    cv2.setNumThreads(1)
    files, memory = TarFiles(), SharedFile(shared)
    with socket.socket(fileno=tasks_from) as tasks, socket.socket(fileno=done_to) as answers:
        while message := tasks.recv(LARGEST_MESSAGE):
            task: Task = pickle.loads(message)
            try:
                answers.send(pickle.dumps(work(task, files, memory.upto(task.ends))))
            except (BrokenPipeError, ConnectionError):
                return
