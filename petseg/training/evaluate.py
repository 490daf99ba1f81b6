"""Scoring a network on a split: every sample exactly once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from petseg.classes import ClassTable
from petseg.data.loaders.loader import Loader
from petseg.distributed import World
from petseg.losses import combine, cross_entropy_sum, dice_sums
from petseg.metrics import confusion_matrices, constant_answer_mean_iou, mean_iou, metrics_from
from petseg.model import Network
from petseg.training.choices import amp_dtype
from petseg.training.step import InputTransform


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, Any]
    """As `metrics_from` gives them, plus `loss`, `samples` and `baseline_mean_iou`."""
    image_iou: dict[int, float]
    """Mean IoU of each picture, by sample index."""


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
        progress: called with the number of samples after each batch.
    """
    n = len(classes)
    was_training = network.training
    network.eval()
    confusion = torch.zeros((n, n), dtype=torch.int64, device=world.device)
    sums = torch.zeros(2 + 2 * n, dtype=torch.float64, device=world.device)
    per_image: list[tuple[torch.Tensor, torch.Tensor]] = []
    samples = torch.zeros(1, dtype=torch.int64, device=world.device)
    for batch in loader:
        samples += (batch.indices >= 0).sum()
        masks = classes.masks(batch.codes, batch.indices)
        dtype = amp_dtype(amp)
        with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
            outputs = network(transform(batch.images))
        each = confusion_matrices(outputs.argmax(1), masks, n)
        confusion += each.sum(0)
        ce_sum, pixels = cross_entropy_sum(outputs, masks)
        overlap, size = dice_sums(outputs, masks)
        sums += torch.cat([ce_sum.view(1), pixels.view(1), overlap, size]).double()
        per_image.append((batch.indices, each))
        if progress:
            progress(batch.indices.shape[0])
    network.train(was_training)
    world.sum(confusion)
    world.sum(sums)
    world.sum(samples)
    total = confusion.cpu().numpy()
    ious = _image_ious(per_image, world)
    loss = combine(sums[0], sums[1], sums[2 : 2 + n], sums[2 + n :], dice=dice)
    metrics = {
        "loss": float(loss),
        **metrics_from(total, classes),
        "samples": int(samples),
        "baseline_mean_iou": constant_answer_mean_iou(total),
    }
    return Evaluation(metrics=metrics, image_iou=ious)


def _image_ious(per_image: list[tuple[torch.Tensor, torch.Tensor]], world: World) -> dict[int, float]:
    mine: dict[int, float] = {}
    if per_image:
        indices = torch.cat([i for i, _ in per_image]).cpu().numpy()
        scores = mean_iou(torch.cat([c for _, c in per_image]).cpu().numpy())
        mine = {int(i): float(s) for i, s in zip(indices, scores, strict=True) if i >= 0 and not np.isnan(s)}
    if world.size == 1:
        return mine
    everyone: list[dict[int, float]] = [{}] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    return {index: score for part in everyone for index, score in part.items()}
