"""Samples in petseg's order for custom pipelines: webdataset's, or a plain DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils.data

from petseg.data.decode.boxes import Fit, Framing, Kind, as_fit, frame_mask
from petseg.data.decode.masks import decode_mask
from petseg.data.loaders.loader import LoaderPlan, Size
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import RemoteShards, place_of
from petseg.data.shards.reader import ShardReader
from petseg.device import rank_and_world
from petseg.errors import PetsegError

_FORMAT = 1


class OrderedSamples(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The encoded samples of a split, as webdataset's pipelines take them, in the order of petseg's loaders.

    A sample is a dict: `__key__`; `__url__`, the tar's path; `jpg` and `png`, the encoded bytes of image and mask; and,
    with `fit`, `__box__`: (top, left, height, width) in the image's pixels.

    The workers of a DataLoader divide one rank's samples among them: worker w of W has every W-th, from w on. All of
    them follow the epoch of `set_epoch`, also if they stay alive between epochs. It may be pickled, copied and
    given to workers that are forked or spawned, and resumes inside an epoch: by itself, or by torchdata's
    StatefulDataLoader.

    Args:
        shards: folder that `petseg-shard` wrote.
        split: `train`, `val` or `test`.
        training: True shuffles each epoch and gives every rank as many samples; False goes through the manifest's
            order, each sample once over all ranks.
        seed: seed of the order.
        rank: this rank, from 0; without it and `world`, those of the process group, or else of torchrun's environment.
        world: number of ranks.
        window: how many shards are in play at once when shuffling; None for all.
        verify: check the shards' hashes first, as `build_loader` does.
        fit: also say which box of a sample `build_loader` would show with this fit.
        size: (height, width) in pixels that boxes are for, with `fit`.

    Raises:
        PetsegError: no such folder or split, or shards that are not what the manifest says.

    Examples:
        >>> samples = OrderedSamples("shards/pets", "train")  # doctest: +SKIP
        >>> decode = wds.decode(wds.imagehandler("rgb8", ["jpg"]), wds.imagehandler("l8", ["png"]))  # doctest: +SKIP
        >>> pipeline = wds.DataPipeline(samples, decode, wds.to_tuple("jpg", "png"))  # doctest: +SKIP
        >>> for epoch in range(10):  # doctest: +SKIP
        ...     samples.set_epoch(epoch)
        ...     for image, mask in pipeline: ...
    """

    def __init__(
        self,
        shards: Path | str | RemoteShards,
        split: str,
        *,
        training: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        window: int | None = None,
        verify: bool = True,
        fit: Fit | Kind | None = None,
        size: Size | None = None,
    ) -> None:
        if (fit is None) != (size is None):
            raise PetsegError("OrderedSamples: boxes are of a fit and for a size: give both, or neither.")
        self._fit, self._size = (None if fit is None else as_fit(fit)), size
        shards = place_of(shards)
        rank, world = rank_and_world(rank, world)
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
        # A tensor in shared memory and no multiprocessing.Value, which only a process that is being started may take.
        self._shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._taken = 0  # by this process, in this epoch
        self._resume_at: tuple[int, int] | None = None
        # Opened once here for its checks; every process that iterates opens its own files.
        ShardReader(shards, self.manifest, split, verify=verify).close()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iterations, from its first sample, in every worker."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative: {epoch}")
        self._resume_at = None
        self._taken = 0
        self._shared_epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position of this process: the epoch, and how many samples of its own it has yielded, as plain data.

        A StatefulDataLoader asks each of its workers. It counts for as many ranks and workers as there were.
        """
        plan = self._plan
        worker = torch.utils.data.get_worker_info()
        return {
            "format": _FORMAT,
            "digest": plan.digest,
            "split": plan.split,
            "seed": plan.seed,
            "window": plan.window,
            "training": plan.training,
            "rank": plan.rank,
            "world": plan.world,
            "workers": worker.num_workers if worker else 0,
            "epoch": int(self._shared_epoch),
            "taken": self._taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration where `state` says.

        Raises:
            PetsegError: it is of another data set, split, order, rank or number of workers, or damaged.
        """
        mine = self.state_dict()
        if not isinstance(state, dict) or state.keys() != mine.keys():
            raise PetsegError("this is not a valid state of OrderedSamples: resume from another checkpoint.")
        for name in mine.keys() - {"epoch", "taken"}:
            if state[name] != mine[name]:
                raise PetsegError(
                    f"this state of OrderedSamples is of {name} {state[name]}, not {mine[name]}: the order would "
                    "differ; resume with the same."
                )
        if state["epoch"] < 0 or state["taken"] < 0:
            raise PetsegError("this state of OrderedSamples does not fit its data set: resume from another checkpoint.")
        self._shared_epoch.fill_(state["epoch"])
        self._taken = state["taken"]
        self._resume_at = state["epoch"], state["taken"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared_epoch.share_memory_()  # a plain copy's is not yet

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._shared_epoch)
        start = self._resume_at[1] if self._resume_at is not None and self._resume_at[0] == epoch else 0
        self._resume_at, self._taken = None, start
        encoding, classes = self.manifest.encoding, self.manifest.classes
        framing = None
        if self._fit is not None and self._size is not None:
            framing = Framing(self._size, self._fit, self._plan.seed, epoch, bytes(classes.codes), classes.outside)
        reader = ShardReader(self._folder, self.manifest, self._plan.split, verify=False)
        try:
            for index in itertools.islice(self._indices(epoch), start, None):
                image, mask = reader.read(index)
                self._taken += 1
                sample = {
                    "__key__": reader.key(index),
                    "__url__": str(reader.path(index)),
                    encoding.image: bytes(image),
                    encoding.mask: bytes(mask),
                }
                if framing:
                    sample["__box__"] = frame_mask(decode_mask(mask), framing, index)[0]
                yield sample
        finally:
            reader.close()

    def _indices(self, epoch: int) -> Iterator[int]:
        """This worker's, without padding."""
        every = (index for batch in self._plan.batches(epoch) for index in batch.tolist() if index >= 0)
        worker = torch.utils.data.get_worker_info()
        return every if worker is None else itertools.islice(every, worker.id, None, worker.num_workers)
