"""Batches whose images stay encoded, for a decoder of its own: what a crew hands to DALI or to nvImageCodec."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from petseg.data.decode.boxes import Framing
from petseg.data.loaders.crew import Crew, Work, boxes_in
from petseg.data.shards.reader import ShardReader

ALIGNED = 64
"""Rows begin at multiples of this, the bytes of a processor's cache line."""

MOST_ROOM = 4
"""Rows take so many times their images' bytes at most: with one image far larger than all others there are none."""


@dataclass(slots=True)
class Encoded:
    """A batch that is read: whole JPEGs, and finished masks."""

    indices: np.ndarray
    """i64[n]."""
    framing: Framing
    starts: list[int]
    """Where each image begins in the memory, and where the codes do."""
    lengths: np.ndarray
    """i32[n], bytes of each image."""
    stride: int
    """Bytes between the beginnings of two images; 0 where these follow each other."""
    work: Work
    reader: ShardReader

    def is_sound(self) -> bool:
        """Whether it is read, and nothing was wrong with it; does not wait."""
        return self.work.is_done() and self.work.wait() is None

    def check(self) -> None:
        """Wait until it is read.

        Raises:
            PetsegError: a sample cannot be read, or is damaged.
        """
        self.reader.check(self.work.wait())

    def images(self) -> list[np.ndarray]:
        """u8[bytes] of each image, valid while one of them is held."""
        # Parts that keep the whole alive: NumPy's own would hold on to the file alone, whose place is used again.
        view = self.work.memory.data
        return [
            np.frombuffer(view[first : first + length], np.uint8)
            for first, length in zip(self.starts, self.lengths.tolist(), strict=False)
        ]

    def rows(self) -> np.ndarray | list[np.ndarray]:
        """u8[n, stride], an image at the beginning of each row and anything behind it; `images` where there are none.

        Valid while it is held.
        """
        if not self.stride:
            return self.images()
        view = self.work.memory.data[: self.starts[-1]]
        return np.frombuffer(view, np.uint8).reshape(len(self.indices), self.stride)

    def codes(self) -> np.ndarray:
        """u8[n, H, W], valid while it is held."""
        shape = len(self.indices), *self.framing.size
        view = self.work.memory.data[self.starts[-1] : self.starts[-1] + math.prod(shape)]
        return np.frombuffer(view, np.uint8).reshape(shape)

    def boxes(self) -> np.ndarray:
        """i32[n, 6]: top, left, height and width of each box, in its image's pixels, and the image's size."""
        return boxes_in(self.work.memory, len(self.indices))


def read_encoded(reader: ShardReader, crew: Crew, indices: np.ndarray, framing: Framing) -> Encoded:
    """Start to read a batch."""
    spans = reader.spans(indices)
    lengths = np.array([span[3] for span in spans], np.int32)
    stride = max(1, -(-int(lengths.max()) // ALIGNED)) * ALIGNED
    if stride * len(lengths) > MOST_ROOM * int(lengths.sum()):
        stride, starts = 0, [0, *itertools.accumulate(lengths.tolist())]
    else:
        starts = list(range(0, stride * len(lengths) + 1, stride))
    work = crew.submit(spans, framing, starts, encoded=True)
    return Encoded(indices, framing, starts, lengths, stride, work, reader)
