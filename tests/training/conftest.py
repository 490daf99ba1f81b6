"""Runs that take a second: a tiny network on the packed pets."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from petseg.config import resolve
from petseg.distributed import World
from petseg.training.run_folder import RunFolder
from petseg.training.trainer import FitResult, fit

TINY = {
    "size": "32", "width": 4, "depth": 3, "stem": 1, "batch_size": 8, "epochs": 2, "device": "cpu", "amp": "off",
    "compile": "off", "loader": "webdataset", "num_threads": 2,
}  # fmt: skip


@dataclass
class Listener:
    """A reporter that remembers, and calls `on_step` with the number of each step."""

    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    on_step: Any = None

    def note(self, text):
        self.notes.append(text)

    def epoch_started(self, epoch, epochs, steps):
        pass

    def step(self, images_per_s, data_wait_pct, memory_mb):
        self.steps += 1
        if self.on_step:
            self.on_step(self.steps)

    def epoch_ended(self, record):
        self.records.append(record)


@pytest.fixture
def train(packed, tmp_path):
    """Runs `fit`; returns (result, listener)."""

    def run(name="run", *, resume=False, on_step=None, **options) -> tuple[FitResult, Listener]:
        folder = RunFolder(tmp_path / name)
        given = options if resume else {**TINY, "shards": str(packed), **options}
        config = resolve(given, folder.config if resume else None)
        world = World(rank=0, size=1, device=torch.device("cpu"))
        listener = Listener(on_step=on_step)
        return fit(config, folder, world, listener, resume=resume), listener

    return run
