"""Scores of a network on a split: every sample once, on any number of ranks, at the network's size or the images'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from petseg.classes import ClassTable
from petseg.config import TrainConfig
from petseg.data.loaders.build import build_loader, resolve_loader
from petseg.data.loaders.loader import Loader
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.device import World, amp_dtype, resolve_amp
from petseg.errors import PetsegError
from petseg.inference.trained import TrainedModel
from petseg.model.losses import Objective, sums_length
from petseg.model.metrics import confusion_matrices, constant_answer_mean_iou, mean_ious, metrics_from
from petseg.model.networks import Network, evaluating
from petseg.model.transform import InputTransform
from petseg.threads import ComputeThreads


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Evaluation:
    """The result of an evaluation."""

    metrics: dict[str, Any]
    """As `metrics_from` gives them, plus `loss`, `samples`, `skipped_samples` and `baseline_mean_iou`."""
    image_iou: dict[int, float]
    """Mean IoU of each image, by sample index."""

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
    objective: Objective | None = None,
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
        objective: what `loss` is, on the device; default: cross-entropy and Dice.
        threads: that it computes on; they follow the load.
        progress: called with the number of samples after each batch.
    """
    objective = objective or Objective()
    tally = Tally(len(classes), world)
    left = loader.plan.total
    dtype = amp_dtype(amp)
    with evaluating(network):
        for batch in loader:
            masks = classes.masks(batch.codes, batch.indices)
            with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
                outputs = network(transform(batch.images))
            tally.add_loss(objective(outputs, masks))
            tally.add(batch.indices, confusion_matrices(outputs.argmax(1), masks, len(classes)))
            if progress:
                progress(min(batch.indices.shape[0], left))  # the rest of the last batch is padding
                left -= batch.indices.shape[0]
            if threads:
                threads.look()
    return tally.evaluation(classes, objective, skipped=len(loader.skipped))


class Tally:
    """Counts of an evaluation, on one rank; no host sync until the end.

    Args:
        classes: number of classes.
        world: the ranks that share the work.
    """

    def __init__(self, classes: int, world: World) -> None:
        self._world = world
        self._confusion = torch.zeros((classes, classes), dtype=torch.int64, device=world.device)
        self._sums = torch.zeros(sums_length(classes), dtype=torch.float64, device=world.device)
        self._per_image: list[tuple[torch.Tensor, torch.Tensor]] = []  # (sample indices, their scores)
        self._samples = torch.zeros(1, dtype=torch.int64, device=world.device)

    def add_loss(self, sums: torch.Tensor) -> None:
        """Count what an objective gave."""
        self._sums += sums.to(self._sums)

    def add(self, indices: torch.Tensor, confusions: torch.Tensor) -> None:
        """Count samples i64[N] (-1 for padding) by their confusion matrices i64[N, C, C]."""
        self._samples += (indices >= 0).sum().to(self._samples)
        self._confusion += confusions.sum(0).to(self._confusion)
        self._per_image.append((indices, mean_ious(confusions)))

    def evaluation(self, classes: ClassTable, objective: Objective, *, skipped: int) -> Evaluation:
        """The counts of all ranks; each must call it."""
        world = self._world
        for total in (self._confusion, self._sums, self._samples):
            world.sum(total)
        confusion = self._confusion.cpu().numpy()
        metrics = {
            "loss": objective.value(self._sums).item() if self._sums[1] else None,
            **metrics_from(confusion, classes),
            "samples": int(self._samples),
            "skipped_samples": skipped,
            "baseline_mean_iou": constant_answer_mean_iou(confusion),
        }
        return Evaluation(metrics=metrics, image_iou=_image_ious(self._per_image, world))


def score(
    trained: TrainedModel,
    shards: Place,
    manifest: Manifest,
    split: str,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a network at its own size, in its run's precision and memory format, by its run's loader.

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
        chroma=config.chroma,
    )
    try:
        with following(config, device) as threads:
            return evaluate(
                trained.network,
                loader,
                manifest.classes,
                trained.transform,
                World(rank=0, size=1, device=device),
                amp=amp,
                objective=trained.objective(),
                threads=threads,
                progress=progress,
            )
    finally:
        loader.close()


def following(config: TrainConfig, device: torch.device) -> ComputeThreads:
    """The threads that a network computes on while nothing but scoring runs."""
    threads = ComputeThreads(config.compute_threads)
    if device.type == "cpu":
        threads.follow()
    return threads


def check_classes(trained: TrainedModel, shards: Place, manifest: Manifest) -> None:
    """Whether shards hold the classes that a network predicts.

    Raises:
        PetsegError: they do not.
    """
    if manifest.classes.codes != trained.classes.codes:
        raise PetsegError(
            f"{shards} has the class codes {list(manifest.classes.codes)}, but {trained.path} was trained on "
            f"{list(trained.classes.codes)}: give shards of the same classes."
        )


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
