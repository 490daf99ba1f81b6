"""The DALI loader: its decoder, fed by index so that the order is ours, and on a GPU its resize."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.resize import resize_image
from petseg.data.loaders.culprit import name_culprit
from petseg.data.loaders.encoded import EncodedSource, ProcessSource, ThreadSource
from petseg.data.loaders.loader import Pixels, Size
from petseg.data.loaders.pool import ReadPool, upload
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

LARGEST_HINT = 1024
"""Pixels a side that buffers are made for in advance; larger pictures make them grow. The widest and the highest of a
set may be two pictures, and a batch of 128 with both would take gigabytes."""


class _Batch(NamedTuple):
    """A batch that DALI decodes."""

    indices: np.ndarray
    size: Size
    codes: torch.Tensor
    """u8[n, H, W], on the device."""


class DaliEngine:
    """Decodes images with DALI: on the GPU (`mixed`), where it resizes them too, or on the CPU where there is none.

    What runs on the CPU beside it is petseg's own: DALI's antialiased resize takes ten times as long there, and its
    nearest one rounds in float32.

    Args:
        reader: encoded samples; closed together with the engine.
        manifest: the largest image sizes the decoders' buffers.
        batch_size: most samples in one submission.
        device: `cpu`, or the GPU to decode on.
        num_threads: CPU threads of DALI; half as many threads (on a GPU: processes) read, and make the masks.
        hw_decoder_load: share of the images, 0 to 1, for the GPU's JPEG engines where it has some; DALI's own default.

    Raises:
        PetsegError: DALI is not installed.
    """

    def __init__(
        self,
        reader: ShardReader,
        manifest: Manifest,
        *,
        batch_size: int,
        device: torch.device,
        num_threads: int,
        hw_decoder_load: float = 0.65,
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._pipeline: Pipeline | None = _pipeline(
            manifest,
            batch_size=batch_size,
            device_id=(device.index or 0) if self._on_gpu else None,
            num_threads=num_threads,
            hw_decoder_load=hw_decoder_load,
        )
        # DALI's threads do most of the work; as many again beside them would take each other's cores.
        helpers = max(1, num_threads // 2)
        self._pool = ReadPool(reader, 1 if self._on_gpu else helpers)
        self._source: EncodedSource = ProcessSource(reader, helpers) if self._on_gpu else ThreadSource(self._pool)
        self._decoding: deque[_Batch] = deque()

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """See `Engine`."""
        self._source.submit(indices, size)
        self._feed(wait_for_first=False)

    def receive(self) -> Pixels:
        """See `Engine`."""
        if self._pipeline is None:
            raise ValueError("this engine is closed")
        self._feed(wait_for_first=not self._decoding)
        try:
            # The stream makes DALI's work visible to what torch queues next, without waiting on the host.
            stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
            (pictures,) = self._pipeline.share_outputs(stream)
            self._pipeline.release_outputs()  # the tensors keep what they use
        except RuntimeError as error:
            self._pipeline = None  # it works ahead no more
            fault = name_culprit(self._pool.reader, [batch.indices for batch in self._decoding], error)
            raise fault from error
        batch = self._decoding.popleft()
        if self._on_gpu:
            return Pixels(from_dlpack(pictures.as_tensor()), batch.codes)
        return Pixels(self._resized(pictures, batch.size), batch.codes)

    def _resized(self, pictures: Any, size: Size) -> torch.Tensor:
        images = torch.empty((len(pictures), *size, 3), dtype=torch.uint8)
        rows = images.numpy()

        def resize(part: range) -> None:
            for row in part:
                resize_image(np.asarray(pictures[row]), *size, out=rows[row])

        threads = self._pool.threads
        self._pool.do(resize, (range(first, len(rows), threads) for first in range(threads)))
        return images

    def close(self) -> None:
        """See `Engine`."""
        self._pipeline = None  # its threads and buffers go with it
        self._source.close()
        self._pool.close()

    def _feed(self, *, wait_for_first: bool) -> None:
        """Hand DALI the batches that have been read, in order; it takes any number of them."""
        # A damaged sample is said in its batch's turn.
        while self._source.waiting() and (wait_for_first or self._source.is_ready()):
            wait_for_first = False
            batch = self._source.take()
            assert self._pipeline is not None
            self._pipeline.feed_input("jpegs", batch.images)  # copies them
            if self._on_gpu:
                sizes = np.tile(np.asarray(batch.size, np.float32), (len(batch.images), 1))
                self._pipeline.feed_input("sizes", sizes)
                codes = upload(batch.codes, self._device)
            else:
                codes = torch.from_numpy(batch.codes)
            self._pipeline.schedule_run()
            self._decoding.append(_Batch(batch.indices, batch.size, codes))


def _pipeline(
    manifest: Manifest, *, batch_size: int, device_id: int | None, num_threads: int, hw_decoder_load: float
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
    gpu = device_id is not None
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device_id,
        # The dynamic executor takes runs ahead without a bound; this is how many the first one starts by itself.
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    with pipeline:
        jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1)
        hints: dict[str, Any] = (
            {
                "hw_decoder_load": hw_decoder_load,
                "preallocate_width_hint": min(manifest.max_width, LARGEST_HINT),
                "preallocate_height_hint": min(manifest.max_height, LARGEST_HINT),
            }
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
        if gpu:
            sizes = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=1)
            images = fn.resize(images, size=sizes, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
