"""Scoring a trained network on a split, outside a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from petseg.data.loaders.build import build_loader
from petseg.data.shards.manifest import Manifest
from petseg.distributed import World
from petseg.errors import PetsegError
from petseg.training.checkpoint import TrainedModel
from petseg.training.choices import resolve_loader
from petseg.training.evaluate import Evaluation, evaluate
from petseg.training.step import InputTransform


def score(
    trained: TrainedModel,
    shards: Path,
    manifest: Manifest,
    split: str,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a network at the size and in the precision that it was trained in.

    Args:
        trained: a network on `device`.
        shards: shard folder.
        manifest: its manifest.
        split: name of a split.
        device: where the network runs.
        progress: called with the number of samples after each batch.

    Raises:
        PetsegError: shards of other classes, no such split, or shards that cannot be read.
    """
    config = trained.config
    check_classes(trained, shards, manifest)
    transform = InputTransform(
        trained.mean, trained.std, apply=config.normalise, channels_last=config.channels_last
    ).to(device)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = trained.network.to(memory_format=memory_format)
    # bf16 and fp16 of a GPU run are not for every CPU: there the weights are used in full.
    amp = config.amp if device.type == "cuda" else "off"
    loader = build_loader(
        resolve_loader("auto" if config.loader == "dali" and device.type == "cpu" else config.loader, device),
        shards=shards,
        split=split,
        batch_size=config.batch_size,
        size=config.height_width,
        device=device,
        num_threads=config.num_threads,
    )
    try:
        world = World(rank=0, local_rank=0, size=1, device=device)
        return evaluate(
            network, loader, manifest.classes, transform, world, amp=amp, dice=config.dice, progress=progress
        )
    finally:
        loader.close()


def check_classes(trained: TrainedModel, shards: Path, manifest: Manifest) -> None:
    """Whether shards hold the classes that a network predicts.

    Raises:
        PetsegError: they do not.
    """
    if manifest.classes.codes != trained.classes.codes:
        raise PetsegError(
            f"{shards} has the class codes {list(manifest.classes.codes)}, but {trained.path} was trained on "
            f"{list(trained.classes.codes)}: give shards of the same classes."
        )
