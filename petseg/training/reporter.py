"""Reporters of a run: the terminal, a log, TensorBoard, or a custom function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petseg.config import TrainConfig
    from petseg.run.folder import RunFolder

logger = logging.getLogger("petseg")


class Reporter:
    """Methods that a run calls as it proceeds, on rank 0. Each does nothing here: override the ones you want.

    Examples:
        >>> class Tracker(petseg.Reporter):  # doctest: +SKIP
        ...     def started(self, run, config):
        ...         mlflow.log_params(config.to_dict())
        ...
        ...     def epoch_ended(self, record):
        ...         mlflow.log_metric("val_mean_iou", record["val"]["mean_iou"], step=record["epoch"])
        >>> petseg.train({"shards": "shards/oxford"}, callbacks=[Tracker()])  # doctest: +SKIP
    """

    def started(self, run: RunFolder, config: TrainConfig) -> None:
        """The run has its folder; every `auto` in `config` is settled."""

    def note(self, text: str) -> None:
        """A note for the user, one sentence."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch `epoch` (from 1) begins, with `steps` steps left in it; `epochs` is 0 where it is not known yet."""

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        """A step was taken."""

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """An epoch's line of metrics.jsonl."""


Callback = Reporter | Callable[[dict[str, Any]], object]
"""A reporter, or a function that is called with the record of each epoch."""


class Reporters(Reporter):
    """Several reporters, called one after another."""

    def __init__(self, each: Iterable[Callback]) -> None:
        self._each = [one if isinstance(one, Reporter) else _OnEpoch(one) for one in each]

    def started(self, run: RunFolder, config: TrainConfig) -> None:
        """See `Reporter`."""
        for one in self._each:
            one.started(run, config)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        for one in self._each:
            one.note(text)

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """See `Reporter`."""
        for one in self._each:
            one.epoch_started(epoch, epochs, steps)

    def step(self, images_per_s: float, data_wait_pct: float, memory_mb: float) -> None:
        """See `Reporter`."""
        for one in self._each:
            one.step(images_per_s, data_wait_pct, memory_mb)

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
        for one in self._each:
            one.epoch_ended(dict(record))  # whoever changes it changes nobody else's


class _OnEpoch(Reporter):
    def __init__(self, act: Callable[[dict[str, Any]], object]) -> None:
        self._act = act

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
        self._act(record)


class Log(Reporter):
    """Logs one line an epoch, and every note, to the logger `petseg`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""
        logger.info(text)

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """See `Reporter`."""
        score = record["val"]["mean_iou"] if record["val"] else None
        logger.info("epoch %d: loss %.3f, val mean IoU %s", record["epoch"], record["train_loss"], score)
