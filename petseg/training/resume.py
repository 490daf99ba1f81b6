"""Resuming a run: from where, which options may change, and whether anything is left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from petseg.config import TrainConfig, layered, read_toml, resolve
from petseg.errors import OptionError, PetsegError, flag_of
from petseg.run.folder import RUNS, RunFolder, newest_run_folder
from petseg.training.progress import Progress
from petseg.training.recipe import Course

Resume = bool | Literal["auto"]
"""Whether to resume; `auto`: if the folder has a checkpoint, else start a new run there."""

FREE = frozenset(
    {
        "batch_size", "cache", "compile", "compute_threads", "cuda_graphs", "device", "gallery", "loader",
        "max_minutes", "num_threads", "offline", "on_bad_sample", "patience", "prefetch_batches", "remote_patience",
        "run_dir", "save_every_minutes", "save_every_steps", "shard_cache", "shard_cache_limit", "shards",
        "tensorboard", "verify",
    }
)  # fmt: skip
"""Options that may change on a resume: they change how it is computed, not what. (The shards' content is compared by
digest; a batch size changes with the number of ranks.)"""


def settle(
    asked: TrainConfig | Mapping[str, Any], resume: Resume = False, file: Path | None = None
) -> tuple[TrainConfig, RunFolder | None]:
    """The settings of a call: a configuration, and the resumed run, or None for a new one.

    Args:
        asked: options by name, None for those not given; or a whole configuration, which is taken as it is.
        resume: see `Resume`. A resumed run has its own config.toml; options in `asked` override it.
        file: TOML file of options, which those in `asked` override.

    Raises:
        PetsegError: nothing to resume, or a bad option.
    """
    whole = asked if isinstance(asked, TrainConfig) else None
    given = {} if isinstance(asked, TrainConfig) else {name: v for name, v in asked.items() if v is not None}
    folder = whole.run_dir if whole else given.get("run_dir")
    if resume == "auto":
        written = read_toml(file) if file else {}
        folder = folder or written.get("run_dir")
        if not folder:
            raise PetsegError("--auto-resume: give the --run-dir that it is to look into.")
        resume = RunFolder(Path(folder)).can_resume
        if resume and file:  # by the same command that began it
            given, file = layered(written, given), None
    if not resume:
        return whole or resolve(given, file), None
    if file is not None:
        raise PetsegError("--config: a resumed run has its own config.toml; leave --config out.")
    run = RunFolder(Path(folder)) if folder else newest_run_folder(RUNS)
    if not run.can_resume:
        raise PetsegError(
            f"--resume: nothing to resume: {run.path} has no {run.last.name} with its {run.config.name}; give the "
            "--run-dir of a run that saved one."
        )
    return whole or resolve({**given, "run_dir": None}, run.config, resumed=True), run


def check_changes(config: TrainConfig, checkpoint: dict[str, Any], run: RunFolder) -> TrainConfig:
    """The configuration of a resumed run.

    Args:
        config: the run's config.toml with the options of this call.
        checkpoint: the run's last one.
        run: its folder, for messages.

    Raises:
        PetsegError: an option that would change what the run learns, or fewer epochs than before.
    """
    try:
        before = TrainConfig.recorded(checkpoint["config"])
    except TypeError as error:
        raise PetsegError(f"{run.last} is damaged ({error}); start a new run.") from error
    open_ = {"amp": "auto", "optimizer": "auto", "fit": "auto", "window": -1, "lanes": 0}
    kept = {name: getattr(before, name) for name, value in open_.items() if getattr(config, name) == value}
    config = dataclasses.replace(config, **kept)
    # Under a time limit the epochs are what they came to.
    begun_with = checkpoint["loader"]["epoch"] if before.max_minutes else before.epochs
    for spec in dataclasses.fields(TrainConfig):
        old, new = getattr(before, spec.name), getattr(config, spec.name)
        if spec.name == "epochs" and new < begun_with and not config.max_minutes:
            raise OptionError(
                "epochs",
                f"{new} is too few: this run was begun with --epochs {begun_with}, which can only be raised.",
            )
        same = old == new or (
            spec.name in ("init_from", "encoder_weights") and Path(old).absolute() == Path(new).absolute()
        )
        if not same and spec.name not in FREE and spec.name != "epochs":
            raise PetsegError(
                f"{flag_of(spec.name)} {new}: {run.path} was begun with {old or 'none'}, and another value would "
                "change what it learns: leave it out, or start a new run."
            )
    return config


def finished_summary(config: TrainConfig, checkpoint: dict[str, Any], run: RunFolder) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, None if it has."""
    progress = Progress()
    progress.load_state_dict(checkpoint["progress"])
    before, step = TrainConfig.recorded(checkpoint["config"]), checkpoint["step"]
    if config.max_minutes:
        over = (
            "course" in step
            and Course(*step["course"]).share(step["samples"]) >= 1
            and config.max_minutes <= before.max_minutes
        )
    else:
        over = checkpoint["loader"]["epoch"] >= config.epochs
    if not over and not progress.is_out_of_patience(config.patience):
        return None
    try:
        summary = run.summary()
    except PetsegError:
        return None  # not there, or damaged: it is written again
    return summary if summary.get("epochs") == len(progress.records) else None
