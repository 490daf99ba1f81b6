"""`--max-minutes`: how many steps still fit into the time limit, measured during the run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from petseg.errors import TooLittleTimeError
from petseg.inference.whole_images import WholeImages
from petseg.model.metrics import confusion_matrices
from petseg.training.prepare import Setup, scored_split
from petseg.training.scoring import LEAST_VAL_IMAGES, VAL_SHARE, seconds_an_image

TIMED, TIMED_SHARE = 5, 0.02
"""Steps of a measurement: so many, and for this share of the limit; a run's first step is in none."""

MARGIN = 0.02
"""Share of the limit kept in reserve: measured times vary by as much on a shared machine."""

END_SECONDS = 1.5
"""The best checkpoint is read, summary and report are written."""

REPORT_BATCHES = 2.0
"""A report's images take as long as scoring so many batches of as many images, one by one as they are."""

CHANGED = 1.5
"""Scoring is measured again when a step takes so many times longer or shorter than it did then."""

AGREE_SECONDS = 0.5
"""Several ranks agree on what rank 0 has measured about this often."""


@dataclass(kw_only=True, slots=True)
class _Pace:
    """Seconds that parts of a run take."""

    step: float = 0.0
    """One step, its batch included; 0 where it is not known yet."""
    start: float = 0.0
    """Until a loader gives its first batch, scored."""
    batch: float = 0.0
    """Scoring another batch."""
    validation: float = 0.0
    """The val split, once."""
    save: float = 0.1
    """A checkpoint."""


class Budget:
    """Keeps a run inside its limit: start, compilation, scores and report included.

    The steps that are measured count. The end of the schedule is moved so that it comes when the time is over, at every
    epoch and whenever enough steps were timed; how far the schedule is never changes by that, so a learning rate that
    fell does not rise again. An epoch may end before its last sample. Rank 0 measures and decides.

    Args:
        setup: of a run with `max_minutes`.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        config, manifest = setup.config, setup.manifest
        batch = config.batch_size * setup.world.size
        self._together = batch * config.accumulate
        self._batches = max(1, manifest.samples("train") // batch)
        self._limit = 60 * config.max_minutes
        self._per_epoch = -(-self._batches // config.accumulate)
        self._val, self._test = (
            -(-manifest.samples(split) // batch) if split else 0
            for split in ("val" if setup.val is not None else "", scored_split(manifest))
        )
        self._pace = _Pace()
        self._measured_at = 0.0
        """Seconds of a step when scoring was measured."""
        self._mark, self._timed, self._seconds = 0.0, 0, 0.0
        """When the last step ended; steps that were timed since the last measurement, and what they took."""
        self._ask_at = setup.step.steps + 1
        self._over = False

    @property
    def is_over(self) -> bool:
        """Whether the last step was taken."""
        return self._over or self._setup.step.course.share(self._setup.step.samples) >= 1

    @property
    def epochs(self) -> int:
        """Epochs, the last one perhaps in part, that the run will have; 0 where that is not known yet."""
        if not self._pace.step:
            return 0
        left = self._setup.step.course.end - self._setup.step.samples
        return len(self._setup.progress.records) + max(
            1, math.ceil((self._in_epoch() * self._together + left) / (self._per_epoch * self._together) - 1e-9)
        )

    def epoch_begins(self) -> None:
        """Time the steps from here on."""
        self._mark = time.perf_counter()

    def after_step(self) -> bool:
        """To be called on every rank after each step; whether it was the last one.

        Raises:
            TooLittleTimeError: the limit is too short for anything but the start, one step and the scores.
        """
        now = time.perf_counter()
        if self._pace.batch:  # the steps before that were warming up
            self._timed, self._seconds = self._timed + 1, self._seconds + now - self._mark
        self._mark = now
        if self._setup.step.steps >= self._ask_at:
            self._decide()
            self._mark += time.perf_counter() - now
        return self.is_over

    def validated(self, seconds: float) -> None:
        """Seconds that scoring the val split took."""
        self._pace.validation = seconds

    def saved(self, seconds: float) -> None:
        """Seconds that writing a checkpoint took."""
        self._pace.save = seconds

    def refit(self) -> None:
        """At the end of an epoch: what is left, divided anew. All ranks together."""
        if self._pace.step and not self.is_over:
            self._agree(self._fitting_steps())

    def _in_epoch(self) -> int:
        """Steps of the present epoch that were taken."""
        taken = self._batches - len(self._setup.train)
        return -(-taken // self._setup.config.accumulate) if taken > 0 else 0

    def _left(self) -> float:
        """Seconds that are left for steps and validations."""
        return self._limit * (1 - MARGIN) - self._setup.progress.seconds - self._end()

    def _end(self) -> float:
        """Seconds of everything after the last epoch."""
        pace, config = self._pace, self._setup.config
        report = REPORT_BATCHES * config.gallery / config.batch_size * pace.batch
        return pace.start + max(0, self._test - 1) * pace.batch + report + END_SECONDS

    def _epoch_end(self) -> float:
        """Seconds of a validation and a checkpoint."""
        guess = self._val * self._pace.batch
        if isinstance(self._setup.val, WholeImages) and self._pace.step:
            least = LEAST_VAL_IMAGES / self._setup.config.batch_size * self._pace.batch
            guess = min(guess, max(least, VAL_SHARE * self._per_epoch * self._pace.step))
        return (self._pace.validation or guess) + self._pace.save

    def _fitting_steps(self) -> int:
        """Steps that fit into what is left, with a validation after each epoch and one at the end."""
        left, each, end, done = self._left(), self._pace.step, self._epoch_end(), self._in_epoch()
        steps = max(0, int((left - end) / (each + end / self._per_epoch)))
        # A last epoch of a few steps is not worth its validation.
        rest = (done + steps) % self._per_epoch
        return steps - rest if rest * each < end and steps > rest and done + steps > self._per_epoch else steps

    def _measure_scoring(self) -> None:
        """Score some batches as the end will, for their time; what the network is does not change."""
        setup, began = self._setup, time.perf_counter()
        source, times = setup.source(scored_split(setup.manifest)), []
        try:
            if isinstance(source, WholeImages):
                each = seconds_an_image(setup, source, setup.step.evaluated_network)
                self._pace.start = max(0.0, time.perf_counter() - began - each)
                self._pace.batch = each * setup.config.batch_size
                self._measured_at = self._pace.step
                return
            for batch in source:
                found = setup.step.outputs(batch.images).argmax(1)
                masks = setup.classes.masks(batch.codes, batch.indices)
                confusion_matrices(found, masks, len(setup.classes)).sum().item()
                times.append(time.perf_counter())
                if len(times) > 1 and times[-1] - times[0] > TIMED_SHARE * self._limit:
                    break
        finally:
            source.close()
        self._pace.start = times[0] - began
        self._pace.batch = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else self._pace.start
        self._measured_at = self._pace.step

    def _decide(self) -> None:
        """Move the end of the schedule, or stop."""
        if not self._pace.batch:
            self._measure_scoring()
            self._refuse_too_little()
        fresh = self._timed >= TIMED and self._seconds >= TIMED_SHARE * self._limit
        known = bool(self._measured_at)
        if self._timed and (fresh or not known):  # until there are enough, few steps are better than none
            self._pace.step = self._seconds / self._timed
        if fresh:
            self._timed, self._seconds = 0, 0.0
        self._agree(self._fitting_steps() if fresh else None)
        if fresh and not known:
            self._measured_at = self._pace.step
            self._say()

    def _refuse_too_little(self) -> None:
        setup = self._setup
        needed = (setup.progress.seconds + self._epoch_end() + self._end()) / (1 - MARGIN)
        if setup.world.any(needed > self._limit and setup.world.is_main):
            raise TooLittleTimeError(
                f"--max-minutes {setup.config.max_minutes:g}: the start, one step and the scores take "
                f"{math.ceil(needed / 0.6) / 100:g} minutes here; give that or more, or a smaller --size or --width."
            )

    def _agree(self, steps: int | None) -> None:
        """Apply rank 0's finding on every rank: the number of steps left, None for no change."""
        setup, pace = self._setup, self._pace
        over = self._left() < self._epoch_end() + pace.step
        pause = max(1, int(AGREE_SECONDS / pace.step)) if pace.step and setup.world.size > 1 else 1
        changed = steps is not None and not 1 / CHANGED < pace.step / (self._measured_at or pace.step) < CHANGED
        answer = setup.world.broadcast(f"{-1 if steps is None else steps} {int(over)} {pause} {int(changed)}")
        count, stop, wait, again = map(int, answer.split())
        if again and not stop:  # the machine became slower or faster, and scoring with it
            self._measure_scoring()
            self._agree(self._fitting_steps())
            return
        if count >= 0:
            setup.step.course.end_at(setup.step.samples + count * self._together, setup.step.samples)
        if stop:
            setup.step.course.end_at(setup.step.samples, setup.step.samples)
        self._over = self._over or bool(stop)
        self._ask_at = setup.step.steps + wait

    def _say(self) -> None:
        setup = self._setup
        setup.reporter.note(
            f"--max-minutes {setup.config.max_minutes:g}: about {self.epochs} epochs of {self._per_epoch} steps, each "
            f"of which takes {1000 * self._pace.step:,.0f} ms here."
        )
