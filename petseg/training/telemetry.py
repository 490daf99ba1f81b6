"""Telemetry: time by phase, throughput and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

Phase = Literal["data", "compute", "evaluation", "other"]


@dataclass(kw_only=True, slots=True)
class Clock:
    """Seconds by phase. `data` is the time that the loop stood waiting for a batch.

    On a GPU the loop runs ahead of the device, so `data` is an upper bound of the time that the device was idle.
    """

    seconds: dict[Phase, float] = field(
        default_factory=lambda: {"data": 0.0, "compute": 0.0, "evaluation": 0.0, "other": 0.0}
    )

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Add the time spent inside to `phase`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def data_wait_pct(self) -> float:
        """Share of the training time (data and compute) that was waiting for data, in percent."""
        training = self.seconds["data"] + self.seconds["compute"]
        return 100 * self.seconds["data"] / training if training else 0.0


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use so far, MB: the device's on CUDA, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
