"""The verdict on a run: what limited it, and the one option to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from petseg.config import TrainConfig

LOADER_BOUND_PCT = 20.0
COMPUTE_BOUND_PCT = 5.0

LEARNED, RISING = 1.1, 1.1
"""A network that learned something is this much better than one answer everywhere, and a curve that still rises ends
this much higher than it stood at two thirds."""

FEW_STEPS = 100
"""Steps in which no network can be expected to learn anything."""

Kind = Literal["learned nothing", "learned nothing yet", "still rising", "loader-bound", "compute-bound", "balanced"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verdict on a run, for its summary."""

    kind: Kind
    why: str
    """A clause that follows the kind."""
    option: str
    """What to try next, as it is typed."""
    remark: str = ""
    """A remark on the option."""

    def sentence(self) -> str:
        """The verdict as one sentence."""
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.kind.capitalize()}: {self.why}. Try next: {self.option}{remark}."


def verdict(
    config: TrainConfig, device: torch.device, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]
) -> Verdict:
    """Judge a run that reached its end.

    Args:
        config: every `auto` settled.
        device: where it ran.
        records: its epochs'.
        scores: of the split that it was scored on, with `mean_iou` and `baseline_mean_iou`.
    """
    return _learning(config, records, scores) or _speed(config, device, *waiting_pct(records))


def _learning(config: TrainConfig, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> Verdict | None:
    """The fault of a run whose scores are not better than those of one class everywhere; None if they are."""
    reached, constant = scores["mean_iou"], scores["baseline_mean_iou"]
    if reached is None or reached > LEARNED * constant:
        return None
    why = f"a mean IoU of {reached:.3f}, where one class everywhere gets {constant:.3f}"
    curve = [record["val"]["mean_iou"] for record in records if record["val"] and record["val"]["mean_iou"] is not None]
    losses = [record["train_loss"] for record in records]
    rises = len(curve) > 2 and curve[-1] > RISING * curve[2 * len(curve) // 3 - 1]
    falls = len(losses) > 2 and losses[-1] < losses[2 * len(losses) // 3 - 1] / RISING
    steps = sum(record["samples"] for record in records) // config.batch_size
    longer = f"--max-minutes {3 * config.max_minutes:g}" if config.max_minutes else f"--epochs {3 * len(records)}"
    if rises or falls:
        return Verdict(kind="still rising", why=f"{why}, but the curve is still rising", option=longer)
    if steps < FEW_STEPS:
        return Verdict(kind="learned nothing yet", why=f"{why}, after only {steps} steps", option=longer)
    return Verdict(
        kind="learned nothing",
        why=why,
        option=f"--lr {config.lr / 3:.1g}",
        remark=f"or {config.lr * 3:.1g}; and check by petseg show that the masks match the images",
    )


def waiting_pct(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Percent of the training time that was waiting for data: (of all epochs, of those after the first).

    The first one starts processes and reads cold files. A run of one epoch has the same figure twice.
    """
    seconds = [record["samples"] / record["images_per_s"] if record["samples"] else 0.0 for record in records]
    waits = [s * record["data_wait_pct"] for s, record in zip(seconds, records, strict=True)]

    def share(first: int) -> float:
        total = sum(seconds[first:])
        return sum(waits[first:]) / total if total else 0.0

    return share(0), share(1 if len(records) > 1 else 0)


def _speed(config: TrainConfig, device: torch.device, whole: float, later: float) -> Verdict:
    waited = f"{later:.0f}% of the training time was waiting for data"
    if whole >= LOADER_BOUND_PCT > later:
        waited = f"{later:.0f}% of the training time after the first epoch was waiting for data"
    cached = config.cache != "none"
    if later >= LOADER_BOUND_PCT:
        other = "dali" if config.loader == "webdataset" and device.type == "cuda" else "webdataset"
        option = f"--loader {other}" if cached else "--cache host"
        if option == f"--loader {config.loader}":
            option = "--prefetch-batches 8"
        return Verdict(kind="loader-bound", why=waited, option=option)
    if later > COMPUTE_BOUND_PCT:
        option = "--prefetch-batches 4" if cached else "--cache host"
        return Verdict(kind="balanced", why=waited, option=option)
    waited = f"only {waited}"
    if device.type != "cuda":
        return Verdict(kind="compute-bound", why=waited, option="--device cuda", remark="this was a CPU")
    if config.amp == "off":
        return Verdict(kind="compute-bound", why=waited, option="--amp auto")
    return Verdict(kind="compute-bound", why=waited, option="--batch-size", remark="a larger one")
