"""Batches whose images stay encoded, for a decoder of its own: what a crew hands to DALI or to nvImageCodec."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from petseg.data.decode.boxes import Framing
from petseg.data.loaders.crew import Crew, Work, boxes_in
from petseg.data.shards.reader import ShardReader


@dataclass(slots=True)
class Encoded:
    """A batch that is read: whole JPEGs, and finished masks."""

    indices: np.ndarray
    """i64[n]."""
    framing: Framing
    starts: list[int]
    """Where each image begins in the memory, and where the codes do."""
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
        return [np.frombuffer(view[first:end], np.uint8) for first, end in itertools.pairwise(self.starts)]

    def codes(self) -> np.ndarray:
        """u8[n, H, W], valid while it is held."""
        shape = len(self.indices), *self.framing.size
        view = self.work.memory.data[self.starts[-1] : self.starts[-1] + math.prod(shape)]
        return np.frombuffer(view, np.uint8).reshape(shape)

    def boxes(self) -> np.ndarray:
        """i32[n, 6]: top, left, height and width of each box, in its picture's pixels, and the picture's size."""
        return boxes_in(self.work.memory, len(self.indices))


def read_encoded(reader: ShardReader, crew: Crew, indices: np.ndarray, framing: Framing) -> Encoded:
    """Start to read a batch."""
    spans = reader.spans(indices)
    starts = [0, *itertools.accumulate(span[3] for span in spans)]
    return Encoded(indices, framing, starts, crew.submit(spans, framing, starts, encoded=True), reader)
