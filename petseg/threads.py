"""Number of compute threads: one a core, and fewer while other programs keep cores busy.

The threads of a convolution's gradient meet at barriers that spin. Where there are more threads than free cores, one of
them spins its time away while the one it waits for is not running: two runs at once on two cores were nine times slower
together than one alone (benchmarks/LOG.md, "Two runs at once").
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Self

import torch

from petseg.cores import AT_START, Usage
from petseg.system import runnable_cores, usable_cores

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the load, each of which takes about 0.1 ms."""

_START_S = 1.0, 30.0
"""The load since petseg was imported counts where that was so long ago: long enough to tell, and still true."""


def threads_beside(others: float, cores: int, allowed: int) -> int:
    """Threads that fit beside other programs, never fewer than a quarter of the cores.

    Args:
        others: cores that they keep busy.
        cores: that this process may run on.
        allowed: of these, by its quota; at most `cores`.
    """
    return max(1, allowed // 4, min(allowed, round(cores - others)))


class ComputeThreads:
    """The number of torch's threads; what it was before comes back at the end of a `with` block.

    Args:
        asked: a fixed number; 0 for one a core.
        note: called once, when the number changes.
    """

    def __init__(self, asked: int = 0, note: Callable[[str], None] = lambda _: None) -> None:
        self._before = torch.get_num_threads()
        self._note = note
        # Whoever sets OMP_NUM_THREADS, torchrun too, has decided.
        self._is_fixed = asked > 0 or "OMP_NUM_THREADS" in os.environ
        self.most = asked or min(self._before, usable_cores())
        """Threads where nothing else runs."""
        self._wanted = self.most
        self._usage: Usage | None = None
        torch.set_num_threads(self.most)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)

    def follow(self) -> None:
        """From now on, have `look` follow the load.

        Not where several ranks share a machine: they would take each other for other programs.
        """
        if self.most == 1 or self._is_fixed:
            return
        self._usage = now = Usage.now()
        if now and AT_START and _START_S[0] <= now.at - AT_START.at <= _START_S[1]:
            others = now.others_since(AT_START)
            self._wanted = threads_beside(others, len(runnable_cores()), self.most)
            self._change(self._wanted, others)

    def look(self) -> None:
        """Follow the load, if it is time to look again; call it between two steps."""
        before = self._usage
        if before is None or time.perf_counter() - before.at < LOOK_EVERY_S:
            return
        self._usage = now = Usage.now()
        if now is None:
            return
        others, current = now.others_since(before), torch.get_num_threads()
        wanted = threads_beside(others, len(runnable_cores()), self.most)
        both, self._wanted = sorted((wanted, self._wanted)), wanted
        # Two looks agree, and on more than a ripple.
        number = both[1] if both[1] < current else both[0] if both[0] > current else current
        self._change(number, others)

    def _change(self, number: int, others: float) -> None:
        if abs(number - torch.get_num_threads()) < max(1, self.most // 8):
            return
        torch.set_num_threads(number)
        cores = len(runnable_cores())
        self._note(
            f"Other programs keep {others:.1f} of {cores} cores busy, so this one computes on {number} of "
            f"{self.most} threads for as long as they do; --compute-threads {self.most} keeps them all."
        )
        self._note = lambda _: None
