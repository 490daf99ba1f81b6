"""Batches without any work behind them: the ceiling that the training step sets for every loader."""

from __future__ import annotations

import numpy as np
import torch

from petseg.data.loaders.loader import Pixels, Pull


class RandomEngine:
    """One batch of noise, made once and given again and again. The indices are real, the pixels are not.

    Args:
        pull: gives the indices of the next batch.
        batch_size: most samples in one pull.
        size: (height, width) in pixels.
        device: where the batch lies.
        codes: codes that the masks hold.
        seed: seed of the noise.
    """

    def __init__(
        self,
        pull: Pull,
        *,
        batch_size: int,
        size: tuple[int, int],
        device: torch.device,
        codes: tuple[int, ...],
        seed: int,
    ) -> None:
        self._pull = pull
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (batch_size, *size, 3), dtype=np.uint8)
        masks = rng.choice(np.asarray(codes, np.uint8), (batch_size, *size))
        self._pixels = Pixels(torch.from_numpy(images).to(device), torch.from_numpy(masks).to(device))

    def receive(self) -> Pixels | None:
        """See `Engine`; the tensors of all batches are the same ones, so they must not be written to."""
        indices = self._pull()
        if indices is None:
            return None
        return Pixels(self._pixels.images[: len(indices)], self._pixels.codes[: len(indices)])

    def close(self) -> None:
        """See `Engine`."""
