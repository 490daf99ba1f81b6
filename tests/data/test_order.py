import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg.data import order as module
from petseg.data.order import (
    EpochOrder,
    epoch_order,
    epoch_visits,
    keyed_hash,
    lanes_of,
    mix64,
    permuted,
    rank_batches,
    rank_slice,
)

SIZES = st.lists(st.integers(0, 30), max_size=12)


@given(SIZES, st.integers(-(2**70), 2**70), st.integers(0, 10**6), st.none() | st.integers(1, 15))
def test_every_sample_once(sizes, seed, epoch, window):
    order = epoch_order(sizes, seed, epoch, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))


# Literals: a run that is resumed under another version or platform must go on in the same order.
def test_the_order_never_changes():
    assert epoch_order([5, 0, 7], 0, 0).tolist() == [4, 2, 10, 6, 7, 3, 0, 11, 9, 8, 5, 1]
    assert epoch_order([3, 4, 2, 3], 7, 2, window=2).tolist() == [2, 0, 7, 8, 1, 9, 6, 10, 4, 11, 5, 3]
    assert mix64(np.array([1, 2**64 - 1], np.uint64)).tolist() == [6238072747940578789, 13029008266876403067]
    assert keyed_hash(np.array([0, -1]), -3, 2**80).tolist() == [12567128895053298597, 12039853778548678553]


def at_once(sizes, seed, epoch, window=None, weights=None, lanes=1):
    """The first version of the order, whole: what runs that were begun with it go on in."""
    counts = np.asarray(sizes, np.int64).reshape(-1)
    every = np.arange(int(counts.sum()), dtype=np.int64)
    owner = every
    if weights is not None:
        owner = np.repeat(every, epoch_visits(weights, seed, epoch))
        every = owner + (every - np.searchsorted(owner, owner)) * module.VISIT
    hashes = keyed_hash(every, seed, epoch, 1)
    starts = np.searchsorted(owner, np.concatenate([[0], np.cumsum(counts)]))

    def shuffled(shards):
        turns = shards[np.argsort(keyed_hash(shards, seed, epoch, 2), kind="stable")]
        groups = [np.zeros(0, np.int64)]
        for first in range(0, len(turns), window or max(len(turns), 1)):
            group = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in turns[first:][: window or None]])
            groups.append(every[group[np.argsort(hashes[group], kind="stable")]])
        return np.concatenate(groups)

    if lanes > 1:
        lane = lanes_of(counts.tolist(), lanes)
        parts = [shuffled(np.flatnonzero(lane == each)) for each in range(lanes)]
        turn = np.concatenate([np.arange(len(part)) for part in parts])
        of = np.repeat(np.arange(lanes), [len(part) for part in parts])
        return np.concatenate(parts)[np.lexsort((of, turn))]
    if window is None or window >= len(counts):
        return every[np.argsort(hashes, kind="stable")]
    return shuffled(np.arange(len(counts)))


@settings(deadline=None)
@given(
    SIZES, st.integers(-5, 2**40), st.integers(0, 9), st.none() | st.integers(1, 15), st.booleans(), st.integers(1, 5),
    st.data(),
)  # fmt: skip
def test_any_part_is_that_of_the_whole(sizes, seed, epoch, window, weighted, lanes, data):
    weights = np.random.default_rng(0).random(sum(sizes)) + 0.1 if weighted and sum(sizes) else None
    whole = at_once(sizes, seed, epoch, window, weights, lanes)
    order = EpochOrder(sizes, seed, epoch, window, weights, lanes)
    assert len(order) == len(whole) and order.version == 1
    for _ in range(4):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(0, len(whole)))
        assert order[start:end].tolist() == whole[start:end].tolist()
    np.testing.assert_array_equal(epoch_order(sizes, seed, epoch, window, weights, lanes), whole)


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 5))
def test_a_keyed_permutation_is_one(n, seed, epoch):
    assert sorted(permuted(np.arange(n), n, seed, epoch).tolist()) == list(range(n))


def test_a_keyed_permutation_never_changes_and_is_spread_evenly():
    assert permuted(np.arange(8), 10**8, 5, 1).tolist() == [
        47552541, 78981346, 9123742, 51803269, 2772047, 55776956, 48977102, 6377974,
    ]  # fmt: skip
    n = 2000
    found = np.stack([permuted(np.arange(n), n, seed) for seed in range(60)])
    counts = np.histogram2d(np.tile(np.arange(n), 60), found.ravel(), bins=20)[0]
    expected = 60 * n / 400
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 361 + 5 * (2 * 361) ** 0.5
    assert abs(np.corrcoef(found[0, :-1], found[0, 1:])[0, 1]) < 0.07
    assert (found == np.arange(n)).mean() < 3 / n


@settings(deadline=None)
@given(SIZES, st.integers(0, 99), st.none() | st.integers(1, 15), st.integers(1, 3), st.data())
def test_large_windows_are_permuted_and_every_part_can_be_had(sizes, seed, window, lanes, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE", 20)
        order = EpochOrder(sizes, seed, 0, window, lanes=lanes)
        whole = order[:]
        assert sorted(whole.tolist()) == list(range(sum(sizes)))
        start, end = (data.draw(st.integers(0, len(whole))) for _ in range(2))
        assert order[start:end].tolist() == whole[start:end].tolist()
        if order.version == 1:
            assert whole.tolist() == at_once(sizes, seed, 0, window, None, lanes).tolist()
        if window and lanes == 1:  # what a window holds is the same
            first = at_once(sizes, seed, 0, window)
            turns = np.argsort(keyed_hash(np.arange(len(sizes)), seed, 0, 2), kind="stable")
            ends = [0, *np.cumsum(np.asarray(sizes, np.int64)[turns])[window - 1 :: window].tolist(), len(whole)]
            for begins, upto in itertools.pairwise(ends):
                assert sorted(whole[begins:upto]) == sorted(first[begins:upto])


def test_a_hundred_million_samples_begin_at_once():
    sizes = [256] * (10**8 // 256)
    for window, version in ((None, 2), (16, 1)):
        began = time.perf_counter()
        order = EpochOrder(sizes, 0, 3, window)
        first, later = next(rank_batches(order, 32)), next(rank_batches(order, 32, 7, 8, 70_000_000))
        assert order.version == version and len({*first.tolist(), *later.tolist()}) == 64
        assert time.perf_counter() - began < 2


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order([200], seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert tuple(range(200)) not in orders


def test_first_places_are_spread_evenly():
    first = [epoch_order([10], seed, 0)[0] for seed in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert abs(counts - 200).max() < 75


@given(st.lists(st.integers(1, 20), min_size=1, max_size=10), st.integers(1, 10), st.integers(0, 99))
def test_window_bounds_the_shards_in_play(sizes, window, seed):
    owner = np.repeat(np.arange(len(sizes)), sizes)[epoch_order(sizes, seed, 0, window)]
    first = {s: np.flatnonzero(owner == s)[0] for s in range(len(sizes))}
    last = {s: np.flatnonzero(owner == s)[-1] for s in range(len(sizes))}
    for place in range(len(owner)):
        assert sum(first[s] <= place <= last[s] for s in first) <= window


@pytest.mark.parametrize("bad", [{"sizes": [3, -1]}, {"sizes": [3], "window": 0}])
def test_order_refuses_nonsense(bad):
    with pytest.raises(ValueError, match="must"):
        epoch_order(**{"seed": 0, "epoch": 0, **bad})


def together(order, batch, world, consumed=0, **options):
    slices = [rank_slice(order, batch, rank, world, consumed, **options) for rank in range(world)]
    return np.stack(slices, axis=1).reshape(-1) if slices[0].size else np.zeros(0, np.int64)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5), st.data())
def test_ranks_together_see_the_order(n, batch, world, data):
    order = epoch_order([n], 1, 1)
    consumed = data.draw(st.integers(0, n))
    rest = order[consumed:]
    whole = len(rest) // (batch * world) * batch * world
    np.testing.assert_array_equal(together(order, batch, world, consumed), rest[:whole])
    padded = together(order, batch, world, consumed, drop_last=False)
    np.testing.assert_array_equal(padded[: len(rest)], rest)
    assert (padded[len(rest) :] == -1).all()
    assert len(padded) - len(rest) < batch * world


@given(st.integers(0, 300), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(0, 6)), max_size=6))
def test_going_on_under_another_batch_and_world(n, legs):
    order = epoch_order([n], 3, 0)
    consumed, seen = 0, []
    for batch, world, steps in legs:
        part = together(order, batch, world, consumed)[: steps * batch * world]
        seen += part.tolist()
        consumed += len(part)
    assert seen == order[:consumed].tolist()


@pytest.mark.parametrize(
    ("batch", "rank", "world", "consumed"),
    [(0, 0, 1, 0), (1, 1, 1, 0), (1, -1, 1, 0), (1, 0, 0, 0), (1, 0, 1, 6), (1, 0, 1, -1)],
)
def test_rank_slice_refuses_nonsense(batch, rank, world, consumed):
    with pytest.raises(ValueError, match=r"fit together|outside"):
        rank_slice(np.arange(5), batch, rank, world, consumed)


SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 6), st.none() | st.integers(1, 5), st.integers(0, 99), st.integers(0, 3))
def test_lanes_take_turns_and_each_has_its_own_shards(sizes, lanes, window, seed, epoch):
    order = epoch_order(sizes, seed, epoch, window, lanes=lanes)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert epoch_order(sizes, seed, epoch, window, lanes=1).tolist() == epoch_order(sizes, seed, epoch, window).tolist()
    lane = lanes_of(sizes, lanes)
    per_lane = np.bincount(lane, weights=sizes, minlength=lanes)
    assert per_lane.max() - per_lane.min() <= max(sizes), "evenly dealt"
    of = np.repeat(lane, sizes)[order]
    strict = int(per_lane.min()) * lanes
    assert (of[:strict] == np.arange(strict) % lanes).all()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    for each in range(lanes):
        mine = owner[order[of == each]]
        for place in range(len(mine) if window else 0):
            in_play = {s for s in set(mine[: place + 1].tolist()) if s in set(mine[place:].tolist())}
            assert len(in_play) <= window


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 40), st.integers(0, 9))
def test_global_batches_are_the_same_for_any_ranks_and_nodes(sizes, scale, consumed, seed):
    order = epoch_order(sizes, seed, 0, lanes=4)
    consumed = min(consumed, len(order))
    whole = 8 * scale
    expected = [set(order[at : at + whole].tolist()) for at in range(consumed, len(order) - whole + 1, whole)]
    for world, nodes in ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 2)):
        every = [rank_slice(order, whole // world, rank, world, consumed, nodes=nodes) for rank in range(world)]
        assert [set(np.concatenate(step).tolist()) for step in zip(*every, strict=True)] == expected
        assert all(len(step) == whole for step in map(np.concatenate, zip(*every, strict=True)))


def test_a_node_needs_little_more_than_its_part_of_the_shards():
    sizes = np.random.default_rng(0).integers(200, 257, 400).tolist()
    owner = np.repeat(np.arange(400), sizes)
    for world, nodes in ((4, 4), (16, 4)):
        touched = [set() for _ in range(nodes)]
        for epoch in range(2):
            order = epoch_order(sizes, 0, epoch, 16, lanes=4)
            for rank in range(world):
                part = rank_slice(order, 8, rank, world, nodes=nodes)
                touched[rank // (world // nodes)] |= set(owner[part.ravel()].tolist())
        assert all(100 <= len(shards) <= 112 for shards in touched), [len(shards) for shards in touched]


def test_nodes_share_ranks_evenly():
    with pytest.raises(ValueError, match="evenly"):
        rank_slice(np.arange(8), 1, 0, 3, nodes=2)
    with pytest.raises(ValueError, match="lanes must"):
        epoch_order([3], 0, 0, lanes=0)


@settings(max_examples=1, deadline=None)
@given(st.just(10**6))
def test_a_million_samples_take_less_than_two_seconds(n):
    start = time.perf_counter()
    epoch_order([n // 100] * 100, 0, 0)
    assert time.perf_counter() - start < 2
