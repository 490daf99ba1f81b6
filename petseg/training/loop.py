"""The epochs of a run, one after another, until it ends or a signal stops it."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import torch

from petseg.data.loaders.loader import Loader
from petseg.errors import PetsegError
from petseg.signals import Stop
from petseg.training.budget import Budget
from petseg.training.prepare import Setup
from petseg.training.saving import Saver
from petseg.training.scoring import affordable, note_absent, scores
from petseg.training.telemetry import peak_memory_mb

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite; each look waits for the device."""

MEMORY_EVERY_S = 0.5
"""Seconds between two looks at the memory in use; each takes 56 µs on a GPU."""

AGREE_EVERY = 10
"""Steps between two agreements of several ranks on whether to stop."""


def train(setup: Setup, stop: Stop) -> bool:
    """Whether the run reached its end (and was not stopped by a signal).

    Raises:
        PetsegError: the loss or the weights are no longer finite, or a checkpoint cannot be written.
    """
    saver = Saver(setup)
    budget = Budget(setup) if setup.config.max_minutes else None
    while not _is_over(setup, budget) and not _out_of_patience(setup):
        if not _steps(setup, saver, budget, stop) or not _epoch_ends(setup, saver, budget, stop):
            return False
    if saver.owes_one:
        with setup.progress.clock.measure("other"):
            _save(setup, saver)
    return True


def _is_over(setup: Setup, budget: Budget | None) -> bool:
    return budget.is_over if budget else setup.train.state_dict()["epoch"] >= setup.config.epochs


def _steps(setup: Setup, saver: Saver, budget: Budget | None, stop: Stop) -> bool:
    """Take the steps of an epoch that are left and fit the budget; whether none was kept back by a signal."""
    epoch = setup.train.state_dict()["epoch"]
    world, step, progress = setup.world, setup.step, setup.progress
    clock = progress.clock
    epoch_on_device = torch.tensor(epoch, device=world.device)
    part = progress.begin_epoch()
    samples_before = part.samples
    if budget:
        budget.epoch_begins()
    before = len(progress.records)
    epochs = budget.epochs if budget else before + setup.config.epochs - epoch
    together = setup.config.accumulate
    setup.reporter.epoch_started(before + 1, epochs, -(-len(setup.train) // together))
    left = iter(setup.train)
    memory, read_at = 0.0, -math.inf
    while True:
        with clock.measure("data"):
            batches = list(itertools.islice(left, together))
        if not batches:
            return True
        with clock.measure("compute"):
            step(batches, epoch_on_device)
            if step.steps % CHECK_EVERY == 0:
                _check_loss(setup)
        setup.threads.look()
        part.samples += sum(len(batch.indices) for batch in batches) * world.size
        if world.is_main:
            now = time.perf_counter()
            if now - read_at > MEMORY_EVERY_S:
                memory, read_at = peak_memory_mb(world.device), now
            speed = (part.samples - samples_before) / (now - part.began)
            setup.reporter.step(speed, clock.data_wait_pct(), memory)
        if budget:
            with clock.measure("other"):
                if budget.after_step():
                    return True
        if setup.train.state_dict()["epoch"] != epoch:
            continue  # that was the last batch: the epoch is finished properly, whatever signal has come
        agreed = world.size == 1 or step.steps % AGREE_EVERY == 0
        stopped = agreed and world.any(stop.number is not None)
        if stopped or saver.is_due(agreed=agreed):
            with clock.measure("other"):
                _check_loss(setup)
                _save(setup, saver)
            if stopped:
                return False


def _epoch_ends(setup: Setup, saver: Saver, budget: Budget | None, stop: Stop) -> bool:
    """Validate, record and save an epoch; whether no signal came meanwhile."""
    epoch = len(setup.progress.records) + 1
    world, step, progress, clock = setup.world, setup.step, setup.progress, setup.progress.clock
    with clock.measure("compute"):
        loss = _check_loss(setup)
    part = progress.part
    assert part is not None, "an epoch ends that never began"
    data, compute = (clock.seconds[k] - part.clock[k] for k in ("data", "compute"))
    began = time.perf_counter()
    with clock.measure("evaluation"):
        val = _validate(setup, epoch)
    if budget:
        budget.validated(time.perf_counter() - began)
    record = {
        "epoch": epoch,
        "train_loss": loss,
        "lr": step.rate,
        "val": val,
        "samples": part.samples,
        "skipped_steps": step.skipped_steps,
        "images_per_s": part.samples / (data + compute) if part.samples else 0.0,
        "data_wait_pct": 100 * data / (data + compute) if part.samples else 0.0,
        "memory_mb": peak_memory_mb(world.device),
        "threads": torch.get_num_threads(),
        "seconds": part.seconds,
    }
    progress.end_epoch(record)
    step.start_epoch()
    # A signal that came during evaluation: the epoch is whole, so stop before the next one.
    stopped = not _is_over(setup, budget) and world.any(stop.number is not None)
    with clock.measure("other"):
        if saver.epoch_is_whole(epoch, stopped=stopped):
            _save(setup, saver)
        if budget:
            budget.saved(saver.took)
            budget.refit()
    setup.reporter.epoch_ended(record)
    return not stopped


def _validate(setup: Setup, epoch: int) -> dict[str, Any] | None:
    setup.step.share_buffers()
    if setup.val is None:
        setup.progress.judge(epoch, 0.0, ())
        return None
    network = setup.step.evaluated_network
    if isinstance(setup.val, Loader):
        setup.val.set_epoch(0)
    elif not setup.progress.val_images:
        setup.progress.val_images = affordable(setup, setup.val, network)
    found = scores(setup, setup.val, network, count=setup.progress.val_images)
    if not setup.progress.records:
        note_absent(setup, found.metrics, "val")
    if found.metrics["mean_iou"] is not None:
        setup.progress.judge(epoch, found.metrics["mean_iou"], found.image_iou.values())
    else:
        setup.progress.judge(epoch, 0.0, ())
        if not setup.progress.records:
            setup.reporter.note(
                "Every pixel of val's masks is ignored, so it has no score: the last epoch's weights count as the best."
            )
    # Of many classes it would be most of a line, and of each checkpoint.
    return {name: value for name, value in found.metrics.items() if name != "confusion"}


def _save(setup: Setup, saver: Saver) -> None:
    """Refuse weights that are no longer finite: a step with a finite loss can produce them."""
    if setup.world.any(not setup.step.weights_are_finite()):
        raise _not_finite(setup, "the weights are no longer finite")
    saver.save()


def _check_loss(setup: Setup) -> float:
    loss = setup.step.mean_loss()
    if not math.isfinite(loss):
        raise _not_finite(setup, f"the loss is no longer finite ({loss})")
    if loss == 0.0 and not setup.step.counted_pixels():
        raise PetsegError(
            f"nothing was learned in {setup.step.steps} steps: every pixel of their masks is ignored at --size "
            f"{setup.config.size}. See the masks by petseg show, and pack with a class map that names the classes."
        )
    return loss


def _epoch(setup: Setup) -> int:
    """The number of the present epoch, or of the last one between two, from 1."""
    return len(setup.progress.records) + (setup.progress.part is not None)


def _not_finite(setup: Setup, what: str) -> PetsegError:
    last = setup.run.last if setup.run.last.exists() else "none yet"
    return PetsegError(
        f"{what} in epoch {_epoch(setup)} before step {setup.step.steps}, at learning rate "
        f"{setup.step.rate:.2g}; last good checkpoint: {last}. Try a lower --lr."
    )


def _out_of_patience(setup: Setup) -> bool:
    patience = setup.config.patience
    if not setup.progress.is_out_of_patience(patience):
        return False
    setup.reporter.note(f"No better mean IoU for {setup.progress.waited()} epochs (--patience {patience}): stopped.")
    return True
