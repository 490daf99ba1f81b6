"""The webdataset loader where nvImageCodec decodes on the GPU, or where there are no processes to share the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from petseg.data.decode.images import check_image_header, decode_image
from petseg.data.decode.masks import DecodeError, decode_mask
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.loaders.loader import Pixels, Size
from petseg.data.loaders.pool import ReadPool
from petseg.data.shards.reader import ShardReader

if TYPE_CHECKING:
    from petseg.data.decode.nvimgcodec import BatchDecoder


def decodes_on_gpu(device: torch.device) -> bool:
    """Whether `ThreadEngine` decodes images on this device, with nvImageCodec."""
    if device.type != "cuda":
        return False
    from petseg.data.decode.nvimgcodec import available

    return available()


class ThreadEngine:
    """Decodes and resizes on CPU threads; on a GPU, nvImageCodec decodes the images and torch resizes them there.

    Args:
        reader: encoded samples; closed together with the engine.
        device: where the batches go.
        num_threads: decoding threads.
    """

    def __init__(self, reader: ShardReader, *, device: torch.device, num_threads: int) -> None:
        self._pool = ReadPool(reader, num_threads)
        self._device = device
        self._batches: deque[Callable[[], Pixels]] = deque()
        self._decoder: BatchDecoder | None = None
        if decodes_on_gpu(device):
            from petseg.data.decode.nvimgcodec import BatchDecoder

            self._decoder = BatchDecoder(device, num_threads)

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """See `Engine`."""
        decoder = self._decoder
        self._batches.append(self._start(indices, size) if decoder is None else self._start_on(decoder, indices, size))

    def receive(self) -> Pixels:
        """See `Engine`."""
        return self._batches.popleft()()

    def close(self) -> None:
        """See `Engine`."""
        self._pool.close()
        if self._decoder is not None:
            self._decoder.close()

    def _start(self, indices: np.ndarray, size: Size) -> Callable[[], Pixels]:
        pin = self._device.type == "cuda"
        images = torch.empty((len(indices), *size, 3), dtype=torch.uint8, pin_memory=pin)
        codes = torch.empty((len(indices), *size), dtype=torch.uint8, pin_memory=pin)
        image_rows, code_rows = images.numpy(), codes.numpy()

        def decode(row: int, image: memoryview, mask: memoryview) -> None:
            resize_image(decode_image(image), *size, out=image_rows[row])
            resize_nearest(decode_mask(mask), *size, out=code_rows[row])

        tasks = self._pool.each(indices, decode)

        def finish() -> Pixels:
            for task in tasks:
                task.result()
            if not pin:
                return Pixels(images, codes)
            # Pinned blocks are not reused before the copy is done: torch's allocator records the stream.
            return Pixels(images.to(self._device, non_blocking=True), codes.to(self._device, non_blocking=True))

        return finish

    def _start_on(self, decoder: BatchDecoder, indices: np.ndarray, size: Size) -> Callable[[], Pixels]:
        codes = torch.empty((len(indices), *size), dtype=torch.uint8, pin_memory=True)
        code_rows = codes.numpy()
        encoded: list[memoryview] = [memoryview(b"")] * len(indices)

        def read(row: int, image: memoryview, mask: memoryview) -> None:
            check_image_header(image)
            encoded[row] = image
            resize_nearest(decode_mask(mask), *size, out=code_rows[row])

        def decode(tasks: list[Future[Any]]) -> torch.Tensor:
            for task in tasks:
                task.result()
            images, failed = decoder.decode(encoded, size)
            if failed:
                raise self._pool.reader.fault(int(indices[failed[0]]), DecodeError("image is damaged"))
            return images

        images = decoder.submit(decode, self._pool.each(indices, read))
        return lambda: Pixels(decoder.take(images), codes.to(self._device, non_blocking=True))
