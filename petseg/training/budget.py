"""How many epochs fit into the time that a person has: measured once, before the first step that counts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from petseg.data.loaders.loader import Batch, Loader
from petseg.model.metrics import confusion_matrices
from petseg.training.step import TrainStep

WARM, TIMED, TIMED_SHARE = 2, 5, 0.02
"""Steps that are not timed (buffers, compilation), and steps that are: so many, and this share of the whole time."""

MARGIN = 0.03
"""Share of the time that is kept back: what was measured moves by as much, and by more on a shared machine."""

END_SECONDS, SAVE_SECONDS = 2.0, 0.1
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
    # An epoch may be shorter than this.
    batches: Iterator[Batch] = (batch for _ in itertools.count() for batch in loader)

    def take() -> None:
        step(next(batches), epoch)
        step.mean_loss()  # waits for the device

    def score() -> None:
        """Do with a batch what evaluation does, and wait for the device."""
        masks = step.classes.masks(batch.codes, batch.indices)
        found = step.outputs(batch.images).argmax(1)
        confusion_matrices(found, masks, len(step.classes)).sum().item()

    with step.undone():
        _seconds(take, WARM)
        first = _seconds(take, TIMED)
        more = int(step.world.broadcast(str(max(TIMED, int(TIMED_SHARE * seconds / first)))))
        batch = next(batches)
        if cached:
            batches = itertools.repeat(batch)  # nothing is decoded beside these
        later = _seconds(take, more)
        score()
        evaluation = _seconds(score, TIMED)
    loader.set_epoch(0)
    return Pace(step=later, first_step=max(first, later), evaluation=evaluation)


def _seconds(act: Callable[[], object], times: int) -> float:
    """Mean seconds of one of several calls: what many take is their sum, the slow ones too."""
    start = time.perf_counter()
    for _ in range(times):
        act()
    return (time.perf_counter() - start) / times
