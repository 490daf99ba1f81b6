"""Tasks of a decoding worker, and the main loop of its process.

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

from petseg.data.decode.boxes import Framing, frame_image, frame_mask
from petseg.data.decode.image_files import DecodeError
from petseg.data.decode.images import Chroma, check_encoded, decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.loaders.kept import Kept
from petseg.data.order import VISIT
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
    """Where the room of each image begins, and where the last one's ends, in bytes of the memory that they go to."""
    codes_at: int
    """Where its codes u8[n, H, W] begin."""
    boxes_at: int
    """Where its boxes i32[n, 6] begin: the images' sizes belong to them."""
    framing: Framing
    """Of the codes, and of the images unless they stay encoded."""
    spans: list[Span]
    encoded: bool
    """Whether images are copied encoded, for another decoder."""
    kept: Kept | None = None
    """Where whole images are kept, if they are."""
    chroma: Chroma = "fancy"
    """How JPEGs are decoded."""

    @property
    def ends(self) -> int:
        """Where its boxes end: it writes to nothing behind."""
        return self.boxes_at + len(self.spans) * BOX_BYTES


BOX_BYTES = 24
"""Of six numbers: a box, and the height and width of its image."""

Failure = tuple[int, OSError | EOFError | DecodeError]
"""A sample, and why it could not be read or decoded."""


class Done(NamedTuple):
    """The outcome of a task."""

    batch: int
    number: int
    failure: Failure | None = None


class SharedFile:
    """An anonymous file as an array; it only grows."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._bytes = np.zeros(0, np.uint8)

    def upto(self, end: int) -> np.ndarray:
        """u8[`end` or more]: its bytes."""
        if end > len(self._bytes):
            self._map = mmap.mmap(self._file, 0)
            self._bytes = np.frombuffer(self._map, np.uint8)
        return self._bytes

    def empty(self, start: int, end: int) -> None:
        """Make bytes 0 again, which then take no memory; both are multiples of the size of a page."""
        self.upto(end)
        self._map.madvise(mmap.MADV_REMOVE, start, end - start)


def work(task: Task, files: TarFiles, memory: np.ndarray, kept: np.ndarray) -> Done:
    """Do a task, up to the first sample that cannot be read or decoded.

    Args:
        task: which samples, and where they go.
        files: the tars.
        memory: u8[...] to write to.
        kept: u8[...] that holds the kept images, where the task has such.
    """
    count, size = len(task.spans), task.framing.size
    codes = memory[task.codes_at : task.codes_at + count * math.prod(size)].reshape(count, *size)
    boxes = memory[task.boxes_at : task.ends].reshape(count, BOX_BYTES)
    for row, span in enumerate(task.spans):
        try:
            image_out = memory[task.images_at[row] : task.images_at[row + 1]]
            image: np.ndarray | None = None
            if task.encoded:
                encoded, mask = files.read(span)
                check_encoded(encoded)
                image_out[: len(encoded)] = np.frombuffer(encoded, np.uint8)
                whole = decode_mask(mask)
            else:
                image, whole = _image(span, task, files, kept)
            index = span[0] + (task.framing.visits[row] * VISIT if task.framing.visits else 0)
            # A box may depend on the mask.
            box, _ = frame_mask(whole, task.framing, index, codes[row])
            if image is not None:
                frame_image(image, box, size, image_out.reshape(*size, 3))
            boxes[row] = np.array((*box, *whole.shape), np.int32).view(np.uint8)
        except (OSError, EOFError, DecodeError) as fault:
            return Done(task.batch, task.number, (span[0], fault))
    return Done(task.batch, task.number)


def _image(span: Span, task: Task, files: TarFiles, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sample's whole image u8[H, W, 3] and codes u8[H, W], kept or decoded now.

    Raises:
        DecodeError: one of them is damaged; OSError, EOFError: it cannot be read.
    """
    if task.kept and (found := task.kept.find(kept, span[0])):
        return found
    encoded, mask = files.read(span)
    codes, image = decode_mask(mask), decode_image(encoded, task.chroma)
    if task.kept:
        task.kept.put(kept, span[0], image, codes)
    return image, codes


def main(shared: str, tasks_from: str, done_to: str) -> None:
    """Do tasks until the parent process is gone.

    Args:
        shared: descriptor of the file that pixels go to.
        tasks_from: of the socket that tasks come from.
        done_to: of the socket to answer on.
    """
    cv2.setNumThreads(1)
    files, memory = TarFiles(), SharedFile(int(shared))
    with socket.socket(fileno=int(tasks_from)) as tasks, socket.socket(fileno=int(done_to)) as answers:
        while message := tasks.recv(LARGEST_MESSAGE):
            task: Task = pickle.loads(message)
            try:
                reach = memory.upto(max(task.ends, task.kept.ends if task.kept else 0))
                answers.send(pickle.dumps(work(task, files, reach, reach)))
            except (BrokenPipeError, ConnectionError):
                return
