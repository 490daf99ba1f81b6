"""What every section of `gpu_suite` measures with: rows, and contenders in turn."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.data import Cell, prepare, source_of
from benchmarks.harness import ROOT
from petseg.data.loaders.loader import Batch, Loader
from petseg.device import resolve_device

DEVICE = resolve_device("auto")
ON_GPU = DEVICE.type == "cuda"
SIZE = 128
BATCH = 128
SEED = {"recipe": "seed", "size": "100"}

Once = Callable[[], int]
"""Does one batch's work, which the device may still be busy with; gives its samples."""

Make = Callable[[], tuple[Once, dict[str, Any]]]
"""Makes a contender, and says what is known of it; what can be called is asked when it was measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every section is told."""

    source: str
    quick: bool
    """A few batches of everything, to see that it runs."""
    seconds: float
    repeats: int

    def cell(self, side: int) -> Cell:
        """The samples, packed at a short side."""
        return prepare(source_of(self.source, 160 if self.quick else 500), side)


def settle() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def emit(name: str, samples: list[float], *, unit: str = "images/s", chart: str, kind: str, **facts: Any) -> None:
    """One row, for the process that started this one."""
    print(
        json.dumps({"name": name, "unit": unit, "samples": samples, "facts": {"chart": chart, "kind": kind, **facts}})
    )
    sys.stdout.flush()


def fail(name: str, error: object, *, chart: str, kind: str = "petseg") -> None:
    """A row that has no figure."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    print(
        json.dumps(
            {"name": name, "unit": "images/s", "note": f"failed: {text}", "facts": {"chart": chart, "kind": kind}}
        )
    )
    sys.stdout.flush()


def compare(plan: Plan, chart: str, contenders: Iterable[tuple[str, str, Make]]) -> None:
    """Measure contenders in turn, again and again.

    Args:
        plan: seconds and repeats.
        chart: title.
        contenders: name, kind, and what makes it (with what is known of it).
    """
    made: dict[str, tuple[str, Once, dict[str, Any]]] = {}
    for name, kind, make in contenders:
        try:
            began = time.perf_counter()
            once, facts = make()
            for _ in range(2 if plan.quick else 6):
                once()
            settle()
            made[name] = kind, once, {**facts, "start_s": round(time.perf_counter() - began, 2)}
        except (Exception, SystemExit) as error:  # whatever a library raises: the others are measured all the same
            fail(name, error, chart=chart, kind=kind)
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(plan.repeats):
        for name, (_, once, _) in made.items():
            once()
            settle()
            samples, began = 0, time.perf_counter()
            while time.perf_counter() - began < plan.seconds:
                samples += once()
            settle()
            found[name].append(samples / (time.perf_counter() - began))
    for name, (kind, _, facts) in made.items():
        late = {key: value() if callable(value) else value for key, value in facts.items()}
        emit(name, found[name], chart=chart, kind=kind, **late)


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def peers(name: str) -> Any:
    """A module of `peers/`; they know each other by their bare names."""
    if str(ROOT / "peers") not in sys.path:
        sys.path.insert(0, str(ROOT / "peers"))
    return importlib.import_module(name)
