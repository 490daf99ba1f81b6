"""What may change when a run goes on, and whether it has anywhere to go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from petseg.config import TrainConfig, flag_of
from petseg.errors import PetsegError
from petseg.training.progress import Progress
from petseg.training.run_folder import RunFolder

FREE = frozenset(
    {
        "batch_size", "cache", "compile", "cuda_graphs", "device", "gallery", "loader", "max_minutes", "num_threads",
        "on_bad_sample", "patience", "prefetch_batches", "run_dir", "save_every_minutes", "save_every_steps", "shards",
        "tensorboard", "verify",
    }
)  # fmt: skip
"""Options that may differ from the run's own: how it is computed, and not what. (The shards' content is compared by
digest; a batch size changes with the number of ranks.)"""


def check_changes(config: TrainConfig, checkpoint: dict[str, Any], run: RunFolder) -> TrainConfig:
    """The configuration that a run goes on with.

    Args:
        config: the run's config.toml with the flags of this call.
        checkpoint: the run's last one.
        run: its folder, for messages.

    Raises:
        PetsegError: an option that would change what the run learns, or fewer epochs than before.
    """
    try:
        before = TrainConfig(**checkpoint["config"])
    except TypeError as error:
        raise PetsegError(f"{run.last} is damaged ({error}); start a new run.") from error
    if config.amp == "auto":
        config = dataclasses.replace(config, amp=before.amp)
    if config.optimizer == "auto":
        config = dataclasses.replace(config, optimizer=before.optimizer)
    if config.max_minutes and config.max_minutes == before.max_minutes:  # settled when the run began
        config = dataclasses.replace(config, epochs=before.epochs)
    for spec in dataclasses.fields(TrainConfig):
        old, new = getattr(before, spec.name), getattr(config, spec.name)
        flag = flag_of(spec.name)
        if spec.name == "epochs" and new < old:
            raise PetsegError(f"{flag} {new}: this run was begun with {old}, and its schedule only stretches upwards.")
        same = old == new or (
            spec.name in ("init_from", "encoder_weights") and Path(old).absolute() == Path(new).absolute()
        )
        if not same and spec.name not in FREE and spec.name != "epochs":
            raise PetsegError(
                f"{flag} {new}: {run.path} was begun with {old or 'none'}, and another value would change what it "
                "learns: leave it out, or start a new run."
            )
    return config


def finished_summary(config: TrainConfig, checkpoint: dict[str, Any], run: RunFolder) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, None if it has."""
    progress = Progress()
    progress.load_state_dict(checkpoint["progress"])
    epoch = checkpoint["loader"]["epoch"]
    if epoch < config.epochs and not progress.is_out_of_patience(config.patience):
        return None
    summary = run.summary()
    return summary if summary is not None and summary.get("epochs") == epoch else None
