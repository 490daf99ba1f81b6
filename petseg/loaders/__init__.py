"""Ordered sample indices in, uint8 batches on the device out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class Batch(NamedTuple):
    """One rank's batch, on the device."""

    images: torch.Tensor
    """u8[N, H, W, 3], RGB. `images.permute(0, 3, 1, 2)` is channels_last without a copy."""
    codes: torch.Tensor
    """u8[N, H, W], the codes of the mask files."""
    indices: torch.Tensor
    """i64[N], sample indices within the split; -1 marks a padding row (zeros in `images` and `codes`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a loader stands: enough to go on under another loader, batch size or number of ranks."""

    digest: str
    """The manifest's digest."""
    split: str
    seed: int
    epoch: int
    consumed: int
    """Samples of this epoch that the whole world has received (not merely prefetched)."""
    window: int | None = None
    format: int = 1


class Loader(Protocol):
    """What every loader does.

    Iterating goes on from `consumed` to the end of the epoch; the loader then stands at the start of the next one.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Batches that remain in this epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Stand at the first sample of `epoch`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A `LoaderState` as plain data, counting the batches received so far."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says.

        Raises:
            PetsegError: the state is of another data set, split or a newer format.
        """
        ...

    def close(self) -> None:
        """Give back threads, processes and memory, at once. A closed loader yields nothing more."""
        ...
