"""When a run's checkpoints are written, and what is in them."""

from __future__ import annotations

import time
from typing import Any

from petseg.data.decode.images import policy_of
from petseg.run.checkpoint import save_run
from petseg.training.prepare import Setup

SAVE_SHARE, QUICK_SAVE_SECONDS = 0.05, 0.1
"""Largest share of the time for checkpoints at the ends of epochs, some of which are left out beyond it.
A GPU can be through an epoch in less time than its 190 MB take to reach a disk."""


class Saver:
    """Writes the checkpoints of a run; every rank takes part, rank 0 writes.

    Args:
        setup: the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._saved_at = time.perf_counter()
        self.took = 0.0
        """Seconds of the last one."""
        self.owes_one = False
        """Whether an epoch was left out that is to be saved at the end."""
        self._best: dict[str, Any] | None = None

    def save(self) -> None:
        """Write the last checkpoint, and the best one where a better one is not saved yet.

        Raises:
            PetsegError: the disk is full or the folder read-only; the checkpoints before are as they were.
        """
        began = time.perf_counter()
        setup = self._setup
        sections = {
            "step": setup.step.state_dict(),
            "loader": setup.train.state_dict(),
            "progress": setup.progress.state_dict(),
        }
        if setup.world.is_main:
            setup.run.write_records(setup.progress.records)
            save_run(setup.run.path, _described(setup), sections, self._best)
        self.owes_one, self._best = False, None
        self._saved_at = time.perf_counter()
        self.took = self._saved_at - began

    def epoch_is_whole(self, epoch: int, *, stopped: bool) -> bool:
        """Whether to save at the end of epoch `epoch` (from 1).

        Not where epochs are so short that checkpoints would take a good part of the run; a best one is kept then.
        """
        is_best = self._setup.progress.best == epoch
        if is_best:
            self._best = {**_described(self._setup), "epoch": epoch}
        apart = self.took / SAVE_SHARE if self.took > QUICK_SAVE_SECONDS else 0.0
        early = time.perf_counter() - self._saved_at < apart  # on rank 0, which writes
        if stopped or not self._setup.world.any(early):
            return True
        self.owes_one = True
        if is_best and self._best is not None:
            self._best = _kept(self._best)
        return False

    def is_due(self, *, agreed: bool) -> bool:
        """Whether this step is to be saved; the same on every rank. `agreed`: all ranks ask at this step."""
        config = self._setup.config
        if config.save_every_steps and self._setup.step.steps % config.save_every_steps == 0:
            return True
        late = time.perf_counter() - self._saved_at >= 60 * config.save_every_minutes
        return bool(config.save_every_minutes) and agreed and self._setup.world.any(late)


def _described(setup: Setup) -> dict[str, Any]:
    """The state that every checkpoint holds."""
    ema = setup.step.ema
    mean, std = setup.statistics
    return {
        "config": setup.config.to_dict(),
        "classes": setup.classes.to_dict(),
        "mean": mean,
        "std": std,
        "decode_policy": policy_of(setup.config.chroma),
        "class_weights": None if (weights := setup.step.objective.weights) is None else weights.tolist(),
        "tones": setup.manifest.encoding.tones.to_dict(),
        "data_digest": setup.manifest.digest,
        "model": setup.network.state_dict(),
        "ema": ema.network.state_dict() if ema else None,
    }


def _kept(described: dict[str, Any]) -> dict[str, Any]:
    """The same with copies of its weights, which training keeps changing."""
    copies = {
        name: {key: value.clone() for key, value in described[name].items()}
        for name in ("model", "ema")
        if described[name] is not None
    }
    return {**described, **copies}
