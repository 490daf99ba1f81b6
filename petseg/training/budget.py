"""How many epochs fit into the time that a person has: measured once, before the first step that counts."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from petseg.data.loaders.loader import Batch, Loader
from petseg.model.metrics import confusion_matrices
from petseg.training.step import TrainStep

WARM, TIMED, TIMED_SHARE = 2, 5, 0.02
"""Steps that are not timed (buffers, compilation), and steps that are: so many, and this share of the whole time."""

END_SECONDS, SAVE_SECONDS = 3.0, 0.15
"""The summary and the report; the checkpoints of an epoch, which are left out where they take longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a run takes, in seconds."""

    step: float
    """One step, its batch included."""
    first_step: float
    """One step of the first epoch, which decodes what a cache keeps; without a cache the same."""
    evaluation: float
    """Scoring one batch."""

    def epoch(self, *, steps: int, scored: int) -> float:
        """Seconds of an epoch of `steps` steps and `scored` batches of validation."""
        return steps * self.step + scored * self.evaluation + SAVE_SECONDS

    def once(self, *, steps: int, scored: int) -> float:
        """Seconds that are not any epoch's: what the first takes longer, and the end, which scores `scored` batches."""
        return steps * (self.first_step - self.step) + END_SECONDS + scored * self.evaluation


def measure_pace(step: TrainStep, loader: Loader, *, cached: bool, seconds: float) -> Pace:
    """Take some steps, time them, and undo them: the run starts from the same weights and samples as without.

    Args:
        step: before its first step. All ranks must call this together.
        loader: of training, at the start of its first epoch.
        cached: later epochs find all samples in memory.
        seconds: that the whole run may take.
    """
    epoch = torch.tensor(0, device=step.device)
    batches = (batch for _ in itertools.count() for batch in loader)  # an epoch may be shorter than this
    scores: list[float] = []

    def timed(source: Iterator[Batch], count: int) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            batch = next(source)
            step(batch, epoch)
            step.mean_loss()  # waits for the device
            middle = time.perf_counter()
            _score(step, batch)
            found.append(middle - start)
            scores.append(time.perf_counter() - middle)
        return found

    with step.undone():
        first = statistics.median(timed(batches, WARM + TIMED)[WARM:])
        more = max(TIMED, int(TIMED_SHARE * seconds / first))
        more = int(step.world.broadcast(str(more)))
        # Nothing is decoded beside these.
        later = statistics.median(timed(itertools.repeat(next(batches)) if cached else batches, more))
    loader.set_epoch(0)
    return Pace(step=later, first_step=max(first, later), evaluation=statistics.median(scores[WARM:]))


def _score(step: TrainStep, batch: Batch) -> None:
    """Do with a batch what evaluation does, and wait for the device."""
    masks = step.classes.masks(batch.codes, batch.indices)
    found = step.outputs(batch.images).argmax(1)
    confusion_matrices(found, masks, len(step.classes)).sum().item()
