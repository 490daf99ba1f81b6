"""How far a run has come: the epochs' records, the best one, and the time that was spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from petseg.training.telemetry import Clock, Phase


@dataclass(kw_only=True, slots=True)
class Progress:
    """A section of the checkpoint; it is whatever the run would otherwise forget."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """The lines of metrics.jsonl."""
    best: dict[str, Any] = field(default_factory=lambda: {"mean_iou": -1.0, "epoch": 0})
    """Highest mean IoU on val, and the epoch (from 1) that it was reached in."""
    clock: Clock = field(default_factory=Clock)
    part: tuple[dict[Phase, float], int] | None = None
    """Of an epoch that was stopped half-way: the clock at its beginning, and the samples that were seen."""
    earlier_seconds: float = 0.0
    """Wall time of the sessions before this one."""
    began: float = field(default_factory=time.perf_counter)
    """When this session began, by `time.perf_counter`."""

    @property
    def seconds(self) -> float:
        """Wall time of all sessions together."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def waited(self) -> int:
        """Epochs since the best one."""
        return len(self.records) - int(self.best["epoch"])

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether as many epochs as `patience` passed without a better one; never where that is 0."""
        return 0 < patience <= self.waited()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "records": self.records,
            "best": self.best,
            "clock": dict(self.clock.seconds),
            "part": self.part,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; this session's time goes on counting."""
        self.records = list(state["records"])
        self.best = dict(state["best"])
        self.clock.seconds.update(state["clock"])
        self.part = state["part"]
        self.earlier_seconds = state["seconds"]
