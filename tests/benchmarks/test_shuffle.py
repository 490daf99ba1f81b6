"""How well orders shuffle: figures of known orders, and what windows and lanes come to."""

import numpy as np
import pytest

from benchmarks import shuffle


def test_figures_of_known_orders():
    order = np.arange(4096)
    assert shuffle.meeting_again(order, order, 64) == pytest.approx(4095 / 63, rel=0.01)
    rng = np.random.default_rng(0)
    assert shuffle.meeting_again(rng.permutation(2**16), rng.permutation(2**16), 64) == pytest.approx(1, abs=0.15)
    assert shuffle.class_error(np.repeat([0, 1], 64), 64) == 0.5
    assert shuffle.class_error(np.tile([0, 1], 64), 64) == 0


def test_a_wider_window_shuffles_better_and_lanes_cost_little():
    rows = shuffle.run_all(lambda name: None, shards=64)
    again = {row.name: row.samples[0] for row in rows if row.facts["chart"] == shuffle.CHARTS["again"]}
    assert again["--window 1"] > 3 * again["--window 4"] > 4 * again["--window 16"]
    assert again["every shard at once"] == pytest.approx(1, abs=0.2)
    error = {row.name: row.samples[0] for row in rows if row.facts["chart"] == shuffle.CHARTS["shuffled"]}
    assert max(error.values()) < 1.1 * min(error.values()), "packed in a shuffled order, any window will do"
    by_class = {row.name: row.samples[0] for row in rows if row.facts["chart"] == shuffle.CHARTS["sorted"]}
    assert by_class["--window 1"] > 0.85 > 0.4 > by_class["--window 64"]
