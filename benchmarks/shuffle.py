"""How well a window and lanes shuffle: which samples meet again, and how evenly batches hold the classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.harness import Row
from petseg.data.order import epoch_order

SHARDS, A_SHARD, BATCH, CLASSES = 1024, 256, 64, 10
WAYS: tuple[tuple[str, int | None, int], ...] = (
    ("every shard at once", None, 1),
    *((f"--window {window}", window, 1) for window in (1, 4, 8, 16, 32, 64)),
    ("--lanes 4", None, 4),
    ("--window 16 --lanes 4", 16, 4),
)
"""(name, window, lanes)."""

CHARTS = {
    "again": f"Two samples of a batch that meet again in the next epoch ({SHARDS:,} shards of {A_SHARD})",
    "shuffled": f"Class error of a batch of {BATCH}, shards as petseg packs them",
    "sorted": f"Class error of a batch of {BATCH}, shards sorted by class",
}


def run_all(progress: Callable[[str], None], shards: int = SHARDS) -> list[Row]:
    """Every way, over made-up shards: pure arithmetic, the same on any machine.

    Args:
        progress: called with a name after each.
        shards: how many there are.
    """
    total = shards * A_SHARD
    classes = {
        "shuffled": np.random.default_rng(0).integers(0, CLASSES, total),
        "sorted": np.arange(total) * CLASSES // total,
    }
    rows = []
    for name, window, lanes in WAYS:
        first, second = (epoch_order([A_SHARD] * shards, 0, epoch, window, lanes=lanes) for epoch in range(2))
        figures = {"again": meeting_again(first, second, BATCH)}
        figures |= {key: class_error(of[first], BATCH) for key, of in classes.items()}
        rows += [
            Row(
                name=name, unit="times chance" if key == "again" else "share", samples=[value],
                facts={"chart": CHARTS[key], "kind": "part"},
            )
            for key, value in figures.items()
        ]  # fmt: skip
        progress(name)
    return rows


def meeting_again(first: np.ndarray, second: np.ndarray, batch: int) -> float:
    """How often two samples that share a batch of one epoch share one of the next, over how often chance has them.

    Args:
        first: i64[n], an epoch's order.
        second: the next one's.
        batch: samples of a batch; the tail counts as one too.
    """
    n = len(first)
    batches = [np.empty(n, np.int64) for _ in range(2)]
    for of, order in zip(batches, (first, second), strict=True):
        of[order] = np.arange(n) // batch
    together, sizes = (
        np.unique(ids, return_counts=True)[1].astype(float) for ids in (batches[0] * n + batches[1], batches[0])
    )
    pairs = float((sizes * (sizes - 1)).sum())
    return float((together * (together - 1)).sum()) / (pairs * pairs / (n * (n - 1)))


def class_error(classes: np.ndarray, batch: int) -> float:
    """Half the sum of differences between a batch's class shares and the whole's, the mean over batches; 0 to 1.

    Args:
        classes: i64[n], each sample's class, in the order of visiting.
        batch: samples of a batch; the tail is left out.
    """
    count = int(classes.max()) + 1
    whole = np.bincount(classes, minlength=count) / len(classes)
    rows = classes[: len(classes) // batch * batch].reshape(-1, batch)
    shares = (rows[:, :, None] == np.arange(count)).mean(1)
    return float(np.abs(shares - whole).sum(1).mean() / 2)
