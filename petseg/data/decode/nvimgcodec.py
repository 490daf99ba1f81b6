"""Batches of JPEGs decoded on the GPU by nvImageCodec, which comes with DALI and works without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from petseg.data.decode.resize import resize_image_on_device

P = ParamSpec("P")


class OnStream(NamedTuple):
    """A tensor that another stream is still writing."""

    tensor: torch.Tensor
    ready: torch.cuda.Event | None


def available() -> bool:
    """Whether nvImageCodec is installed."""
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:
        return False


class BatchDecoder:
    """A decoder with a thread and a CUDA stream of its own, so that it overlaps with training.

    Args:
        device: a GPU; `cpu` decodes on the CPU with the same library (slower than libjpeg-turbo, but testable).
        num_threads: CPU threads for what the GPU does not take.
    """

    def __init__(self, device: torch.device, num_threads: int) -> None:
        from nvidia import nvimgcodec

        self._device = device
        on_gpu = device.type == "cuda"
        index = (device.index or 0) if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        # Without the backend named, the CPU-only device still asks a driver how many GPUs there are, and fails.
        backends = {} if on_gpu else {"backends": [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]}
        # Fancy upsampling is libjpeg's: what a network is trained on is what `predict` shows it.
        self._decoder: Any = nvimgcodec.Decoder(
            device_id=index, max_num_cpu_threads=num_threads, options=":fancy_upsampling=1", **backends
        )
        self._params: Any = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        self._stream_of: Any = nvimgcodec.CodeStream
        self._thread = ThreadPoolExecutor(1, "petseg-nvimgcodec")

    def decode(self, encoded: Sequence[memoryview], size: tuple[int, int]) -> tuple[torch.Tensor, list[int]]:
        """Decode and resize a batch, on the decoder's own stream.

        Args:
            encoded: JPEG bytes of each picture.
            size: (height, width) in pixels.

        Returns:
            (u8[N, height, width, 3] on the device; positions that could not be decoded, whose pixels are undefined).
        """
        images = torch.empty((len(encoded), *size, 3), dtype=torch.uint8, device=self._device)
        handle = self._stream.cuda_stream if self._stream is not None else 0
        streams = [self._stream_of(bytes(data)) for data in encoded]
        decoded = self._decoder.decode(streams, params=self._params, cuda_stream=handle)
        failed: list[int] = []
        for row, picture in enumerate(decoded):
            if picture is None:
                failed.append(row)
            else:
                # DLPack asks the CUDA runtime even of host memory, which a machine without a driver cannot answer.
                pixels = torch.from_numpy(np.asarray(picture)) if self._stream is None else from_dlpack(picture)
                images[row] = resize_image_on_device(pixels, *size)
        return images, failed

    def submit(self, work: Callable[P, torch.Tensor], /, *args: P.args, **kwargs: P.kwargs) -> Future[OnStream]:
        """Run `work` (which calls `decode`) on the decoder's thread and stream."""
        return self._thread.submit(self._run, lambda: work(*args, **kwargs))

    def take(self, future: Future[OnStream]) -> torch.Tensor:
        """The result of `submit`, ordered before whatever the current stream does next."""
        tensor, ready = future.result()
        if ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            # Its memory belongs to the decoder's stream: it must not be reused before this stream is done with it.
            tensor.record_stream(current)
        return tensor

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[[], torch.Tensor]) -> OnStream:
        if self._stream is None:
            return OnStream(work(), None)
        with torch.cuda.stream(self._stream):
            tensor = work()
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        return OnStream(tensor, ready)
