"""The engine of the webdataset loader on a GPU: nvImageCodec decodes there, and torch resizes there."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

from petseg.data.decode.boxes import Box, Framing
from petseg.data.decode.image_files import DecodeError
from petseg.data.decode.nvimgcodec import BatchDecoder, Decoded
from petseg.data.loaders.cpu import upload
from petseg.data.loaders.crew import Crew, Promise, Threads
from petseg.data.loaders.encoded import Encoded, read_encoded
from petseg.data.loaders.loader import Pending, Pixels
from petseg.data.shards.reader import ShardReader


@dataclass(slots=True)
class _Decoding:
    """A batch that is read, and then decoded by the engine's thread."""

    engine: CodecEngine
    encoded: Encoded
    decoded: Promise[Decoded | None]

    def receive(self) -> Pixels:
        """See `Pending`."""
        self.encoded.check()
        decoded = self.decoded.result()
        assert decoded is not None
        if decoded.failed:
            index = int(self.encoded.indices[decoded.failed[0]])
            raise self.encoded.reader.fault(index, DecodeError("image is damaged"))
        return self.engine.pixels(decoded, self.encoded)


class CodecEngine:
    """Decodes and resizes with nvImageCodec, in a thread of its own.

    Args:
        reader: says where samples are; closed together with the engine.
        crew: reads, and makes the masks; closed together with the engine.
        device: where images are decoded and the batches go; a CPU only for tests, since others decode faster there.
        num_threads: CPU threads for what the GPU does not take.
    """

    def __init__(self, reader: ShardReader, crew: Crew, device: torch.device, num_threads: int) -> None:
        self._reader = reader
        self._crew = crew
        self._close_crew = weakref.finalize(self, crew.close)
        self._device = device
        self._decoder = BatchDecoder(device, num_threads, reader.chroma)
        self._thread = Threads(1, "petseg-nvimgcodec")

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """See `Engine`."""
        encoded = read_encoded(self._reader, self._crew, indices, framing)
        return _Decoding(self, encoded, self._thread.start(_decoded, self._decoder, encoded))

    def pixels(self, decoded: Decoded, encoded: Encoded) -> Pixels:
        """A finished batch, on the current stream."""
        return Pixels(self._decoder.take(decoded), upload(encoded.codes(), self._device), encoded.boxes()[:, :4])

    def close(self) -> None:
        """See `Engine`."""
        self._thread.close()
        self._close_crew()
        self._reader.close()


def _decoded(decoder: BatchDecoder, encoded: Encoded) -> Decoded | None:
    """None where a sample could not be read: receiving the batch raises the error."""
    if encoded.work.wait() is not None:
        return None
    boxes = None if encoded.framing.fit.kind == "squash" else [Box(*box) for box in encoded.boxes()[:, :4].tolist()]
    return decoder.decode(encoded.images(), encoded.framing.size, boxes)
