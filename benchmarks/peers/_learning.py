"""What the contenders of `learn` share: their clock, and scores that can be compared.

A contender trains and writes one JSON line for each point of its curve: the seconds that it has trained for (waiting
for data included, evaluation not), those of them spent waiting, those spent evaluating, and the scores of the test
split. Everyone is scored on the same masks, of 128x128 px, whatever the size at which it works.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _serve import _ANSWERS

from petseg.classes import OXFORD
from petseg.data.loaders.build import build_loader
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.model.metrics import confusion_matrices, metrics_from
from petseg.training.telemetry import Clock

SCORED_SIDE = 128


def arguments() -> argparse.Namespace:
    """The command line of every contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="files/images, files/masks (train), shards/ (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True, help="most that it may train for")
    parser.add_argument("--epochs", type=int, default=10**6)
    parser.add_argument("--width", type=int, default=0, help="of petseg's network; 0 for the default")
    parser.add_argument("--until", type=float, default=1.0, help="mean IoU that is enough")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


def test_scores(shards: Path, size: int, probabilities: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """Scores on the test split.

    Args:
        shards: shard folder.
        size: height and width in pixels of what the network takes.
        probabilities: from images u8[N, size, size, 3] to what ranks like probabilities, f[N, C, size, size].
    """
    manifest = Manifest.load(shards)
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    small, large = (_batches(shards, manifest, side) for side in (size, SCORED_SIDE))
    for (images, _), (_, masks) in zip(small, large, strict=True):
        found = probabilities(images)
        if size != SCORED_SIDE:
            found = F.interpolate(found.float(), size=(SCORED_SIDE, SCORED_SIDE), mode="bilinear", align_corners=False)
        confusion += confusion_matrices(found.argmax(1), masks, 3).sum(0)
    metrics = metrics_from(confusion.numpy(), OXFORD)
    return {"mean_iou": metrics["mean_iou"], "iou": metrics["iou"]}


_KEPT: dict[tuple[Path, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}


def _batches(shards: Path, manifest: Manifest, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images u8[N, size, size, 3] and masks i64[N, size, size] of the test split, decoded once."""
    if (shards, size) not in _KEPT:
        loader = build_loader(
            "webdataset", shards=shards, manifest=manifest, split="test", batch_size=32, size=(size, size), device="cpu"
        )
        # The rest of the last batch is padding, whose masks count for nothing.
        _KEPT[shards, size] = [(batch.images.clone(), OXFORD.masks(batch.codes, batch.indices)) for batch in loader]
        loader.close()
    return _KEPT[shards, size]


def image_scores(shards: Path, split: str, segment: Callable[[np.ndarray], torch.Tensor]) -> dict[str, Any]:
    """Scores on whole images.

    Args:
        shards: shard folder.
        split: which of its images.
        segment: from an image u8[H, W, 3] to classes i64[H, W].
    """
    manifest = Manifest.load(shards)
    classes = manifest.classes
    table = torch.from_numpy(classes.lookup()).long()
    reader = ShardReader(shards, manifest, split)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    for index in range(len(reader)):
        image, codes = reader.decoded(index)
        masks = table[torch.from_numpy(codes).long()]
        confusion += confusion_matrices(segment(image)[None], masks[None], len(classes))[0]
    reader.close()
    metrics = metrics_from(confusion.numpy(), classes)
    return {"mean_iou": metrics["mean_iou"], "iou": metrics["iou"]}


def point(clock: Clock, epochs: int, scores: dict[str, Any], **facts: object) -> None:
    """Write a point of the curve."""
    spent = clock.seconds
    times = {"training": spent["data"] + spent["compute"], "waiting": spent["data"], "evaluation": spent["evaluation"]}
    _ANSWERS.write(json.dumps({**times, "epochs": epochs, **scores, **facts}) + "\n")
    _ANSWERS.flush()


def train_epochs(
    args: argparse.Namespace,
    loader: Iterable[Any],
    step: Callable[[torch.Tensor, torch.Tensor], object],
    network: torch.nn.Module,
    score: Callable[[], dict[str, Any]],
    every: int = 1,
) -> None:
    """The loop of the contenders that have none of petseg's: epochs, scored after so many, and at the end."""
    clock, best = Clock(), 0.0
    for epoch in range(1, args.epochs + 1):
        network.train()
        batches = iter(loader)
        while True:
            with clock.measure("data"):
                batch = next(batches, None)
            if batch is None:
                break
            with clock.measure("compute"):
                step(*batch)
        ended = clock.seconds["data"] + clock.seconds["compute"] >= args.seconds
        if epoch % every and not ended and epoch < args.epochs:
            continue
        network.eval()
        with clock.measure("evaluation"), torch.no_grad():
            scores = score()
        point(clock, epoch, scores)
        best = max(best, scores["mean_iou"])
        if ended or best >= args.until:
            break


def scorer(args: argparse.Namespace, network: torch.nn.Module, size: int) -> Callable[[], dict[str, Any]]:
    """`test_scores` of a network that takes f[N, 3, size, size], 0 to 1."""
    return lambda: test_scores(
        args.data / "shards", size, lambda images: network(images.permute(0, 3, 1, 2).float() / 255)
    )
