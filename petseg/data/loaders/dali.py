"""The DALI loader: its decoder, fed by index so that the order is ours, and on a GPU its resize."""

from __future__ import annotations

import functools
import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.boxes import OUTSIDE, Box, Framing, Kind, frame_part
from petseg.data.decode.images import Chroma
from petseg.data.decode.netpbm import decode_pixels
from petseg.data.loaders.cpu import upload
from petseg.data.loaders.crew import Crew, Threads
from petseg.data.loaders.encoded import Encoded, read_encoded
from petseg.data.loaders.loader import Pending, Pixels
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

LARGEST_HINT = 1024
"""Pixels a side that buffers are made for in advance; larger images make them grow. The widest and the highest of a
set may be two images, and a batch of 128 with both would take gigabytes."""


@dataclass(slots=True, eq=False)
class _Run:
    """A batch that DALI is working on."""

    engine: DaliEngine
    encoded: Encoded
    boxes: np.ndarray | None = None
    """i32[n, 4], once it has been read: top, left, height and width of what is shown, in its image's pixels."""
    parts: np.ndarray | None = None
    """i32[n, 4], likewise: what of these lies in the images."""
    codes: torch.Tensor | None = None
    """u8[n, H, W], on the device, once it was fed to DALI."""
    decoded: Any = None
    """DALI's list of images, once it has given them."""

    def receive(self) -> Pixels:
        """See `Pending`."""
        return self.engine.finish(self)


class DaliEngine:
    """Decodes images with DALI: on the GPU (`mixed`), where it resizes them too, or on the CPU where there is none.

    Images that are stored as PPM are handed over as they are; only the GPU's upload and resize are left to do.

    What runs on the CPU beside it is petseg's own: DALI's antialiased resize takes ten times as long there, and its
    nearest one rounds in float32.

    Args:
        reader: says where samples are; closed together with the engine. On a CPU, DALI's decoder knows `fancy` alone.
        crew: reads, and makes the masks; closed together with the engine.
        threads: resize where there is no GPU; closed by the crew, or by their owner.
        manifest: the largest image sizes the decoders' buffers.
        batch_size: most samples in one submission.
        device: `cpu`, or the GPU to decode on.
        num_threads: CPU threads of DALI.
        kind: of the boxes that will be asked for.
        hw_decoder_load: share of the images, 0 to 1, for the GPU's JPEG engines where it has some; DALI's own default.

    Raises:
        PetsegError: DALI is not installed.
    """

    def __init__(
        self,
        reader: ShardReader,
        crew: Crew,
        threads: Threads | None,
        *,
        manifest: Manifest,
        batch_size: int,
        device: torch.device,
        num_threads: int,
        kind: Kind = "squash",
        hw_decoder_load: float = 0.65,
    ) -> None:
        self._reader = reader
        self._crew = crew
        self._threads = threads
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._close_crew = weakref.finalize(self, crew.close)
        self._make_pipeline = functools.partial(
            _pipeline,
            manifest,
            batch_size=batch_size,
            device_id=(device.index or 0) if self._on_gpu else None,
            num_threads=num_threads,
            kind=kind,
            chroma=reader.chroma,
            hw_decoder_load=hw_decoder_load,
        )
        self._kind = kind
        self._raw = manifest.encoding.raw
        # Batches that DALI has not been fed, and those that it decodes; each in the order of submission.
        self._waiting: deque[_Run] = deque()
        self._fed: deque[_Run] = deque()
        self._failure: PetsegError | None = None
        self._pipeline: Pipeline | None = self._make_pipeline()
        # Set while DALI and the two lines may disagree: whoever finds it set was preceded by an exception.
        self._torn = False

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """See `Engine`."""
        if self._failure is not None:
            raise self._failure
        run = _Run(self, read_encoded(self._reader, self._crew, indices, framing))
        self._waiting.append(run)
        self._feed_those_ready()
        return run

    def finish(self, run: _Run) -> Pixels:
        """The pixels of a batch; those that were submitted before it and are still here are abandoned."""
        if self._failure is not None:
            raise self._failure
        if run.decoded is None:
            self._mend()
            if run.codes is None:
                while self._waiting[0] is not run:
                    self._waiting.popleft()
                run.encoded.check()
            self._feed_those_ready()
            while run.decoded is None:
                self._take_one()
        assert run.codes is not None and run.boxes is not None
        if self._on_gpu:
            return Pixels(from_dlpack(run.decoded.as_tensor()), run.codes, run.boxes)
        return Pixels(self._resized(run), run.codes, run.boxes)

    def close(self) -> None:
        """See `Engine`."""
        self._pipeline = None  # its threads and buffers go with it
        self._waiting.clear()
        self._fed.clear()
        self._close_crew()
        self._reader.close()

    def _resized(self, run: _Run) -> torch.Tensor:
        assert self._threads is not None and run.boxes is not None and run.parts is not None
        decoded, size, boxes, parts = run.decoded, run.encoded.framing.size, run.boxes.tolist(), run.parts.tolist()
        images = torch.empty((len(decoded), *size, 3), dtype=torch.uint8)
        rows = images.numpy()

        def resize(share: range) -> None:
            for row in share:
                frame_part(np.asarray(decoded[row]), Box(*parts[row]), Box(*boxes[row]), size, rows[row])

        self._threads.do(resize, (range(first, len(rows), self._threads.count) for first in range(self._threads.count)))
        return images

    def _feed_those_ready(self) -> None:
        """Hand DALI the batches that have been read, in order; it takes any number of them."""
        self._mend()
        assert self._pipeline is not None
        # A damaged sample is said in its batch's turn.
        while self._waiting and self._waiting[0].encoded.is_sound():
            run = self._waiting[0]
            encoded = run.encoded
            self._torn = True
            boxes = encoded.boxes()
            run.boxes, run.parts = boxes[:, :4], _parts(boxes)
            parts = run.parts
            if self._raw:
                images = [decode_pixels(image.data, "image") for image in encoded.images()]
                if self._kind == "crop":
                    images = [
                        np.ascontiguousarray(image[top : top + height, left : left + width])
                        for image, (top, left, height, width) in zip(images, parts.tolist(), strict=True)
                    ]
                self._pipeline.feed_input("images", images)  # copies them
            else:
                self._pipeline.feed_input("images", encoded.rows())  # which `encoded` holds until it is received
                self._pipeline.feed_input("lengths", encoded.lengths[:, None])
            if self._kind == "crop" and not self._raw:
                self._pipeline.feed_input("part starts", np.ascontiguousarray(parts[:, :2]))
                self._pipeline.feed_input("part shapes", np.ascontiguousarray(parts[:, 2:]))
            if self._on_gpu and self._kind != "squash":
                self._pipeline.feed_input("box starts", run.boxes[:, :2] - parts[:, :2])
                self._pipeline.feed_input("box shapes", np.ascontiguousarray(run.boxes[:, 2:]))
            if self._on_gpu:
                sizes = np.tile(np.asarray(encoded.framing.size, np.float32), (len(encoded.indices), 1))
                self._pipeline.feed_input("sizes", sizes)
            self._pipeline.schedule_run()
            run.codes = upload(encoded.codes(), self._device)
            self._fed.append(run)
            self._waiting.popleft()
            self._torn = False

    def _take_one(self) -> None:
        """Wait for the batch that DALI gives next."""
        assert self._pipeline is not None
        self._torn = True
        try:
            # The stream makes DALI's work visible to what torch queues next, without waiting on the host.
            stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
            (decoded,) = self._pipeline.share_outputs(stream)
            self._pipeline.release_outputs()  # the tensors keep what they use
        except RuntimeError as error:
            fault = self._culprit(error)
            self._failure, self._pipeline = fault, None  # it works ahead no more
            raise fault from error
        self._fed[0].decoded = decoded
        self._fed.popleft()
        self._torn = False

    def _mend(self) -> None:
        """Recover from an exception between feeding DALI and recording it: rebuild the pipeline and feed it again."""
        if not self._torn:
            return
        again = {id(run): run for run in (*self._fed, *self._waiting) if run.decoded is None}
        for run in again.values():
            run.codes = None
        self._waiting = deque(again.values())
        self._fed = deque()
        self._pipeline = None
        self._pipeline = self._make_pipeline()
        self._torn = False

    def _culprit(self, error: Exception) -> PetsegError:
        """The error to raise for a batch that DALI failed on, naming the first sample at fault.

        It stops at a bad sample without saying which, so those under way are decoded one by one.
        """
        for run in self._fed:
            for index in run.encoded.indices.tolist():
                try:
                    self._reader.decoded(index)
                except PetsegError as fault:
                    return fault
        return PetsegError(
            f"the decoder failed on {self._reader.folder}, though every sample of the batch decodes here: "
            f"{str(error).strip()}"
        )


def _parts(boxes: np.ndarray) -> np.ndarray:
    """i32[n, 4]: what of boxes i32[n, 6] lies in their images."""
    start = np.maximum(boxes[:, :2], 0)
    end = np.minimum(boxes[:, :2] + boxes[:, 2:4], boxes[:, 4:])
    return np.concatenate([start, end - start], axis=1)


def _pipeline(
    manifest: Manifest,
    *,
    batch_size: int,
    device_id: int | None,
    num_threads: int,
    kind: Kind,
    chroma: Chroma,
    hw_decoder_load: float,
) -> Pipeline:
    """Images, of which a crop decodes no more than it shows; on a GPU put on their canvas and resized there."""
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
        raw = manifest.encoding.raw
        hints: dict[str, Any] = (
            {
                "hw_decoder_load": hw_decoder_load,
                "preallocate_width_hint": min(manifest.max_width, LARGEST_HINT),
                "preallocate_height_hint": min(manifest.max_height, LARGEST_HINT),
            }
            if gpu
            else {}
        )

        def numbers(name: str) -> Any:
            return fn.external_source(name=name, dtype=types.INT32, ndim=1)

        if raw:
            images = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC")
            images = images.gpu() if gpu else images
        else:
            # Rows are taken as they lie, and cut to length by DALI's threads, into pinned memory for a GPU: a list of
            # images would be copied by this thread, and once more by DALI.
            images = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
            images = fn.slice(images, start=[0], shape=numbers("lengths"), axes=[0])
            decode = fn.decoders.image
            if kind == "crop":
                decode = functools.partial(
                    fn.decoders.image_slice, start=numbers("part starts"), shape=numbers("part shapes"), axes=(0, 1)
                )
            images = decode(
                images,
                device="mixed" if gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=chroma == "fancy",  # DALI's own default depends on the device
                **hints,
            )
        if gpu and kind != "squash":
            images = fn.slice(
                images,
                start=numbers("box starts"),
                shape=numbers("box shapes"),
                axes=(0, 1),
                out_of_bounds_policy="pad",
                fill_values=OUTSIDE,
            )
        if gpu:
            sizes = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=1)
            images = fn.resize(images, size=sizes, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
