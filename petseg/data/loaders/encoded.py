"""Encoded images and finished masks for a decoder of images: read by threads, or by processes."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_nearest
from petseg.data.loaders.loader import Size
from petseg.data.loaders.pool import ReadPool
from petseg.data.loaders.processes import give_back, tasks_of
from petseg.data.loaders.worker import check_whole
from petseg.data.loaders.workers import Workers
from petseg.data.shards.reader import ShardReader


class Encoded(NamedTuple):
    """A batch that has been read."""

    indices: np.ndarray
    """i64[n]."""
    size: Size
    """Of the codes, in pixels."""
    images: list[np.ndarray]
    """u8[bytes] of each image, a whole JPEG."""
    codes: np.ndarray
    """u8[n, H, W]."""


class EncodedSource(Protocol):
    """Reads batches: what was submitted first is taken first."""

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """Start on a batch."""
        ...

    def waiting(self) -> int:
        """Batches that were submitted and not yet taken."""
        ...

    def is_ready(self) -> bool:
        """Whether the oldest batch is read, and nothing was wrong with it; does not wait."""
        ...

    def take(self) -> Encoded:
        """The oldest batch; its arrays are the receiver's while it holds all of it.

        Raises:
            PetsegError: a sample cannot be read, or is damaged.
        """
        ...

    def close(self) -> None:
        """Be done with what is under way."""
        ...


class ThreadSource:
    """By the threads of a pool. On a CPU that decodes images too it is a third faster than processes."""

    def __init__(self, pool: ReadPool) -> None:
        self._pool = pool
        self._batches: deque[tuple[Encoded, list[Future[Any]]]] = deque()

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """See `EncodedSource`."""
        codes = np.empty((len(indices), *size), np.uint8)
        images: list[np.ndarray] = [codes] * len(indices)

        def read(row: int, image: memoryview, mask: memoryview) -> None:
            check_whole(image)
            images[row] = np.frombuffer(image, np.uint8)
            resize_nearest(decode_mask(mask), *size, out=codes[row])

        self._batches.append((Encoded(indices, size, images, codes), self._pool.each(indices, read)))

    def waiting(self) -> int:
        """See `EncodedSource`."""
        return len(self._batches)

    def is_ready(self) -> bool:
        """See `EncodedSource`."""
        return all(task.done() and task.exception() is None for task in self._batches[0][1])

    def take(self) -> Encoded:
        """See `EncodedSource`."""
        batch, tasks = self._batches[0]
        for task in tasks:
            task.result()
        self._batches.popleft()
        return batch

    def close(self) -> None:
        """See `EncodedSource`."""


class _Batch(NamedTuple):
    ticket: int
    indices: np.ndarray
    size: Size
    starts: list[int]
    """Where the images begin in the batch's memory, and where the last one ends: there the codes begin."""


class ProcessSource:
    """By processes. Where a GPU decodes, threads that read and make masks wait for each other's GIL, and the GPU waits.

    Args:
        reader: knows where samples are.
        processes: how many read.

    Raises:
        PetsegError: they cannot be started.
    """

    def __init__(self, reader: ShardReader, processes: int) -> None:
        self._reader = reader
        self._workers = Workers.shared(processes)
        self._batches: deque[_Batch] = deque()
        # Also for those who never close their loader.
        self._give_back = weakref.finalize(self, give_back, self._workers, self._batches)

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """See `EncodedSource`."""
        spans = self._reader.spans(indices)
        starts = [0, *itertools.accumulate(span[3] for span in spans)]
        tasks = tasks_of(self._workers, spans, size, starts, starts[-1], encoded=True)
        # Batches differ in length; rounded up, they find each other's places.
        room = 1 << (starts[-1] + len(indices) * math.prod(size) - 1).bit_length()
        self._batches.append(_Batch(self._workers.submit(tasks, room), indices, size, starts))

    def waiting(self) -> int:
        """See `EncodedSource`."""
        return len(self._batches)

    def is_ready(self) -> bool:
        """See `EncodedSource`."""
        return self._workers.is_sound(self._batches[0].ticket)

    def take(self) -> Encoded:
        """See `EncodedSource`."""
        ticket, indices, size, starts = self._batches[0]
        if (failure := self._workers.wait(ticket)) is not None:
            raise self._reader.fault(*failure) from failure[1]
        memory = self._workers.take(ticket)
        self._batches.popleft()
        # Parts that keep the whole alive: NumPy's own would hold on to the file alone, whose place is used again.
        view = memory.data
        images = [np.frombuffer(view[first:end], np.uint8) for first, end in itertools.pairwise(starts)]
        end = starts[-1] + len(indices) * math.prod(size)
        codes = np.frombuffer(view[starts[-1] : end], np.uint8).reshape(len(indices), *size)
        return Encoded(indices, size, images, codes)

    def close(self) -> None:
        """See `EncodedSource`."""
        self._give_back()
