"""The DALI loader: its decoders and resizers, fed by index so that the order is ours."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.cpu import DecodeError, check_image_header, check_mask_header, decode_image
from petseg.data.decode.resize import resize_nearest
from petseg.data.loaders.culprit import name_culprit
from petseg.data.loaders.loader import Pixels, Pull
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

JPEG_END = b"\xff\xd9"


class DaliEngine:
    """Decodes and resizes with DALI: images on the GPU (`mixed`), or all on the CPU where there is none.

    Args:
        pull: gives the indices of the next batch.
        reader: encoded samples; closed together with the engine.
        manifest: the largest image sizes the decoders' buffers.
        batch_size: most samples in one pull.
        size: (height, width) of the batches in pixels.
        device: `cpu`, or the GPU to decode on.
        num_threads: CPU threads of DALI.
        prefetch_batches: batches that are under way at once.

    Raises:
        PetsegError: DALI is not installed.
    """

    def __init__(
        self,
        pull: Pull,
        reader: ShardReader,
        manifest: Manifest,
        *,
        batch_size: int,
        size: tuple[int, int],
        device: torch.device,
        num_threads: int,
        prefetch_batches: int,
    ) -> None:
        self._pull = pull
        self._reader = reader
        self._device = device
        self._size = size
        self._pulls: deque[np.ndarray | None] = deque()
        # DALI knows no empty batch: where there is nothing to make, it makes this one sample, which nobody sees.
        self._idle = np.zeros(1, np.int64)
        self._pipeline: Pipeline | None = _pipeline(
            self._feed,
            manifest,
            batch_size=batch_size,
            size=size,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
        )

    def receive(self) -> Pixels | None:
        """See `Engine`."""
        if self._pipeline is None:
            raise ValueError("this engine is closed")
        try:
            # The stream makes DALI's work visible to what torch queues next, without waiting on the host.
            stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
            pictures, masks = self._pipeline.run(stream)
            images = from_dlpack(pictures.as_tensor())
        except RuntimeError as error:
            pulls = [indices for indices in self._pulls if indices is not None]
            self._pipeline = None  # it works ahead no more
            fault = name_culprit(self._reader, pulls, error)
            self.close()
            raise fault from error
        indices = self._pulls.popleft()
        return None if indices is None else Pixels(images, self._resized(masks, len(indices)))

    def close(self) -> None:
        """See `Engine`."""
        self._pipeline = None  # its threads and buffers go with it
        self._reader.close()

    def _resized(self, masks: Any, n: int) -> torch.Tensor:
        """Decoded masks of any size, gathered by index: DALI's own nearest resize rounds in float32."""
        height, width = self._size
        on_gpu = self._device.type == "cuda"
        codes = torch.empty((n, height, width), dtype=torch.uint8, pin_memory=on_gpu)
        for row in range(n):
            resize_nearest(np.asarray(masks[row])[..., 0], height, width, codes.numpy()[row])
        return codes.to(self._device, non_blocking=True) if on_gpu else codes

    def _feed(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        indices = self._pull()
        self._pulls.append(indices)
        samples = [self._read(int(i)) for i in (self._idle if indices is None else indices)]
        return (
            [np.frombuffer(image, np.uint8) for image, _ in samples],
            [np.frombuffer(mask, np.uint8) for _, mask in samples],
        )

    def _read(self, index: int) -> tuple[memoryview, memoryview]:
        image, mask = self._reader.read(index)
        try:
            check_image_header(image)
            check_mask_header(mask)
            if image[-2:] != JPEG_END:
                # Either something stands behind the image, or its end is missing: then DALI would fill it with grey.
                decode_image(image)
        except DecodeError as fault:
            raise self._reader.bad_sample(index, fault) from fault
        return image, mask


def _pipeline(
    feed: Any,
    manifest: Manifest,
    *,
    batch_size: int,
    size: tuple[int, int],
    device_id: int | None,
    num_threads: int,
    prefetch_batches: int,
) -> Pipeline:
    try:
        from nvidia.dali import Pipeline, fn, types
    except ImportError as error:
        raise PetsegError(
            "--loader dali: NVIDIA DALI is not installed: on Linux install petseg with its default dependencies (or "
            "its extra `cuda13`), elsewhere use --loader webdataset."
        ) from error
    if device_id is None:
        # Without it DALI looks for the driver's library even where it will not use it, and complains of its absence.
        os.environ.setdefault("DALI_DISABLE_NVML", "1")
    height, width = size
    gpu = device_id is not None
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch_batches,
        exec_dynamic=True,
    )
    with pipeline:
        jpegs, pngs = fn.external_source(source=feed, num_outputs=2, batch=True, dtype=types.UINT8, ndim=1)
        hints: dict[str, Any] = (
            {"preallocate_width_hint": manifest.max_width, "preallocate_height_hint": manifest.max_height}
            if gpu
            else {}
        )
        # One policy for chroma on every device and in `predict`: GPU decoders skip libjpeg's interpolation otherwise.
        images = fn.decoders.image(
            jpegs,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            **hints,
        )
        images = fn.resize(images, size=[height, width], interp_type=types.INTERP_LINEAR, antialias=True)
        masks = fn.decoders.image(pngs, device="cpu", output_type=types.GRAY, adjust_orientation=False)
        pipeline.set_outputs(images, masks)
    pipeline.build()
    return pipeline
