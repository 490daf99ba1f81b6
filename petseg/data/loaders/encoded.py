"""Batches whose images stay encoded, for a decoder of its own: what a crew hands to DALI or to nvImageCodec."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from petseg.data.loaders.crew import Crew, Work
from petseg.data.loaders.loader import Size
from petseg.data.shards.reader import ShardReader


@dataclass(slots=True)
class Encoded:
    """A batch that is read: whole JPEGs, and finished masks."""

    indices: np.ndarray
    """i64[n]."""
    size: Size
    """Of the codes, in pixels."""
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
        return np.frombuffer(self.work.memory.data[self.starts[-1] :], np.uint8).reshape(len(self.indices), *self.size)


def read_encoded(reader: ShardReader, crew: Crew, indices: np.ndarray, size: Size) -> Encoded:
    """Start to read a batch."""
    spans = reader.spans(indices)
    starts = [0, *itertools.accumulate(span[3] for span in spans)]
    return Encoded(indices, size, starts, crew.submit(spans, size, starts, encoded=True), reader)
