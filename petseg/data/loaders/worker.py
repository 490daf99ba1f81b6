"""A process that decodes: tasks come in on one socket, pixels go into a shared file, and word of it out on another.

It imports no torch, and ends when the process that started it does, however that ended: then nobody holds the other end
of its socket.
"""

from __future__ import annotations

import math
import mmap
import pickle
import socket
import sys
from typing import NamedTuple

import cv2
import numpy as np

from petseg.data.decode.images import check_image_header, decode_image
from petseg.data.decode.masks import DecodeError, decode_mask
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.shards.files import Span, TarFiles

LARGEST_MESSAGE = 1 << 17
"""Bytes; a task of 32 samples whose tars have paths of 3,000 characters."""


JPEG_END = b"\xff\xd9"


class Task(NamedTuple):
    """Part of a batch; offsets are in bytes of the shared file."""

    ticket: int
    """The batch's."""
    images_at: int
    """Where its rows u8[n, H, W, 3] go."""
    codes_at: int
    """Where its rows u8[n, H, W] go."""
    size: tuple[int, int]
    spans: list[Span]
    encoded: bool = False
    """Whether images go as they are, one after the other and unpadded, for a decoder elsewhere."""


Failure = tuple[int, OSError | EOFError | DecodeError]
"""A sample, and why it could not be read or decoded."""


class Done(NamedTuple):
    """What became of a task."""

    ticket: int
    failure: Failure | None = None


class Shared:
    """The file that a process shares with those that decode for it, as arrays; it only grows."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._bytes = np.zeros(0, np.uint8)

    def rows(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """u8[shape] from byte `offset` on."""
        end = offset + math.prod(shape)
        if end > len(self._bytes):
            self._bytes = np.frombuffer(mmap.mmap(self._file, 0), np.uint8)
        return self._bytes[offset:end].reshape(shape)


def work(task: Task, files: TarFiles, shared: Shared) -> Done:
    """Decode the samples of a task."""
    n, size = len(task.spans), task.size
    codes, at = shared.rows(task.codes_at, (n, *size)), task.images_at
    for row, span in enumerate(task.spans):
        try:
            image, mask = files.read(span)
            if task.encoded:
                check_whole(image)
                shared.rows(at, (len(image),))[:] = np.frombuffer(image, np.uint8)
                at += len(image)
            else:
                resize_image(decode_image(image), *size, out=shared.rows(at, (*size, 3)))
                at += 3 * math.prod(size)
            resize_nearest(decode_mask(mask), *size, out=codes[row])
        except (OSError, EOFError, DecodeError) as fault:
            return Done(task.ticket, (span[0], fault))
    return Done(task.ticket)


def check_whole(image: memoryview) -> None:
    """Refuse what a decoder elsewhere might take without a word.

    Raises:
        DecodeError: no JPEG, too large, or its end is missing: DALI would fill it with grey.
    """
    check_image_header(image)
    if image[-2:] != JPEG_END:  # or something stands behind the image
        decode_image(image)


def main() -> None:
    """Work until there is nobody to work for. Arguments: descriptors of the shared file and of the two sockets."""
    file, tasks_from, done_to = map(int, sys.argv[1:])
    cv2.setNumThreads(1)
    files, shared = TarFiles(), Shared(file)
    with socket.socket(fileno=tasks_from) as tasks, socket.socket(fileno=done_to) as done:
        while message := tasks.recv(LARGEST_MESSAGE):
            try:
                done.send(pickle.dumps(work(pickle.loads(message), files, shared)))
            except (BrokenPipeError, ConnectionError):
                return
