"""The load of this machine's cores: this program and its children, or others."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from petseg.system import read_text, runnable_cores

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class Usage:
    """Work of the processors so far, in seconds of one core."""

    at: float
    """By `time.perf_counter`."""
    busy: float
    """Of the cores that this process may use, by all programs together."""
    own: float
    """Of this process and those that it started, decoders above all, whether they still run or have ended."""

    @classmethod
    def now(cls, proc: Path = Path("/proc")) -> Usage | None:
        """None where the system does not say."""
        cores = {f"cpu{number}" for number in runnable_cores()}
        rows = [line.split() for line in read_text(proc / "stat").splitlines()]
        # proc(5): user, nice, system, idle, iowait, irq, softirq; what is stolen from a virtual machine is not ours.
        ticks = [sum(map(int, row[1:4] + row[6:8])) for row in rows if row and row[0] in cores]
        tasks = [*(proc / "self/task").glob("*/children")]
        if not ticks or not tasks:
            return None
        started = {int(number) for path in tasks for number in read_text(path).split()}
        spent = os.times()
        return cls(
            at=time.perf_counter(),
            busy=sum(ticks) / _TICKS_PER_S,
            # What a child took is among the children's once it has been waited for, and until then its own.
            own=sum(spent[:4]) + sum(_seconds_of(proc / str(number)) for number in started),
        )

    def others_since(self, before: Usage) -> float:
        """Cores that other programs kept busy on average, at least 0."""
        others = self.busy - before.busy - (self.own - before.own)
        return max(0.0, others / max(1e-3, self.at - before.at))


def _seconds_of(process: Path) -> float:
    # The name, in brackets, may hold spaces.
    words = read_text(process / "stat").rpartition(")")[2].split()
    return sum(map(int, words[11:13])) / _TICKS_PER_S if len(words) > 12 else 0.0


AT_START = Usage.now()
"""When petseg was imported."""
