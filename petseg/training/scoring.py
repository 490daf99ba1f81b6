"""Scoring a run's network on a split, or on as much of it as each epoch's time allows."""

from __future__ import annotations

import copy
import time
from typing import Any

from petseg.data.loaders.loader import Loader
from petseg.inference.evaluate import Evaluation, Tally, evaluate
from petseg.inference.whole_images import WholeImages, evaluate_whole_images, score_whole_image
from petseg.model.losses import Objective
from petseg.model.networks import Network, evaluating
from petseg.training.prepare import Setup

VAL_SHARE, LEAST_VAL_IMAGES, TRIED_IMAGES = 0.1, 16, 5
"""Scoring whole images after an epoch takes this share of the epoch's time at most, but never fewer images; so many
are tried first."""


def scores(setup: Setup, source: Loader | WholeImages, network: Network, *, count: int = 0) -> Evaluation:
    """The scores of a network on a split, computed as the run does; of `count` whole images, 0 for all."""
    config, threads = setup.config, setup.threads
    if isinstance(source, WholeImages):
        with evaluating(network):
            return evaluate_whole_images(
                setup.segmenter(network),
                source,
                setup.classes,
                setup.world,
                objective=on_cpu(setup),
                count=count,
                threads=threads,
            )
    return evaluate(
        network,
        source,
        setup.classes,
        setup.transform,
        setup.world,
        amp=config.amp,
        objective=setup.step.objective,
        threads=threads,
    )


def on_cpu(setup: Setup) -> Objective:
    """The run's objective for whole images, whose probabilities are on the CPU."""
    return copy.deepcopy(setup.step.objective).cpu()


def note_absent(setup: Setup, metrics: dict[str, Any], split: str) -> None:
    """Note the classes that have no pixel in a split."""
    if (absent := metrics["absent"]) and metrics["mean_iou"] is not None:
        setup.reporter.note(
            f"{', '.join(absent)}: no pixel of the {split} split is of it, so it has no score on {split}."
        )


def affordable(setup: Setup, images: WholeImages, network: Network) -> int:
    """How many whole images to score after each epoch: all, or as many as take a tenth of the time, said once."""
    part, every = setup.progress.part, len(images.indices)
    assert part is not None, "an epoch has begun"
    share = VAL_SHARE * part.seconds
    each = seconds_an_image(setup, images, network) / setup.world.size
    count = int(setup.world.broadcast(str(max(LEAST_VAL_IMAGES, int(share / max(each, 1e-9))))))
    if count >= every:
        return every
    setup.reporter.note(
        f"val: {count} of {every} images are scored after each epoch, always the same ones; all of them would take "
        f"{each * every:.0f} s."
    )
    return count


def seconds_an_image(setup: Setup, images: WholeImages, network: Network) -> float:
    """Seconds that one rank takes to score a whole image; some are tried, and nothing is counted."""
    tally, segmenter, began = Tally(len(setup.classes), setup.world), setup.segmenter(network), time.perf_counter()
    objective, times = on_cpu(setup), []
    with evaluating(network):
        for sample in images.decoded(images.some(TRIED_IMAGES * setup.world.size)):
            score_whole_image(segmenter, sample, setup.classes, tally, objective)
            times.append(time.perf_counter())
    if len(times) < 2:
        return time.perf_counter() - began
    return (times[-1] - times[0]) / (len(times) - 1)  # the first warms up
