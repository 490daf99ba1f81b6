"""Segmentation metrics, all from one confusion matrix summed over the set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from petseg.classes import IGNORE_INDEX, ClassTable


def confusion_matrices(predictions: torch.Tensor, masks: torch.Tensor, classes: int) -> torch.Tensor:
    """One confusion matrix an image, on the device and without a host sync.

    Args:
        predictions: i64[N, H, W], class indices in [0, classes).
        masks: i64[N, H, W], true class indices; IGNORE_INDEX is not counted.
        classes: number of classes.

    Returns:
        i64[N, classes, classes]; element [n, t, p] counts pixels of true class t that were predicted p.
    """
    n, cells = masks.shape[0], classes * classes
    counted = masks != IGNORE_INDEX
    # The ignored go to a cell of their own: a boolean index would have to ask the device how many there are.
    cell = torch.where(counted, masks * classes + predictions, cells)
    cell = cell + torch.arange(n, device=masks.device).view(-1, 1, 1) * (cells + 1)
    counts = torch.zeros(n * (cells + 1), dtype=torch.int64, device=masks.device)
    counts.scatter_add_(0, cell.flatten(), torch.ones_like(cell).flatten())
    return counts.view(n, cells + 1)[:, :cells].view(n, classes, classes)


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union, f64[..., C] from i64[..., C, C]; NaN for a class in neither truth nor prediction."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    return _ratio(hits, union)


def mean_ious(confusion: torch.Tensor) -> torch.Tensor:
    """Mean IoU of each image, f64[N] from i64[N, C, C], as `mean_iou` computes it; on the device, no host sync."""
    counts = confusion.double()
    hits = counts.diagonal(dim1=1, dim2=2)
    union = counts.sum(2) + counts.sum(1) - hits
    known = union > 0
    return (hits / union.clamp(min=1)).sum(1) / known.sum(1)  # without a class that occurs: 0 / 0, which is NaN


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean of `iou_per_class` over the classes that occur, f64[...] from i64[..., C, C]; NaN where none does."""
    per_class = iou_per_class(confusion)
    known = ~np.isnan(per_class)
    total = np.where(known, per_class, 0.0).sum(-1)
    count = known.sum(-1)
    return _ratio(total, count)


def metrics_from(confusion: np.ndarray, classes: ClassTable) -> dict[str, Any]:
    """All metrics of a set as plain JSON data.

    Args:
        confusion: i64[C, C], [true, predicted], summed over the set.
        classes: names and foreground groups.

    Returns:
        `mean_iou`, `iou` by name, `dice` (mean) and `dice_per_class`, `pixel_accuracy`, `class_accuracy` by name
        (recall: the share of a class's pixels that were found), `precision` by name (the share of the pixels called so
        that are), `confusion` (the matrix itself), `foreground_iou` by group such as `{1,3}`; all 0 to 1,
        None for what does not occur. `absent`: names of the classes that no true pixel is of.

    Raises:
        ValueError: the matrix is not C by C.
    """
    n = len(classes)
    if confusion.shape != (n, n):
        raise ValueError(f"a confusion matrix of {n} classes is {n}x{n}, not {confusion.shape}")
    hits = np.diagonal(confusion).astype(np.float64)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    iou = iou_per_class(confusion)
    dice = _ratio(2 * hits, truth + predicted)
    foreground = {}
    for group in classes.foregrounds:
        member = np.isin(np.arange(n), [classes.codes.index(code) for code in group])
        inside = confusion[np.ix_(member, member)].sum()
        union = confusion[member].sum() + confusion[:, member].sum() - inside
        foreground["{" + ",".join(map(str, group)) + "}"] = float(inside / union) if union else None
    return {
        "mean_iou": _plain(mean_iou(confusion)),
        "iou": _named(classes, iou),
        "dice": _plain(np.nanmean(dice) if not np.isnan(dice).all() else np.nan),
        "dice_per_class": _named(classes, dice),
        "pixel_accuracy": _plain(_ratio(hits.sum(), truth.sum())),
        "class_accuracy": _named(classes, _ratio(hits, truth)),
        "precision": _named(classes, _ratio(hits, predicted)),
        "confusion": confusion.tolist(),
        "foreground_iou": foreground,
        "absent": [name for name, n in zip(classes.names, truth, strict=True) if not n],
    }


def constant_answer_mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU of predicting the commonest true class everywhere: a baseline for trained networks.

    Args:
        confusion: i64[C, C], [true, predicted]; only the true counts matter.
    """
    truth = confusion.sum(1)
    total = truth.sum()
    return float(truth.max() / total / (truth > 0).sum()) if total else 0.0


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    result = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=result, where=np.asarray(bottom) > 0)
    return result


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _named(classes: ClassTable, values: np.ndarray) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in zip(classes.names, values, strict=True)}
