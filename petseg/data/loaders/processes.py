"""The webdataset loader where images are decoded on the CPU: in processes, since threads wait for each other's GIL."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from petseg.data.loaders.loader import Pixels, Size
from petseg.data.loaders.pool import task_samples, upload
from petseg.data.loaders.worker import Task
from petseg.data.loaders.workers import Workers
from petseg.data.shards.files import Span
from petseg.data.shards.reader import ShardReader


class _Batch(NamedTuple):
    """A batch on its way."""

    ticket: int
    samples: int
    size: Size


class ProcessEngine:
    """Decodes and resizes in processes, which all loaders of this process share.

    Args:
        reader: knows where samples are; closed together with the engine.
        device: where the batches go.
        processes: how many decode.

    Raises:
        PetsegError: they cannot be started.
    """

    def __init__(self, reader: ShardReader, *, device: torch.device, processes: int) -> None:
        self._reader = reader
        self._device = device
        self._workers = Workers.shared(processes)
        self._batches: deque[_Batch] = deque()
        # Also for those who never close their loader.
        self._give_back = weakref.finalize(self, give_back, self._workers, self._batches)

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """See `Engine`."""
        count, pixels = len(indices), math.prod(size)
        images_at = range(0, 3 * pixels * count, 3 * pixels)
        tasks = tasks_of(self._workers, self._reader.spans(indices), size, images_at, 3 * pixels * count)
        self._batches.append(_Batch(self._workers.submit(tasks, 4 * count * pixels), count, size))

    def receive(self) -> Pixels:
        """See `Engine`."""
        ticket, count, size = self._batches[0]
        failure = self._workers.wait(ticket)
        if failure is not None:
            sample, fault = failure
            raise self._reader.fault(sample, fault) from fault
        memory = self._workers.take(ticket)
        self._batches.popleft()
        pixels = upload(memory, self._device) if self._device.type == "cuda" else torch.from_numpy(memory)
        cut = len(pixels) // 4 * 3
        return Pixels(pixels[:cut].view(count, *size, 3), pixels[cut:].view(count, *size))

    def close(self) -> None:
        """See `Engine`."""
        self._give_back()
        self._reader.close()


def tasks_of(
    workers: Workers, spans: list[Span], size: Size, images_at: Sequence[int], codes_at: int, *, encoded: bool = False
) -> list[Task]:
    """A batch cut into tasks.

    Args:
        workers: who will do them.
        spans: where the samples are.
        size: of the codes, and of the images unless they stay encoded.
        images_at: where each image goes, in bytes from the batch's first one.
        codes_at: where the codes begin.
        encoded: images go as they are.
    """
    step, pixels = task_samples(len(spans), workers.count), math.prod(size)
    return [
        Task(0, images_at[first], codes_at + pixels * first, size, spans[first : first + step], encoded)
        for first in range(0, len(spans), step)
    ]


class Submitted(Protocol):
    """A batch that was given to processes."""

    @property
    def ticket(self) -> int:
        """The processes' name for it."""
        ...


def give_back(workers: Workers, batches: Iterable[Submitted]) -> None:
    """Be done with processes, and with the batches that they still work on."""
    for batch in batches:
        workers.drop(batch.ticket)
    workers.release()
