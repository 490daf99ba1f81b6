"""Writing a run's checkpoints, and what a run needs of them to go on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from petseg.errors import PetsegError
from petseg.inference.trained import BEST, FORMAT, LAST, STAGED, is_committed, load_checkpoint, sealed
from petseg.system import replace_durably, write_atomic
from petseg.training.run_folder import RunFolder, cannot_write


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write tensors and plain data under `path`, whole or not at all.

    Raises:
        PetsegError: the disk is full or the folder read-only.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **data}, buffer)
    try:
        write_atomic(path, sealed(buffer.getvalue()))
    except OSError as error:
        raise cannot_write(path, error) from error


def save_run(run: Path, described: dict[str, Any], sections: dict[str, Any], best: dict[str, Any] | None) -> None:
    """Save a run: its last checkpoint and, where there is a better one than before, the best.

    The best one is staged first; the renaming of the last one commits both. Killed at any moment, the two belong
    together (`settle_best`).

    Args:
        run: run folder.
        described: weights, configuration, classes.
        sections: what a run needs beside that to go on, one for each part with a state.
        best: as `described`, of the best epoch so far, and its `epoch` (from 1); None where it is saved already.

    Raises:
        PetsegError: the disk is full or the folder read-only; the checkpoints before are as they were.
    """
    if best is not None:
        save_checkpoint(run / STAGED, best)
    save_checkpoint(run / LAST, {**described, **sections})
    if best is not None:
        try:
            replace_durably(run / STAGED, run / BEST)
        except OSError as error:
            raise cannot_write(run / BEST, error) from error


def settle_best(run: Path) -> None:
    """Finish what a killed `save_run` began: a staged best checkpoint gets its name, or goes."""
    staged = run / STAGED
    if not staged.is_file():
        return
    try:
        if is_committed(run):
            replace_durably(staged, run / BEST)
        else:
            staged.unlink()
    except OSError as error:
        raise cannot_write(run / BEST, error) from error


def load_training_state(run: RunFolder) -> dict[str, Any]:
    """The last checkpoint of a run, with the sections `step`, `loader` and `progress`.

    Raises:
        PetsegError: damaged, or a checkpoint without a training state, such as a copy of the best one.
    """
    path = run.last
    data = load_checkpoint(path)
    try:
        return {**data, **{name: data[name] for name in ("model", "step", "loader", "progress")}}
    except (KeyError, TypeError) as error:
        raise PetsegError(
            f"{path} has no training state ({error} is missing), so the run cannot go on from it: {BEST} holds weights "
            "alone; start a new run with --init-from."
        ) from error
