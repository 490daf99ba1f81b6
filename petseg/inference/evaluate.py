"""Scores of a network on a split: every sample once, on any number of ranks, at the network's size or the images'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.loaders.build import build_loader, resolve_loader
from petseg.data.loaders.loader import Loader
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.device import World, amp_dtype, resolve_amp
from petseg.errors import PetsegError
from petseg.inference.segment import Segmenter
from petseg.inference.trained import TrainedModel
from petseg.model.losses import combine, loss_sums, sums_length
from petseg.model.metrics import confusion_matrices, constant_answer_mean_iou, mean_ious, metrics_from
from petseg.model.networks import Network
from petseg.model.transform import InputTransform
from petseg.threads import ComputeThreads

_BAND_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, Any]
    """As `metrics_from` gives them, plus `loss`, `samples`, `skipped_samples` and `baseline_mean_iou`."""
    image_iou: dict[int, float]
    """Mean IoU of each picture, by sample index."""

    def __repr__(self) -> str:
        score = self.metrics["mean_iou"]
        return f"Evaluation(mean IoU {'n/a' if score is None else f'{score:.3f}'}, {self.metrics['samples']:,} samples)"


@torch.no_grad()
def evaluate(
    network: Network,
    loader: Loader,
    classes: ClassTable,
    transform: InputTransform,
    world: World,
    *,
    amp: str = "off",
    dice: float = 1.0,
    threads: ComputeThreads | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score `network` on what `loader` yields.

    Args:
        network: the unwrapped module, so that a rank with nothing left keeps no other waiting.
        loader: an evaluation loader; padding rows (index -1) count for nothing.
        classes: class table of the shards.
        transform: input transform, on the device.
        world: the ranks that share the work.
        amp: resolved `--amp`.
        dice: weight of the Dice loss in `loss`.
        threads: that it computes on; they follow the load.
        progress: called with the number of samples after each batch.
    """
    n = len(classes)
    was_training = network.training
    network.eval()
    confusion = torch.zeros((n, n), dtype=torch.int64, device=world.device)
    sums = torch.zeros(sums_length(n), dtype=torch.float64, device=world.device)
    per_image: list[tuple[torch.Tensor, torch.Tensor]] = []  # (sample indices, their scores)
    samples = torch.zeros(1, dtype=torch.int64, device=world.device)
    left = loader.plan.total
    for batch in loader:
        samples += (batch.indices >= 0).sum()
        masks = classes.masks(batch.codes, batch.indices)
        dtype = amp_dtype(amp)
        with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
            outputs = network(transform(batch.images))
        each = confusion_matrices(outputs.argmax(1), masks, n)
        confusion += each.sum(0)
        sums += loss_sums(outputs, masks, dice=dice > 0).double()
        per_image.append((batch.indices, mean_ious(each)))
        if progress:
            progress(min(batch.indices.shape[0], left))  # the rest of the last batch is padding
            left -= batch.indices.shape[0]
        if threads:
            threads.look()
    network.train(was_training)
    world.sum(confusion)
    world.sum(sums)
    world.sum(samples)
    total = confusion.cpu().numpy()
    ious = _image_ious(per_image, world)
    metrics = {
        "loss": combine(sums, dice=dice).item() if sums[1] else None,
        **metrics_from(total, classes),
        "samples": int(samples),
        "skipped_samples": len(loader.skipped),
        "baseline_mean_iou": constant_answer_mean_iou(total),
    }
    return Evaluation(metrics=metrics, image_iou=ious)


def score(
    trained: TrainedModel,
    shards: Path,
    manifest: Manifest,
    split: str,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a network as its run did: at its size, in its precision and memory format, by its loader.

    Args:
        trained: a network on `device`; its `config` says how it is scored.
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
    amp = resolve_amp(config.amp, device)
    loader = build_loader(
        resolve_loader(config.loader, device),
        shards=shards,
        manifest=manifest,
        split=split,
        batch_size=config.batch_size,
        size=config.height_width,
        device=device,
        rank=0,  # all of it, also under torchrun
        world=1,
        num_threads=config.num_threads,
        verify=config.verify,
        on_bad_sample=config.on_bad_sample,
    )
    try:
        with _threads(config, device) as threads:
            return evaluate(
                trained.network,
                loader,
                manifest.classes,
                trained.transform,
                World(rank=0, size=1, device=device),
                amp=amp,
                dice=config.dice,
                threads=threads,
                progress=progress,
            )
    finally:
        loader.close()


def _threads(config: TrainConfig, device: torch.device) -> ComputeThreads:
    threads = ComputeThreads(config.compute_threads)
    if device.type == "cpu":
        threads.follow()
    return threads


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


def evaluate_full_size(
    trained: TrainedModel,
    folder: Path,
    manifest: Manifest,
    split: str,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score every sample of a split against its mask as it is on disk, not squashed to the network's size.

    Each picture is decoded in full and squashed to the run's size, its probabilities are enlarged bilinearly to the
    picture's own size, and the likeliest class of each pixel is compared with the mask. Every pixel counts once, so
    larger pictures weigh more.

    Args:
        trained: a network on `device`.
        folder: shard folder.
        manifest: its manifest.
        split: name of a split.
        device: where the network runs.
        progress: called with 1 after each sample.

    Returns:
        As `metrics_from`, plus `samples`, `skipped_samples` and `baseline_mean_iou`.

    Raises:
        PetsegError: no such split, shards of other classes than the network's, or a damaged sample.
    """
    check_classes(trained, folder, manifest)
    config = trained.config
    segmenter = Segmenter(trained, device, amp=config.amp)
    n = len(manifest.classes)
    lookup = manifest.classes.lookup()
    confusion = np.zeros((n, n), dtype=np.int64)
    reader = ShardReader(folder, manifest, split, verify=config.verify, on_bad=config.on_bad_sample)
    try:
        sound = sorted({*range(len(reader))} - {*reader.bad})
        with _threads(config, device) as threads:
            for index in sound:
                picture, codes = reader.decoded(index)
                predicted, truth = segmenter.segment(picture), lookup[codes]
                for first in range(0, len(truth), _BAND_ROWS):
                    rows = slice(first, first + _BAND_ROWS)
                    p, t = (torch.from_numpy(a[rows]).long().unsqueeze(0) for a in (predicted, truth))
                    confusion += confusion_matrices(p, t, n)[0].numpy()
                threads.look()
                if progress:
                    progress(1)
        samples = len(sound)
    finally:
        reader.close()
    return {
        **metrics_from(confusion, manifest.classes),
        "samples": samples,
        "skipped_samples": len(reader.bad),
        "baseline_mean_iou": constant_answer_mean_iou(confusion),
    }


def _image_ious(per_image: list[tuple[torch.Tensor, torch.Tensor]], world: World) -> dict[int, float]:
    mine: dict[int, float] = {}
    if per_image:
        indices, scores = (torch.cat(each).tolist() for each in zip(*per_image, strict=True))
        mine = {i: s for i, s in zip(indices, scores, strict=True) if i >= 0 and not math.isnan(s)}
    if world.size == 1:
        return mine
    everyone: list[dict[int, float]] = [{}] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    return {index: score for part in everyone for index, score in part.items()}
