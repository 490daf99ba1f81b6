"""Ordered sample indices in, uint8 batches on the device out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

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


LOADERS = ("dali", "webdataset", "random")
"""Names that `build_loader` knows; `random` is the ceiling for benchmarks: noise, with no work behind it."""


def build_loader(
    name: str,
    *,
    shards: Path,
    split: str,
    batch_size: int,
    size: tuple[int, int],
    device: torch.device | None = None,
    seed: int = 0,
    training: bool = False,
    rank: int = 0,
    world: int = 1,
    window: int | None = None,
    num_threads: int = 0,
    prefetch_batches: int = 2,
    cache: Literal["none", "host", "device"] = "none",
) -> Loader:
    """A loader over one split of a shard folder.

    Args:
        name: `dali`, `webdataset` or `random`.
        shards: folder that `petseg-shard` wrote.
        split: `train`, `val` or `test`.
        batch_size: samples of one rank's batch.
        size: (height, width) in pixels that every sample is squashed to.
        device: where the batches go, and where images are decoded if it is a GPU; None for the CPU.
        seed: seed of the order.
        training: True shuffles each epoch and drops the tail that fills no global batch; False visits every sample
            exactly once in the order of the manifest, padded by rows of index -1.
        rank: this rank, from 0.
        world: number of ranks.
        window: how many shards are in play at once when shuffling; None for all.
        num_threads: decoding threads; 0 for one a usable core.
        prefetch_batches: batches that are made ahead.
        cache: keep decoded samples in `host` memory (one copy a machine) or on the `device`.

    Raises:
        PetsegError: no such loader, folder or split; DALI is not installed; shards that are not what the manifest
            says; too few samples for one batch; a cache that does not fit.
    """
    from petseg.loaders.build import build

    return build(
        name,
        shards=shards,
        split=split,
        batch_size=batch_size,
        size=size,
        device=device or torch.device("cpu"),
        seed=seed,
        training=training,
        rank=rank,
        world=world,
        window=window,
        num_threads=num_threads,
        prefetch_batches=prefetch_batches,
        cache=cache,
    )
