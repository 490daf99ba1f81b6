"""Batches without any work behind them: the ceiling that the training step sets for every loader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from petseg.data.decode.boxes import Framing
from petseg.data.loaders.loader import Pending, Pixels, Size


@dataclass(slots=True)
class _Made:
    pixels: Pixels

    def receive(self) -> Pixels:
        """See `Pending`; the tensors of all batches are the same ones, so they must not be written to."""
        return self.pixels


class NoiseEngine:
    """One batch of noise, made once a size and given again and again. The indices are real, the pixels are not.

    Args:
        batch_size: most samples in one submission.
        device: where the batch lies.
        codes: codes that the masks hold.
        seed: seed of the noise.
    """

    def __init__(self, *, batch_size: int, device: torch.device, codes: tuple[int, ...], seed: int) -> None:
        self._batch_size = batch_size
        self._device = device
        self._codes = np.asarray(codes, np.uint8)
        self._seed = seed
        self._made: dict[Size, Pixels] = {}

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """See `Engine`."""
        size = framing.size
        if size not in self._made:
            rng = np.random.default_rng(self._seed)
            noise = rng.integers(0, 256, (self._batch_size, *size, 3), dtype=np.uint8)
            masks = rng.choice(self._codes, (self._batch_size, *size))
            images, codes = (torch.from_numpy(each).to(self._device) for each in (noise, masks))
            self._made[size] = Pixels(images, codes, np.tile(np.array((0, 0, *size), np.int32), (self._batch_size, 1)))
        made = self._made[size]
        return _Made(Pixels(made.images[: len(indices)], made.codes[: len(indices)], made.boxes[: len(indices)]))

    def close(self) -> None:
        """See `Engine`."""
