"""The webdataset loader: a `webdataset.DataPipeline` whose source goes by index and whose decoding works ahead."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from petseg.data.decode.cpu import DecodeError, check_image_header, decode_image, decode_mask
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.loaders.loader import Pixels, Pull
from petseg.data.shards.reader import ShardReader

if TYPE_CHECKING:
    from petseg.data.decode.nvimgcodec import BatchDecoder

CHUNKS_PER_THREAD = 2
"""Tasks that a batch is cut into, per thread: enough to even out picture sizes, few enough to cost nothing."""


@dataclass(slots=True)
class _Work:
    """One batch that is being made."""

    tasks: list[Future[None]]
    finish: Callable[[], Pixels]


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch does not start threads of its own.

    `torch.set_num_threads` sets the calling thread's number and the one that every thread takes when it first computes:
    that may be the one that trains. So all threads of the pool are started here, and then it is set back.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "petseg-decode", initializer=torch.set_num_threads, initargs=(1,))
    all_started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_started.wait)
    all_started.wait()
    torch.set_num_threads(before)
    return pool


class ThreadEngine:
    """Decodes and resizes on CPU threads; on a GPU, nvImageCodec decodes the images and torch resizes them there.

    Args:
        pull: gives the indices of the next batch.
        reader: encoded samples; closed together with the engine.
        size: (height, width) of the batches in pixels.
        device: where the batches go.
        num_threads: decoding threads.
        prefetch_batches: batches that are under way at once.
    """

    def __init__(
        self,
        pull: Pull,
        reader: ShardReader,
        *,
        size: tuple[int, int],
        device: torch.device,
        num_threads: int,
        prefetch_batches: int,
    ) -> None:
        import webdataset as wds

        self._pull = pull
        self._reader = reader
        self._size = size
        self._device = device
        self._threads = num_threads
        self._ahead = prefetch_batches
        # Threads, not processes: the decoders let go of the GIL, and pixels need no copy between processes.
        self._pool = _single_threaded_pool(num_threads)
        self._decoder: BatchDecoder | None = None
        if device.type == "cuda":
            from petseg.data.decode.nvimgcodec import BatchDecoder, available

            self._decoder = BatchDecoder(device, num_threads) if available() else None
        self._batches: Iterator[Pixels | None] = iter(wds.DataPipeline(self._requests, self._decode_ahead))

    def receive(self) -> Pixels | None:
        """See `Engine`."""
        return next(self._batches)

    def close(self) -> None:
        """See `Engine`."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._decoder is not None:
            self._decoder.close()
        self._reader.close()

    def _requests(self) -> Iterator[np.ndarray | None]:
        while True:
            yield self._pull()

    def _decode_ahead(self, requests: Iterator[np.ndarray | None]) -> Iterator[Pixels | None]:
        waiting: deque[_Work | None] = deque()
        for indices in requests:
            waiting.append(None if indices is None else self._start(indices))
            # A pull that gave nothing is answered at once: the one behind it may be waiting for that answer.
            if len(waiting) > self._ahead or indices is None:
                yield self._finished(waiting.popleft())

    def _finished(self, work: _Work | None) -> Pixels | None:
        if work is None:
            return None
        for task in work.tasks:
            task.result()
        return work.finish()

    def _start(self, indices: np.ndarray) -> _Work:
        if self._decoder is not None:
            return self._start_on_device(self._decoder, indices)
        height, width = self._size
        pin = self._device.type == "cuda"
        images = torch.empty((len(indices), height, width, 3), dtype=torch.uint8, pin_memory=pin)
        codes = torch.empty((len(indices), height, width), dtype=torch.uint8, pin_memory=pin)

        def decode(rows: range) -> None:
            for row in rows:
                self._decode(int(indices[row]), images.numpy()[row], codes.numpy()[row])

        def finish() -> Pixels:
            if not pin:
                return Pixels(images, codes)
            # Pinned blocks are not reused before the copy is done: torch's allocator records the stream.
            return Pixels(images.to(self._device, non_blocking=True), codes.to(self._device, non_blocking=True))

        return _Work([self._pool.submit(decode, rows) for rows in self._chunks(len(indices))], finish)

    def _start_on_device(self, decoder: BatchDecoder, indices: np.ndarray) -> _Work:
        height, width = self._size
        codes = torch.empty((len(indices), height, width), dtype=torch.uint8, pin_memory=True)
        encoded: list[memoryview] = [memoryview(b"")] * len(indices)

        def read(rows: range) -> None:
            for row in rows:
                index = int(indices[row])
                encoded[row], mask = self._reader.read(index)
                try:
                    check_image_header(encoded[row])
                except DecodeError as fault:
                    raise self._reader.bad_sample(index, fault) from fault
                resize_nearest(self._mask(index, mask), height, width, codes.numpy()[row])

        def decode(tasks: list[Future[None]]) -> torch.Tensor:
            for task in tasks:
                task.result()
            images, failed = decoder.decode(encoded, self._size)
            if failed:
                raise self._reader.bad_sample(int(indices[failed[0]]), DecodeError("image is damaged"))
            return images

        tasks = [self._pool.submit(read, rows) for rows in self._chunks(len(indices))]
        images = decoder.submit(decode, tasks)
        return _Work(tasks, lambda: Pixels(decoder.take(images), codes.to(self._device, non_blocking=True)))

    def _decode(self, index: int, image_out: np.ndarray, codes_out: np.ndarray) -> None:
        height, width = self._size
        image, mask = self._reader.read(index)
        try:
            picture = decode_image(image)
        except DecodeError as fault:
            raise self._reader.bad_sample(index, fault) from fault
        image_out[:] = resize_image(picture, height, width)
        resize_nearest(self._mask(index, mask), height, width, codes_out)

    def _mask(self, index: int, mask: memoryview) -> np.ndarray:
        try:
            return decode_mask(mask)
        except DecodeError as fault:
            raise self._reader.bad_sample(index, fault) from fault

    def _chunks(self, n: int) -> list[range]:
        step = max(1, math.ceil(n / (self._threads * CHUNKS_PER_THREAD)))
        return [range(first, min(first + step, n)) for first in range(0, n, step)]
