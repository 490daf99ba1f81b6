"""Whole decoded images, kept in memory that workers share: crops are cut from them in every epoch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from petseg.system import memory_barrier

_SIZE_BYTES = 8
"""Of an image's height and width, i32, at the start of its slot. The height is written last, and is 0 until then."""


class Kept(NamedTuple):
    """Where they are: one slot for each sample, as large as the largest image needs. Empty pages take no memory."""

    at: int
    """The first slot's first byte."""
    slot: int
    """Bytes of a slot."""
    samples: int

    @property
    def ends(self) -> int:
        """Where the last slot ends."""
        return self.at + self.slot * self.samples

    def find(self, memory: np.ndarray, sample: int) -> tuple[np.ndarray, np.ndarray] | None:
        """A sample's image u8[H, W, 3] and codes u8[H, W], if they are there; not to be written to.

        Args:
            memory: u8[`ends` or more].
            sample: its index in its split.
        """
        slot = self._slot(memory, sample)
        height, width = slot[:_SIZE_BYTES].view(np.int32).tolist()
        if not height:
            return None
        memory_barrier()  # nor are the pixels read before the mark
        pixels, start = height * width, _SIZE_BYTES
        codes = slot[start : start + pixels].reshape(height, width)
        return slot[start + pixels : start + 4 * pixels].reshape(height, width, 3), codes

    def put(self, memory: np.ndarray, sample: int, image: np.ndarray, codes: np.ndarray) -> None:
        """Keep a sample. Several workers may keep the same one at once: they write the same bytes."""
        (height, width), slot, start = codes.shape, self._slot(memory, sample), _SIZE_BYTES
        pixels = height * width
        if image.shape[:2] != codes.shape or start + 4 * pixels > len(slot):
            return  # not what the manifest says: it is decoded anew each time, as without a cache
        slot[start : start + pixels] = codes.reshape(-1)
        slot[start + pixels : start + 4 * pixels] = image.reshape(-1)
        size = slot[:_SIZE_BYTES].view(np.int32)
        size[1] = width
        memory_barrier()  # no worker sees the mark before the pixels
        size[0] = height

    def _slot(self, memory: np.ndarray, sample: int) -> np.ndarray:
        first = self.at + sample * self.slot
        return memory[first : first + self.slot]


def slot_bytes(height: int, width: int) -> int:
    """Bytes of a slot for images of up to so many pixels a side: four a pixel and their size, in whole words."""
    return _SIZE_BYTES + -(-4 * height * width // 8) * 8
