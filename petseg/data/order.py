"""The order of samples: epoch order, each rank's share of it, and where to resume. Pure functions of integers."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

Indices = np.ndarray
"""i64[...] sample indices within a split; -1 is a padding row."""


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a bijection of u64 whose output bits each depend on every input bit.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. NumPy promises no stable
    random streams from one version to the next, and an epoch's order must never change under a run.
    """
    x = np.asarray(values, dtype=np.uint64).copy()
    with np.errstate(over="ignore"):
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def keyed_hash(values: np.ndarray, *key: int) -> np.ndarray:
    """u64 hashes of integers under a key of integers (a seed, an epoch, a purpose). Distinct values never collide."""
    state = np.uint64(0x9E3779B97F4A7C15)
    for part in key:
        state = mix64(np.asarray([part & 0xFFFFFFFFFFFFFFFF], np.uint64) ^ state)[0]
        state = np.uint64((int(state) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    # Both steps are bijections of the value for a fixed key, so ties cannot occur and the sort is total.
    return mix64(mix64(np.asarray(values).astype(np.uint64) ^ state) ^ np.uint64(0xD1B54A32D192ED03))


_U64 = 0xFFFFFFFFFFFFFFFF


def hash_of(value: int, *key: int) -> int:
    """`keyed_hash` of one integer, in a tenth of the time: 0 to 2**64 - 1."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (_mix64((part & _U64) ^ state) + 0x9E3779B97F4A7C15) & _U64
    return _mix64(_mix64((value & _U64) ^ state) ^ 0xD1B54A32D192ED03)


def _mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _U64
    return x ^ (x >> 31)


LARGE = 10**7
"""Samples of a window, beyond which they are shuffled by a keyed permutation."""

_ROUNDS = 6

_PIECE = 1 << 16
"""Positions that are ordered at once."""

VISIT = 1 << 40
"""A sample's second visit in an epoch is its index plus this, the third plus twice this, and so on."""


def epoch_visits(weights: np.ndarray, seed: int, epoch: int) -> Indices:
    """How often an epoch goes to each sample: systematic sampling, in an order drawn anew.

    Each gets its share of the N visits, rounded up or down: more or less often by chance, and over many epochs as often
    as its weight says.

    Args:
        weights: f64[N], 0 or more, not all 0.
        seed: see `epoch_order`, as for the next one.
        epoch: from 0.

    Returns:
        i64[N], which add up to N.
    """
    n = len(weights)
    hashes = keyed_hash(np.arange(n), seed, epoch, 4)
    order = np.argsort(hashes, kind="stable")
    ends = np.cumsum(weights[order] / weights.max())  # of numbers up to one, so that no sum leaves what floats hold
    ends *= n / ends[-1]
    start = hash_of(0, seed, epoch, 5) * 2.0**-64
    reached = np.floor(ends + start).astype(np.int64)
    reached[-1] = n  # whatever the rounding of the sum
    found = np.zeros(n, np.int64)
    found[order] = np.diff(np.minimum(reached, n), prepend=0)
    return found


def lanes_of(sizes: Sequence[int], lanes: int) -> Indices:
    """The lane of each shard: dealt from the largest on, equal ones in a hashed order, to the lane with fewest samples.

    It is the same in every epoch and under every seed, so that what a machine has fetched serves its next run too.

    Args:
        sizes: samples of each shard.
        lanes: how many lanes there are.

    Returns:
        i64[shards], 0 to `lanes` - 1.
    """
    found = np.zeros(len(sizes), np.int64)
    filled = [(0, lane) for lane in range(lanes)]
    for shard in np.lexsort((keyed_hash(np.arange(len(sizes)), 6), -np.asarray(sizes, np.int64))).tolist():
        samples, lane = heapq.heappop(filled)
        found[shard] = lane
        heapq.heappush(filled, (samples + int(sizes[shard]), lane))
    return found


def permuted(positions: np.ndarray, n: int, *key: int) -> Indices:
    """Images of positions under a keyed permutation of 0 to n - 1, without the whole of it.

    A Feistel network on as many bits as n has; what falls outside is sent through again until it does not. Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.

    Args:
        positions: i64[m], from 0 to n - 1.
        n: how many there are.
        key: integers.

    Returns:
        i64[m].
    """
    low = np.uint64(max(1, (n - 1).bit_length() // 2))
    high = np.uint64(max(1, (n - 1).bit_length()) - int(low)) or np.uint64(1)
    mask, keys = (np.uint64(1) << low) - np.uint64(1), [np.uint64(hash_of(turn, *key)) for turn in range(_ROUNDS)]

    def through(values: np.ndarray) -> np.ndarray:
        left, right = values >> low, values & mask
        for turn, each in enumerate(keys):
            if turn % 2:
                right ^= mix64(left ^ each) >> (np.uint64(64) - low)
            else:
                left ^= mix64(right ^ each) >> (np.uint64(64) - high)
        return (left << low) | right

    found = through(np.asarray(positions).astype(np.uint64))
    outside = np.flatnonzero(found >= n)
    while len(outside):
        found[outside] = through(found[outside])
        outside = outside[found[outside] >= n]
    return found.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _dealt(sizes: tuple[int, ...], lanes: int) -> Indices:
    return lanes_of(sizes, lanes)


class _Lane:
    """The samples of some shards, a window after the other, each shuffled when it is asked for."""

    def __init__(self, order: EpochOrder, shards: Indices, window: int | None) -> None:
        self._order = order
        turns = shards
        if window is not None and window < len(shards):
            turns = shards[np.argsort(keyed_hash(shards, order.seed, order.epoch, 2), kind="stable")]
        self._turns, self._window = turns, window or max(len(turns), 1)
        self._ends = np.cumsum(order.counts[turns])
        self._kept: tuple[int, Indices] = (-1, np.zeros(0, np.int64))
        """The window that was asked for last, whole."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def largest(self) -> int:
        """Samples of its largest window."""
        ends = np.concatenate([[0], self._ends[self._window - 1 :: self._window], self._ends[-1:]])
        return int(np.diff(ends).max(initial=0))

    def part(self, start: int, end: int) -> Indices:
        """i64[end - start]: what stands at positions from `start` on."""
        found = [np.zeros(0, np.int64)]
        while start < end:
            window = int(np.searchsorted(self._ends, start, "right")) // self._window
            first, last = window * self._window, min(len(self._turns), (window + 1) * self._window)
            begins = int(self._ends[first - 1]) if first else 0
            upto = min(end, int(self._ends[last - 1]))
            found.append(self._of_window(window, first, last, start - begins, upto - begins))
            start = upto
        return np.concatenate(found)

    def _of_window(self, window: int, first: int, last: int, start: int, end: int) -> Indices:
        order, shards = self._order, self._turns[first:last]
        begins = int(self._ends[first - 1]) if first else 0
        size = int(self._ends[last - 1]) - begins
        if size > LARGE and order.every is None:
            places = permuted(np.arange(start, end), size, order.seed, order.epoch, 7, window)
            at = np.searchsorted(self._ends[first:last] - begins, places, "right")
            before = self._ends[first:last] - begins - order.counts[shards]
            found: Indices = order.starts[shards[at]] + places - before[at]
            return found
        if self._kept[0] != window:
            samples = np.concatenate([np.arange(order.starts[s], order.starts[s + 1]) for s in shards.tolist()])
            if order.every is not None:
                samples = order.every[samples]
            hashes = keyed_hash(samples, order.seed, order.epoch, 1)
            self._kept = window, samples[np.argsort(hashes, kind="stable")]
        return self._kept[1][start:end]


class EpochOrder:
    """The order in which one epoch visits a split, the same for every loader, rank, world size and version.

    It is made a window at a time, as far as it is asked for; without a window at once, up to `LARGE` samples. Beyond
    these, samples are shuffled by a keyed permutation, of which any part can be had by itself.

    Args:
        sizes: samples of each shard, in the manifest's order; sample indices count through them.
        seed: the run's seed, any integer.
        epoch: the epoch, from 0.
        window: how many shards may be in play at once; None (or at least as many as there are) shuffles the whole set.
            With a window the shards themselves are shuffled, then dealt into groups of `window`, and samples are
            shuffled within their group.
        weights: f64[sum(sizes)]: samples are visited in proportion to them, and not once each (`epoch_visits`).
        lanes: parts that the shards are dealt to, each with windows of its own: position p is of lane p mod `lanes`,
            until a lane has no more; from there on those that have some take turns.

    Raises:
        ValueError: a negative size, or a window or number of lanes below 1.

    Examples:
        >>> EpochOrder([2, 3], seed=0, epoch=0)[1:4].tolist() == epoch_order([2, 3], seed=0, epoch=0)[1:4].tolist()
        True
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        epoch: int,
        window: int | None = None,
        weights: np.ndarray | None = None,
        lanes: int = 1,
    ) -> None:
        counts = np.asarray(sizes, dtype=np.int64).reshape(-1)
        if (counts < 0).any():
            raise ValueError(f"shard sizes must not be negative: {counts.min()}")
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        self.seed, self.epoch = seed, epoch
        self.every: Indices | None = None
        """Visits, sorted; None where they are the samples themselves."""
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        """Where each shard begins in `every`, and where the last ends."""
        if weights is not None:
            samples = np.arange(self.starts[-1], dtype=np.int64)
            owner = np.repeat(samples, epoch_visits(weights, seed, epoch))
            # Sorted, so a sample's visits stand together.
            self.every = owner + (samples - np.searchsorted(owner, owner)) * VISIT
            self.starts = np.searchsorted(owner, self.starts)
        self.counts = np.diff(self.starts)
        shards = np.arange(len(counts))
        if lanes == 1:
            self._lanes = [_Lane(self, shards, window)]
        else:
            lane = _dealt(tuple(counts.tolist()), lanes)
            self._lanes = [_Lane(self, np.flatnonzero(lane == each), window) for each in range(lanes)]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def version(self) -> int:
        """Of the rule that shuffles: 2 where a window has more than `LARGE` samples."""
        return 2 if self.every is None and max(lane.largest for lane in self._lanes) > LARGE else 1

    def __getitem__(self, positions: slice) -> Indices:
        """i64[n]: what stands at consecutive positions."""
        start, end, step = positions.indices(len(self))
        if step != 1:
            raise ValueError("positions have to follow one another")
        if len(self._lanes) == 1 or start >= end:
            return self._lanes[0].part(start, max(start, end))
        lane, turn = self._turns(np.arange(start, end))
        found = np.zeros(end - start, np.int64)
        for number, each in enumerate(self._lanes):
            mine = np.flatnonzero(lane == number)
            if len(mine):
                found[mine] = each.part(int(turn[mine[0]]), int(turn[mine[-1]]) + 1)
        return found

    def _turns(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lane, position in it) at each position: lanes take turns, those that have no more are left out."""
        lengths = np.asarray([len(lane) for lane in self._lanes])
        lane, turn = np.zeros_like(positions), np.zeros_like(positions)
        begins = before = 0
        for length in np.unique(lengths).tolist():
            there = np.flatnonzero(lengths > before)
            ends = begins + (length - before) * len(there)
            here = (positions >= begins) & (positions < ends)
            turn[here] = before + (positions[here] - begins) // max(1, len(there))
            lane[here] = there[(positions[here] - begins) % len(there)] if len(there) else 0
            begins, before = ends, length
        return lane, turn


def epoch_order(
    sizes: Sequence[int],
    seed: int,
    epoch: int,
    window: int | None = None,
    weights: np.ndarray | None = None,
    lanes: int = 1,
) -> Indices:
    """All of an `EpochOrder`.

    Returns:
        i64[sum(sizes)], each sample index exactly once; with weights as often as it is visited, `VISIT` added for each
        visit after its first.

    Raises:
        ValueError: as `EpochOrder`.

    Examples:
        >>> sorted(epoch_order([2, 3], seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    return EpochOrder(sizes, seed, epoch, window, weights, lanes)[:]


class Order(Protocol):
    """Samples by their positions in an epoch: an `EpochOrder`, or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: slice, /) -> Indices: ...


def rank_batches(
    order: Order,
    batch: int,
    rank: int = 0,
    world: int = 1,
    consumed: int = 0,
    *,
    drop_last: bool = True,
    nodes: int = 1,
) -> Iterator[Indices]:
    """One rank's batches of what is left of an epoch, as they are asked for.

    A global batch is the next `world` times `batch` samples, so the sequence that the whole world sees is `order`
    itself, whatever the world. Node n gets those at positions p of the order with p mod `nodes` = n, in `batch` samples
    for each of its ranks, one after the other; with one node, these are consecutive blocks. Every rank gets the same
    number of batches, all of them full.

    Args:
        order: an epoch's order (or, for evaluation, simply 0 to n - 1).
        batch: samples of one rank's batch.
        rank: this rank, from 0.
        world: number of ranks.
        consumed: samples that the whole world has already received in this epoch.
        drop_last: True (training) drops the tail that fills no global batch; False (evaluation) pads it with -1, so
            that each sample occurs exactly once over all ranks.
        nodes: machines, which have the same number of consecutive ranks each.

    Yields:
        i64[batch].

    Raises:
        ValueError: a batch, rank, world or consumed that makes no sense.
    """
    if batch < 1 or world < 1 or not 0 <= rank < world:
        raise ValueError(f"batch {batch}, rank {rank} and world {world} do not fit together")
    if nodes < 1 or world % nodes:
        raise ValueError(f"{world} ranks cannot be shared evenly by {nodes} nodes")
    if not 0 <= consumed <= len(order):
        raise ValueError(f"consumed {consumed} is outside this epoch of {len(order)} samples")
    return _batches(order, batch, rank, world, consumed, drop_last, nodes)


def _batches(
    order: Order, batch: int, rank: int, world: int, consumed: int, drop_last: bool, nodes: int
) -> Iterator[Indices]:
    whole = batch * world
    left = len(order) - consumed
    steps = left // whole if drop_last else -(-left // whole)
    node, local = divmod(rank, world // nodes)
    at_once = max(1, _PIECE // whole)
    for first in range(0, steps, at_once):
        count, start = min(at_once, steps - first), consumed + first * whole
        piece = np.asarray(order[start : start + count * whole], dtype=np.int64)
        piece = np.concatenate([piece, np.full(count * whole - len(piece), -1, np.int64)])
        mine = piece.reshape(count, whole // nodes, nodes)[:, :, (node - consumed) % nodes]
        yield from np.ascontiguousarray(mine[:, local * batch : (local + 1) * batch])


def rank_slice(
    order: Order,
    batch: int,
    rank: int = 0,
    world: int = 1,
    consumed: int = 0,
    *,
    drop_last: bool = True,
    nodes: int = 1,
) -> Indices:
    """All of `rank_batches`.

    Returns:
        i64[steps, batch].

    Raises:
        ValueError: as `rank_batches`.

    Examples:
        >>> rank_slice(np.arange(7), batch=2, rank=1, world=2, drop_last=False).tolist()
        [[2, 3], [6, -1]]
        >>> rank_slice(np.arange(7), batch=2, rank=1, world=2).tolist()
        [[2, 3]]
        >>> rank_slice(np.arange(8), batch=1, rank=0, world=2, consumed=4).tolist()
        [[4], [6]]
    """
    every = rank_batches(order, batch, rank, world, consumed, drop_last=drop_last, nodes=nodes)
    return np.asarray(list(every), np.int64).reshape(-1, batch)
