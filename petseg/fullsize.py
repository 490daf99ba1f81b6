"""Scoring a network at each picture's own size rather than at the network's."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petseg.errors import PetsegError
from petseg.metrics import confusion_matrices, constant_answer_mean_iou, metrics_from
from petseg.predict import Segmenter
from petseg.shards.manifest import Manifest
from petseg.training.checkpoint import TrainedModel
from petseg.training.score import check_classes

_BAND_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample of a split, still encoded."""

    key: str
    image: bytes
    mask: bytes

    def picture(self) -> np.ndarray:
        """The picture in full, u8[H, W, 3].

        Raises:
            PetsegError: it cannot be decoded.
        """
        return self._decoded(self.image, "RGB", "image")

    def codes(self) -> np.ndarray:
        """The mask's codes, u8[H, W].

        Raises:
            PetsegError: it cannot be decoded.
        """
        return self._decoded(self.mask, "L", "mask")

    def _decoded(self, data: bytes, mode: str, what: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if opened.mode != mode:
                    raise PetsegError(f"sample {self.key}: its {what} is {opened.mode}, not {mode}: run petseg verify.")
                return np.array(opened)
        except PetsegError:
            raise
        except Exception as error:  # damaged bytes lead Pillow to raise nearly anything
            raise PetsegError(f"sample {self.key}: its {what} is damaged ({error}): run petseg verify.") from error


def samples_of(folder: Path, manifest: Manifest, split: str) -> Iterator[Sample]:
    """The samples of a split in the order of their indices.

    Raises:
        PetsegError: no such split, or a shard that is missing, damaged or not what the manifest says.
    """
    for shard in manifest.split(split).shards:
        path = folder / shard.name
        count = 0
        try:
            with tarfile.open(path, "r:") as tar:
                parts: dict[str, bytes] = {}
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    file = tar.extractfile(member)
                    if file is None or extension not in {manifest.encoding.image, manifest.encoding.mask}:
                        continue
                    parts[extension] = file.read()
                    if len(parts) == 2:
                        count += 1
                        yield Sample(key=key, image=parts[manifest.encoding.image], mask=parts[manifest.encoding.mask])
                        parts = {}
        except (OSError, tarfile.TarError) as error:
            raise PetsegError(f"{path} cannot be read ({error}): run petseg verify {folder}.") from error
        if count != shard.samples:
            raise PetsegError(
                f"{path} holds {count} samples, the manifest says {shard.samples}: run petseg verify {folder}."
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
        As `metrics_from`, plus `samples` and `baseline_mean_iou`.

    Raises:
        PetsegError: no such split, shards of other classes than the network's, or a damaged sample.
    """
    check_classes(trained, folder, manifest)
    segmenter = Segmenter(trained, device)
    n = len(manifest.classes)
    lookup = manifest.classes.lookup()
    confusion = np.zeros((n, n), dtype=np.int64)
    samples = 0
    for sample in samples_of(folder, manifest, split):
        picture, codes = sample.picture(), sample.codes()
        if picture.shape[:2] != codes.shape:
            raise PetsegError(
                f"sample {sample.key}: its mask is {codes.shape[1]}x{codes.shape[0]}, its image "
                f"{picture.shape[1]}x{picture.shape[0]}: run petseg verify {folder}."
            )
        predicted, truth = segmenter.segment(picture), lookup[codes]
        for first in range(0, len(truth), _BAND_ROWS):
            rows = slice(first, first + _BAND_ROWS)
            p, t = (torch.from_numpy(a[rows]).long().unsqueeze(0) for a in (predicted, truth))
            confusion += confusion_matrices(p, t, n)[0].numpy()
        samples += 1
        if progress:
            progress(1)
    return {
        **metrics_from(confusion, manifest.classes),
        "samples": samples,
        "baseline_mean_iou": constant_answer_mean_iou(confusion),
    }
