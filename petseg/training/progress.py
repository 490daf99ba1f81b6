"""Progress of a run: the epochs' records, the best epoch, and the time spent."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from petseg.training.telemetry import Clock, Phase


@dataclass(kw_only=True, slots=True)
class Part:
    """An epoch that is not whole yet."""

    clock: dict[Phase, float]
    """The run's clock at its beginning."""
    samples: int = 0
    """Seen by all ranks."""
    earlier_seconds: float = 0.0
    """Of the sessions before this one."""
    began: float = field(default_factory=time.perf_counter)
    """When it began, or was taken up in this session."""

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return self.earlier_seconds + time.perf_counter() - self.began


@dataclass(kw_only=True, slots=True)
class Progress:
    """Progress of a run; a section of its checkpoints."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    peak: dict[str, Any] = field(default_factory=lambda: {"mean_iou": -1.0, "error": 0.0, "epoch": 0})
    """Highest mean IoU on val, its standard error, and the epoch (from 1) that it was reached in."""
    best: int = 0
    """The epoch (from 1) whose weights count as the best."""
    clock: Clock = field(default_factory=Clock)
    val_images: int = 0
    """Whole images that are scored after each epoch; 0 where that is not known yet, or val is squashed."""
    part: Part | None = None
    """The current epoch, None between two."""
    earlier_seconds: float = 0.0
    """Wall time of the sessions before this one."""
    began: float = field(default_factory=time.perf_counter)
    """When this session began, by `time.perf_counter`."""

    @property
    def seconds(self) -> float:
        """Wall time of all sessions together."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def begin_epoch(self) -> Part:
        """Begin an epoch, or take up the one that was stopped half-way."""
        if self.part is None:
            self.part = Part(clock=dict(self.clock.seconds))
        else:
            self.part.earlier_seconds = sum(self.clock.seconds.values()) - sum(self.part.clock.values())
            self.part.began = time.perf_counter()
        return self.part

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Keep an epoch's record."""
        self.records.append(record)
        self.part = None

    def judge(self, epoch: int, score: float, image_scores: Collection[float]) -> None:
        """Settle whether an epoch is the best so far: the latest within one standard error of the highest score is.

        The highest of many noisy scores is as much luck as merit, and a learning rate that falls to zero makes later
        weights better than a small val split can tell. The rule is that of Breiman et al. (Classification and
        Regression Trees, 1984, 3.4.3), with the later epoch in the place of the simpler model.

        Args:
            epoch: from 1.
            score: its mean IoU on val; always the same where there is no val, so that the latest epoch is the best.
            image_scores: mean IoU of each image, from whose spread the error follows.
        """
        if score > self.peak["mean_iou"] or not len(image_scores):
            error = statistics.stdev(image_scores) / math.sqrt(len(image_scores)) if len(image_scores) > 1 else 0.0
            self.peak = {"mean_iou": score, "error": error, "epoch": epoch}
        if score >= self.peak["mean_iou"] - self.peak["error"]:
            self.best = epoch

    def waited(self) -> int:
        """Epochs since the highest score."""
        return len(self.records) - int(self.peak["epoch"])

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether as many epochs as `patience` passed without a better one; never where that is 0."""
        return 0 < patience <= self.waited()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "records": self.records,
            "peak": self.peak,
            "best": {"epoch": self.best},
            "val_images": self.val_images,
            "clock": dict(self.clock.seconds),
            "part": (self.part.clock, self.part.samples) if self.part else None,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; this session's time keeps counting."""
        self.records = list(state["records"])
        self.best = state["best"]["epoch"]
        self.peak = dict(state["peak"])
        self.val_images = state.get("val_images", state.get("val_pictures", 0))  # its first name
        self.clock.seconds.update(state["clock"])
        if state["part"] is not None:
            clock, samples = state["part"]
            self.part = Part(clock=clock, samples=samples)
        self.earlier_seconds = state["seconds"]
