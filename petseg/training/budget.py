"""How many epochs fit into the time that a person has: measured once, before the first step that counts."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from petseg.data.loaders.loader import Batch, Loader
from petseg.model.metrics import confusion_matrices
from petseg.training.step import TrainStep

WARM, TIMED = 2, 5
"""Steps that are not timed (buffers, compilation), and steps that are."""

END_SECONDS, SAVE_SECONDS = 3.0, 0.15
"""The summary and the report; the checkpoints of an epoch, which are left out where they take longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a run takes, in seconds."""

    step: float
    """One step, its batch included."""
    evaluation: float
    """Scoring one batch."""

    def epoch(self, *, steps: int, scored: int) -> float:
        """Seconds of an epoch of `steps` steps and `scored` batches of validation."""
        return steps * self.step + scored * self.evaluation + SAVE_SECONDS

    def end(self, *, scored: int) -> float:
        """Seconds from the last epoch to the end of the run, which scores `scored` batches."""
        return END_SECONDS + scored * self.evaluation


def measure_pace(step: TrainStep, loader: Loader) -> Pace:
    """Take a few steps, time them, and undo them: the run starts from the same weights and samples as without.

    Args:
        step: before its first step. All ranks must call this together.
        loader: of training, at the start of its first epoch.
    """
    epoch = torch.tensor(0, device=step.device)
    steps: list[float] = []
    scores: list[float] = []
    batches = (batch for _ in itertools.count() for batch in loader)  # an epoch may be shorter than this
    with step.undone():
        for _ in range(WARM + TIMED):
            start = time.perf_counter()
            batch = next(batches)
            step(batch, epoch)
            step.mean_loss()  # waits for the device
            middle = time.perf_counter()
            _score(step, batch)
            steps.append(middle - start)
            scores.append(time.perf_counter() - middle)
    loader.set_epoch(0)
    return Pace(step=statistics.median(steps[WARM:]), evaluation=statistics.median(scores[WARM:]))


def _score(step: TrainStep, batch: Batch) -> None:
    """Do with a batch what evaluation does, and wait for the device."""
    masks = step.classes.masks(batch.codes, batch.indices)
    found = step.outputs(batch.images).argmax(1)
    confusion_matrices(found, masks, len(step.classes)).sum().item()
