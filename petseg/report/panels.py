"""The images of a run's report: a sample of the scored split, and its worst cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from petseg.data.decode.resize import nearest_indices, resize_image, resize_nearest
from petseg.data.order import keyed_hash
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.data.shards.reader import ShardReader
from petseg.inference.segment import Segmenter
from petseg.inference.trained import TrainedModel
from petseg.report.gallery import Panel
from petseg.report.report import write_report

WORST = 4
"""Worst cases in a report."""

LONGEST_SIDE = 720
"""Pixels that are kept of a whole image: twice what a report shows."""


def choose(image_iou: dict[int, float], count: int) -> tuple[list[int], list[int]]:
    """Which samples to show: `count` drawn by a hash, the same in every run, and the lowest scores, worst first."""
    indices = np.asarray(sorted(image_iou), dtype=np.int64)
    drawn = indices[np.argsort(keyed_hash(indices, 7), kind="stable")][:count]
    worst = sorted(image_iou, key=lambda index: (image_iou[index], index))[: min(WORST, count)]
    return sorted(int(i) for i in drawn), worst


def make_panels(
    trained: TrainedModel,
    shards: Place,
    manifest: Manifest,
    split: str,
    image_iou: dict[int, float],
    *,
    count: int,
    device: torch.device,
) -> tuple[list[Panel], list[Panel]]:
    """Panels of a sample of a split and of its worst cases.

    Args:
        trained: a network on `device`.
        shards: shard folder.
        manifest: its manifest.
        split: the split that was scored.
        image_iou: mean IoU of each image, by sample index.
        count: images in the sample; 0 for no panels at all.
        device: where the network runs.

    Raises:
        PetsegError: shards that cannot be read.
    """
    drawn, worst = choose(image_iou, count)
    segmenter = Segmenter(trained, device)
    reader = ShardReader(shards, manifest, split, verify=False, chroma=segmenter.chroma)  # scoring has verified it
    try:
        panels = {
            index: _panel(segmenter, reader, index, image_iou[index], whole=trained.config.scores_whole_images)
            for index in dict.fromkeys([*drawn, *worst])
        }
    finally:
        reader.close()
    return [panels[index] for index in drawn], [panels[index] for index in worst]


def _panel(segmenter: Segmenter, reader: ShardReader, index: int, iou: float, *, whole: bool) -> Panel:
    pixels, mask = reader.decoded(index)
    if whole:
        shrink = min(1.0, LONGEST_SIDE / max(mask.shape))
        height, width = (max(1, round(side * shrink)) for side in mask.shape)
        probabilities = _sampled(segmenter, pixels, height, width)
    else:
        height, width = segmenter.height, segmenter.width
        probabilities = segmenter.at_network_size(pixels)
    image, codes = resize_image(pixels, height, width), resize_nearest(mask, height, width)
    truth = segmenter.classes.lookup()[codes].astype(np.int64)
    return Panel(key=reader.key(index), image=image, truth=truth, probabilities=probabilities, iou=iou)


def _sampled(segmenter: Segmenter, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Class probabilities f32[C, height, width] at the pixels of an image that a nearest resize of its mask takes."""
    rows, columns = nearest_indices(image.shape[0], height), nearest_indices(image.shape[1], width)
    found = np.empty((len(segmenter.classes), height, width), np.float32)
    for band_rows, band in segmenter.bands(image):
        here = np.flatnonzero((rows >= band_rows.start) & (rows < band_rows.stop))
        found[:, here] = band[:, rows[here] - band_rows.start][:, :, columns]
    return found


def report_run(
    run: Path,
    trained: TrainedModel,
    shards: Place,
    manifest: Manifest,
    split: str,
    image_iou: dict[int, float],
    device: torch.device,
) -> Path:
    """Write a run's report.html, with images of the split that it was scored on; its path.

    Args:
        run: run folder, with its summary.
        trained: its network, on `device`.
        shards: shard folder.
        manifest: its manifest.
        split: that it was scored on.
        image_iou: mean IoU of each image, by sample index.
        device: where the network runs.
    """
    count = trained.config.gallery
    panels, worst = make_panels(trained, shards, manifest, split, image_iou, count=count, device=device)
    return write_report(run, panels, worst=worst, classes=trained.classes)
