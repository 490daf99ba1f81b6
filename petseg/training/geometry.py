"""How images become inputs: what `--fit auto` means for a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from petseg.classes import IGNORE_INDEX, ClassTable
from petseg.config import TrainConfig
from petseg.data.decode.boxes import Fit
from petseg.data.decode.resize import resize_nearest
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place, shards_for
from petseg.data.shards.reader import ShardReader
from petseg.model.metrics import confusion_matrices, mean_iou

LOOKED_AT, LARGE_PIXELS = 64, 2_000_000
"""Masks that are looked at; a quarter of them where the largest has more pixels."""

KEPT_IOU = 0.9
"""Crops are taken where masks that were squashed and enlarged again keep less of a mean IoU. Pets keep 0.92 at 64 px
and 0.96 at 128, CamVid's streets 0.77 and 0.86."""

LEAST_CROP = 64
"""Pixels of the input's short side: smaller crops show too little around them."""

SHAPES = 3.0
"""Images are padded where the widest are so many times as wide for their height as the highest, the outermost
twentieths left out. Pets come to 2.3."""


def fit_of(config: TrainConfig) -> Fit:
    """The settled fit of a run."""
    assert config.fit != "auto", "it is settled first"
    return Fit(kind=config.fit, scale=config.scale, max_share=config.crop_max_share)


def settle_fit(config: TrainConfig, manifest: Manifest) -> tuple[TrainConfig, str]:
    """The configuration with its fit settled, and a sentence where `auto` came to something else than `squash`.

    Raises:
        PetsegError: the shards cannot be read.
    """
    if config.fit != "auto":
        return config, ""
    shapes: list[tuple[int, int]] = []
    confusion = np.zeros((len(manifest.classes),) * 2, np.int64)
    for mask in _some_masks(shards_for(config), manifest):
        shapes.append((mask.shape[0], mask.shape[1]))
        confusion += squashed(mask, config.height_width, manifest.classes)
    kept = float(mean_iou(confusion))
    ratios = [width / height for height, width in shapes]
    low, high = np.percentile(ratios, [5, 95])
    if kept < KEPT_IOU and min(config.height_width) >= LEAST_CROP:
        return dataclasses.replace(config, fit="crop"), (
            f"--fit crop: masks that are squashed to {config.size} px keep a mean IoU of {kept:.2f} with themselves, "
            "so parts of images are trained on, and whole ones scored in windows; --fit squash squashes them."
        )
    if high / low >= SHAPES:
        return dataclasses.replace(config, fit="pad"), (
            f"--fit pad: shapes differ, from {low:.2g} to {high:.2g} times as wide as high, so images are padded; "
            "--fit squash squashes them."
        )
    return dataclasses.replace(config, fit="squash"), ""


def squashed(mask: np.ndarray, size: tuple[int, int], classes: ClassTable) -> np.ndarray:
    """i64[C, C]: a mask's pixels by their class, and by the one that they have once it was squashed and enlarged again.

    No network that sees masks squashed to that size could do better.

    Args:
        mask: u8[H, W], codes.
        size: (height, width) in pixels.
        classes: what the codes mean.
    """
    table = classes.lookup()
    truth, found = (table[codes] for codes in (mask, resize_nearest(resize_nearest(mask, *size), *mask.shape)))
    truth[found == IGNORE_INDEX] = IGNORE_INDEX
    predictions, masks = (torch.from_numpy(indices).long().unsqueeze(0) for indices in (found, truth))
    return confusion_matrices(predictions, masks, len(classes))[0].numpy()


def _some_masks(folder: Place, manifest: Manifest) -> Iterator[np.ndarray]:
    """Codes of some training samples, spread over all of them."""
    reader, train = ShardReader(folder, manifest, "train", verify=False), manifest.split("train")
    # Of a store, a pack's first two shards, which are as good as any: they are fetched for this.
    last = len(reader) if isinstance(folder, Path) else sum(train.sizes[:2])
    most = LOOKED_AT if manifest.max_height * manifest.max_width <= LARGE_PIXELS else LOOKED_AT // 4
    try:
        for index in np.unique(np.linspace(0, last - 1, most).astype(np.int64)).tolist():
            yield reader.mask(index)
    finally:
        reader.close()
