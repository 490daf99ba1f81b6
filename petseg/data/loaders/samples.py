"""Samples in petseg's order for pipelines of one's own: webdataset's, or a plain DataLoader."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data

from petseg.data.loaders.loader import LoaderPlan
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError


class OrderedSamples(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The encoded samples of a split, as webdataset's pipelines take them, in the order of petseg's loaders.

    The workers of a DataLoader divide one rank's samples among them: worker w of W has every W-th, from w on. All of
    them know the epoch that `set_epoch` names, also where they stay alive between epochs.

    Args:
        shards: folder that `petseg-shard` wrote.
        split: `train`, `val` or `test`.
        training: True shuffles each epoch and gives every rank as many samples; False goes through the manifest's
            order, each sample once over all ranks.
        seed: seed of the order.
        rank: this rank, from 0.
        world: number of ranks.
        window: how many shards are in play at once when shuffling; None for all.
        verify: check the shards' hashes first, as `build_loader` does.

    Yields:
        `__key__`; `__url__`, the tar's path; and `jpg` and `png`, the encoded bytes of image and mask.

    Raises:
        PetsegError: no such folder or split, or shards that are not what the manifest says.

    Example:
        >>> samples = OrderedSamples("shards/pets", "train")  # doctest: +SKIP
        >>> decode = wds.decode(wds.imagehandler("rgb8", ["jpg"]), wds.imagehandler("l8", ["png"]))  # doctest: +SKIP
        >>> pipeline = wds.DataPipeline(samples, decode, wds.to_tuple("jpg", "png"))  # doctest: +SKIP
        >>> for epoch in range(10):  # doctest: +SKIP
        ...     samples.set_epoch(epoch)
        ...     for image, mask in pipeline: ...
    """

    def __init__(
        self,
        shards: Path | str,
        split: str,
        *,
        training: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        window: int | None = None,
        verify: bool = True,
    ) -> None:
        shards = Path(shards).expanduser()
        self.manifest = Manifest.load(shards)
        self._folder = shards
        chosen = self.manifest.split(split)
        if not chosen.samples:
            raise PetsegError(f"{shards}: the {split} split is empty.")
        self._plan = LoaderPlan(
            digest=self.manifest.digest,
            split=split,
            sizes=tuple(chosen.sizes),
            batch_size=1,
            seed=seed,
            training=training,
            rank=rank,
            world=world,
            window=window,
        )
        self._epoch = multiprocessing.Value("q", 0)
        # Opened once here for its checks; every process that iterates opens its own files.
        ShardReader(shards, self.manifest, split, verify=verify).close()

    def set_epoch(self, epoch: int) -> None:
        """Let the next iterations be of `epoch`, in every worker."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative: {epoch}")
        self._epoch.value = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        encoding = self.manifest.encoding
        reader = ShardReader(self._folder, self.manifest, self._plan.split, verify=False)
        try:
            for index in self._indices().tolist():
                image, mask = reader.read(index)
                yield {
                    "__key__": reader.key(index),
                    "__url__": str(reader.path(index)),
                    encoding.image: bytes(image),
                    encoding.mask: bytes(mask),
                }
        finally:
            reader.close()

    def _indices(self) -> np.ndarray:
        mine = self._plan.batches(self._epoch.value).ravel()
        mine = mine[mine >= 0]
        worker = torch.utils.data.get_worker_info()
        return mine if worker is None else mine[worker.id :: worker.num_workers]
