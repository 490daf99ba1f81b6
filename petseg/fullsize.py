"""Scoring a network at each picture's own size rather than at the network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader
from petseg.metrics import confusion_matrices, constant_answer_mean_iou, metrics_from
from petseg.predict import Segmenter
from petseg.training.checkpoint import TrainedModel
from petseg.training.score import check_classes

_BAND_ROWS = 512


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
        As `metrics_from`, plus `samples` and `baseline_mean_iou`.

    Raises:
        PetsegError: no such split, shards of other classes than the network's, or a damaged sample.
    """
    check_classes(trained, folder, manifest)
    segmenter = Segmenter(trained, device)
    n = len(manifest.classes)
    lookup = manifest.classes.lookup()
    confusion = np.zeros((n, n), dtype=np.int64)
    reader = ShardReader(folder, manifest, split)
    try:
        for index in range(len(reader)):
            picture, codes = reader.decoded(index)
            predicted, truth = segmenter.segment(picture), lookup[codes]
            for first in range(0, len(truth), _BAND_ROWS):
                rows = slice(first, first + _BAND_ROWS)
                p, t = (torch.from_numpy(a[rows]).long().unsqueeze(0) for a in (predicted, truth))
                confusion += confusion_matrices(p, t, n)[0].numpy()
            if progress:
                progress(1)
        samples = len(reader)
    finally:
        reader.close()
    return {
        **metrics_from(confusion, manifest.classes),
        "samples": samples,
        "baseline_mean_iou": constant_answer_mean_iou(confusion),
    }
