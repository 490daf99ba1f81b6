"""Batches of JPEGs decoded on the GPU by nvImageCodec, which comes with DALI and works without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.boxes import Box, whole
from petseg.data.decode.images import Chroma
from petseg.data.decode.netpbm import IMAGE, decode_pixels
from petseg.data.decode.on_device import frame_on_device


class Decoded(NamedTuple):
    """Images that another CUDA stream may still be writing."""

    images: torch.Tensor
    """u8[N, H, W, 3]."""
    failed: list[int]
    """Positions that could not be decoded; their pixels are undefined."""
    ready: torch.cuda.Event | None


def available() -> bool:
    """Whether nvImageCodec is installed."""
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:
        return False


class BatchDecoder:
    """A decoder with a CUDA stream of its own, so that it overlaps with training.

    Args:
        device: a GPU; `cpu` decodes on the CPU with the same library (slower than libjpeg-turbo, but testable).
        num_threads: CPU threads for what the GPU does not take.
        chroma: how JPEGs are decoded.
    """

    def __init__(self, device: torch.device, num_threads: int, chroma: Chroma = "fancy") -> None:
        from nvidia import nvimgcodec

        self._device = device
        on_gpu = device.type == "cuda"
        index = (device.index or 0) if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        # Without the backend named, the CPU-only device still asks a driver how many GPUs there are, and fails.
        backends = {} if on_gpu else {"backends": [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]}
        self._decoder: Any = nvimgcodec.Decoder(
            device_id=index,
            max_num_cpu_threads=num_threads,
            options=f":fancy_upsampling={int(chroma == 'fancy')}",
            **backends,
        )
        self._params: Any = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        self._stream_of: Any = nvimgcodec.CodeStream
        self._buffers: list[Any] = []
        self._nothing = torch.zeros((1, 1, 3), dtype=torch.uint8, device=device)

    def decode(
        self, encoded: Sequence[np.ndarray], size: tuple[int, int], boxes: Sequence[Box] | None = None
    ) -> Decoded:
        """Decode and resize a batch, on the decoder's own stream.

        Args:
            encoded: u8[bytes] of each image: JPEGs, or whole PPMs, which are only uploaded and resized.
            size: (height, width) in pixels.
            boxes: what is shown of each; None for all of it.
        """
        if self._stream is None:
            return Decoded(*self._decode(encoded, size, boxes, 0), None)
        with torch.cuda.stream(self._stream):
            images, failed = self._decode(encoded, size, boxes, self._stream.cuda_stream)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        return Decoded(images, failed, ready)

    def take(self, decoded: Decoded) -> torch.Tensor:
        """The images, after making the current stream wait for them."""
        if decoded.ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(decoded.ready)
            # Its memory belongs to the decoder's stream: it must not be reused before this stream is done with it.
            decoded.images.record_stream(current)
        return decoded.images

    def _decode(
        self, encoded: Sequence[np.ndarray], size: tuple[int, int], boxes: Sequence[Box] | None, handle: int
    ) -> tuple[torch.Tensor, list[int]]:
        failed: list[int] = []
        if all(data[:2].tobytes() == IMAGE for data in encoded):
            # Each of these is waited for until it is there; the next batch is read meanwhile.
            images = [torch.from_numpy(decode_pixels(data.data, "image")).to(self._device) for data in encoded]
        else:
            decoded = self._decoded([self._stream_of(data) for data in encoded], handle)
            failed = [row for row, image in enumerate(decoded) if image is None]
            images = [self._nothing if image is None else self._tensor(image) for image in decoded]
        boxes = boxes or [whole(*image.shape[:2]) for image in images]
        return frame_on_device(images, boxes, size), failed

    def _decoded(self, streams: list[Any], handle: int) -> list[Any]:
        """The images, None for those that cannot be decoded, written where earlier ones were.

        What read those comes before on the same stream.
        """
        again = {"images": self._buffers[: len(streams)]} if len(streams) <= len(self._buffers) else {}
        decoded: list[Any] = self._decoder.decode(streams, params=self._params, cuda_stream=handle, **again)
        if None in decoded:
            self._buffers = []
        elif not again:
            self._buffers = decoded
        return decoded

    def _tensor(self, image: Any) -> torch.Tensor:
        # DLPack asks the CUDA runtime even of host memory, which a machine without a driver cannot answer.
        return torch.from_numpy(np.asarray(image)) if self._stream is None else from_dlpack(image)
