"""Which epoch of a run counts as its best."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.training.progress import Progress


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=12))
def test_the_best_epoch_is_the_latest_within_one_standard_error_of_the_highest(runs):
    progress = Progress()
    for epoch, images in enumerate(runs, 1):
        progress.judge(epoch, float(np.mean(images)), images)
    scores = [float(np.mean(images)) for images in runs]
    peak = int(np.argmax(scores))
    images = runs[peak]
    error = float(np.std(images, ddof=1)) / math.sqrt(len(images)) if len(images) > 1 else 0.0
    assert progress.peak["epoch"] == peak + 1 and progress.peak["error"] == pytest.approx(error, abs=1e-9)
    near = [k + 1 for k, score in enumerate(scores) if score >= scores[peak] - progress.peak["error"]]
    assert progress.best == max(k for k in near if k >= peak + 1)


def test_many_images_decide_where_few_cannot():
    """A step down of 0.01 is luck among 30 images, and none among 3,000."""
    generator = np.random.default_rng(0)
    best = []
    for count in (30, 3000):
        progress = Progress()
        images = generator.normal(0.7, 0.12, count)
        progress.judge(1, 0.70, images)
        progress.judge(2, 0.69, images - 0.01)
        best.append(progress.best)
    assert best == [2, 1]


def test_patience_counts_from_the_highest_score():
    progress = Progress()
    for epoch in range(1, 5):
        progress.judge(epoch, 0.5 - 0.001 * epoch, [0.3, 0.7])
        progress.records.append({"epoch": epoch})
    assert progress.best == 4 and progress.waited() == 3
    assert progress.is_out_of_patience(3) and not progress.is_out_of_patience(4)


def test_a_run_that_was_begun_under_the_first_name_scores_as_many_images():
    before = Progress(val_images=40).state_dict()
    before["val_pictures"] = before.pop("val_images")
    resumed = Progress()
    resumed.load_state_dict(before)
    assert resumed.val_images == 40
