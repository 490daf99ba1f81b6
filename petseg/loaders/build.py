"""A loader from its name and options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch

from petseg.errors import PetsegError
from petseg.loaders import LOADERS
from petseg.loaders.base import EngineFactory, LoaderPlan, OrderedLoader
from petseg.loaders.cache import CachedEngine, make_store
from petseg.loaders.dali import DaliEngine
from petseg.loaders.random import RandomEngine
from petseg.loaders.wds import WdsEngine
from petseg.shards.manifest import Manifest
from petseg.shards.reader import ShardReader
from petseg.system import usable_cores


def build(
    name: str,
    *,
    shards: Path,
    split: str,
    batch_size: int,
    size: tuple[int, int],
    device: torch.device,
    seed: int,
    training: bool,
    rank: int,
    world: int,
    window: int | None,
    num_threads: int,
    prefetch_batches: int,
    cache: Literal["none", "host", "device"],
) -> OrderedLoader:
    """See `petseg.loaders.build_loader`."""
    if name not in LOADERS:
        raise PetsegError(f"--loader: unknown loader '{name}'; choose {', '.join(LOADERS)}.")
    if batch_size < 1:
        raise PetsegError(f"--batch-size: {batch_size} is out of range; give at least 1.")
    manifest = Manifest.load(shards)
    chosen = manifest.split(split)
    needed = batch_size * world if training else 1
    if chosen.samples < needed:
        raise PetsegError(
            f"{shards}: the {split} split has {chosen.samples} samples, too few for a batch of {batch_size} on each of "
            f"{world} ranks; give a smaller --batch-size."
        )
    threads = num_threads or usable_cores()
    plan = LoaderPlan(
        digest=manifest.digest,
        split=split,
        sizes=tuple(chosen.sizes),
        batch_size=batch_size,
        seed=seed,
        training=training,
        rank=rank,
        world=world,
        window=window,
    )
    engine: EngineFactory
    if name == "random":
        engine = partial(
            RandomEngine, batch_size=batch_size, size=size, device=device, codes=manifest.classes.codes, seed=seed
        )
        return OrderedLoader(plan, size, device, engine)
    store = make_store(cache, chosen.samples, size, device, world) if cache != "none" else None
    reader = ShardReader(shards, manifest, split)
    if name == "dali":
        engine = partial(
            DaliEngine,
            reader=reader,
            manifest=manifest,
            batch_size=batch_size,
            size=size,
            device=device,
            num_threads=threads,
            prefetch_batches=prefetch_batches,
        )
    else:
        engine = partial(
            WdsEngine, reader=reader, size=size, device=device, num_threads=threads, prefetch_batches=prefetch_batches
        )
    if store is not None:
        engine = partial(CachedEngine, store=store, inner=engine)
    return OrderedLoader(plan, size, device, engine)
