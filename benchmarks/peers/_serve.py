"""What a peer's script shares with the harness: it loads its data, says that it is ready, and measures when told to.

Needs the standard library and NumPy alone, so that it runs in any peer's environment. Commands come as JSON lines on
standard input, answers go as JSON lines to standard output; whatever a library prints goes to standard error.

    {"check": "PATH", "batches": B}  B batches of the stream into PATH (.npz)           -> {"samples": n}
    {"skip": S, "timed": T}          S batches unclocked, then T batches by the clock   -> {"seconds": s, "samples": n}

The unclocked batches use up what was made ahead while the others were measured, so that every window begins and ends
with the same number of batches in the making.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

# Taken before a library can print anything: what goes to standard output from here on lands on standard error.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

Batch = tuple[Any, Any]
"""(images u8[N, H, W, 3], codes u8[N, H, W]) as the peer gives them: arrays or tensors."""


def arguments(*extra: tuple[str, str]) -> argparse.Namespace:
    """The command line that the harness calls every peer with, and options of this peer's own (name, default)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="cell: shards/, files/images, files/masks")
    parser.add_argument("--size", type=int, required=True, help="height and width of the batches in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes or threads, whatever the peer uses")
    parser.add_argument("--scratch", type=Path, help="folder of the peer's own, kept between runs")
    for name, default in extra:
        parser.add_argument(name, default=default)
    return parser.parse_args()


def endless(epoch: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from epoch()


def serve(
    stream: Iterator[Batch],
    *packages: str,
    as_uint8: Callable[[Batch], Batch] | None = None,
    settle: Callable[[], object] | None = None,
    facts: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Answer the harness until it closes standard input.

    Args:
        stream: batches without end.
        packages: whose versions are reported.
        as_uint8: makes a peer's batch (images u8[N, H, W, 3], codes u8[N, H, W]) for the check, where it is another.
        settle: waits until a device has done all that it was given; called before the clock is read.
        facts: what else is known of the window that ends, for its answer.
    """

    def answer(**data: Any) -> None:
        _ANSWERS.write(json.dumps(data) + "\n")
        _ANSWERS.flush()

    answer(ready=True, versions={name: _version(name) for name in packages})
    for line in sys.stdin:
        command = json.loads(line)
        if "check" in command:
            batches = [as_uint8(batch) if as_uint8 else batch for batch in _take(stream, command["batches"])]
            images, codes = (np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))
            np.savez(command["check"], images=images, codes=codes)
            answer(samples=len(images))
            continue
        for _ in _take(stream, command["skip"]):
            pass
        if settle:
            settle()
        samples, start = 0, time.perf_counter()
        for images, _ in _take(stream, command["timed"]):
            samples += len(images)
        if settle:
            settle()
        seconds = time.perf_counter() - start
        answer(seconds=seconds, samples=samples, **(facts() if facts else {}))
    os._exit(0)  # workers of other libraries are not waited for


def _take(stream: Iterator[Batch], n: int) -> Iterator[Batch]:
    return (next(stream) for _ in range(n))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
