"""Ctrl-C and SIGTERM, taken at the next step instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class Stop:
    """Which signal has come, if any."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """The shell's exit code for that signal: 130 for SIGINT, 143 for SIGTERM or where another rank's ended it."""
        return 128 + (self.number or signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread, so that what Ctrl-C tidies up is tidied up then too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def take(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Record SIGINT and SIGTERM; a second one of the same kind acts at once, as it would have.

    Outside the main thread nothing is recorded: there Python allows no handler.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        # Python takes signals in the main thread alone: training in another one gets none.
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def take(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, take)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
