"""A training run from its configuration to its summary."""

from __future__ import annotations

import dataclasses

import torch

from petseg.config import TrainConfig
from petseg.device import World
from petseg.errors import TooLittleTimeError
from petseg.run.checkpoint import load_training_state
from petseg.run.folder import RunFolder
from petseg.signals import stop_signals
from petseg.threads import ComputeThreads
from petseg.training import auto
from petseg.training.augmentation import NOTHING, Own
from petseg.training.conclude import FitResult, conclude
from petseg.training.loop import train
from petseg.training.prepare import prepare
from petseg.training.reporter import Reporter
from petseg.training.resume import check_changes, finished_summary


def fit(
    config: TrainConfig,
    run: RunFolder,
    world: World,
    reporter: Reporter,
    *,
    resume: bool = False,
    own: Own = NOTHING,
    began: float | None = None,
) -> FitResult:
    """Train, validate each epoch, keep the best and the last checkpoint, and score the best one on `test`.

    Args:
        config: options, `auto` ones still open (on resume: as the run's config.toml has them).
        run: an empty new folder; on resume the run's own.
        world: the ranks.
        reporter: called in rank 0.
        resume: from the run's last checkpoint.
        own: custom network, loss and augmentation, in place of the options'.
        began: when the run began, by `time.perf_counter`; default: now.

    Raises:
        PetsegError: bad input, or a loss that is no longer finite.
    """
    reporter = reporter if world.is_main else Reporter()
    auto.tune_process(world.device)
    if own.network is not None and not resume:
        config = dataclasses.replace(config, arch="own")
    if own.loss is not None and not resume:
        config = dataclasses.replace(config, loss="own")
    if world.device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(world.device)
    asked, checkpoint = config, load_training_state(run) if resume else None
    if checkpoint is not None:
        config = check_changes(config, checkpoint, run)
        if summary := finished_summary(config, checkpoint, run):
            reporter.note(
                f"{run.path} is finished ({summary['epochs']} epochs), so there is nothing to do; --epochs with a "
                "larger number resumes it."
            )
            return FitResult(run=run, summary=summary, test=None)
    with ComputeThreads(config.compute_threads, reporter.note) as threads:
        setup = prepare(
            asked,
            config,
            run,
            world,
            reporter,
            threads=threads,
            checkpoint=checkpoint,
            own=own,
            began=began,
        )
        try:
            reporter.started(run, setup.config)
            with stop_signals() as stop:
                try:
                    finished = train(setup, stop)
                except TooLittleTimeError:
                    if checkpoint is None and world.is_main:
                        run.forget()
                    raise
            if not finished:
                return FitResult(run=run, summary=None, test=None, exit_code=stop.exit_code)
            return conclude(setup)
        finally:
            setup.close()
