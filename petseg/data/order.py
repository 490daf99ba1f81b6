"""Who comes next: epoch order, each rank's share of it, and where to go on. Pure functions of integers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

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


def epoch_order(
    sizes: Sequence[int],
    seed: int,
    epoch: int,
    window: int | None = None,
    weights: np.ndarray | None = None,
    lanes: int = 1,
) -> Indices:
    """The order in which one epoch visits a split, the same for every loader, rank, world size and version.

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

    Returns:
        i64[sum(sizes)], each sample index exactly once; with weights as often as it is visited, `VISIT` added for each
        visit after its first.

    Raises:
        ValueError: a negative size, or a window or number of lanes below 1.

    Example:
        >>> sorted(epoch_order([2, 3], seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    counts = np.asarray(sizes, dtype=np.int64).reshape(-1)
    if (counts < 0).any():
        raise ValueError(f"shard sizes must not be negative: {counts.min()}")
    if lanes < 1:
        raise ValueError(f"lanes must be at least 1, not {lanes}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 shard, not {window}")
    total = int(counts.sum())
    every = np.arange(total, dtype=np.int64)
    owner = every
    if weights is not None:
        owner = np.repeat(every, epoch_visits(weights, seed, epoch))
        turn = every - np.searchsorted(owner, owner)  # sorted, so a sample's visits stand together
        every = owner + turn * VISIT
    hashes = keyed_hash(every, seed, epoch, 1)
    starts = np.searchsorted(owner, np.concatenate([[0], np.cumsum(counts)]))

    def shuffled(shards: Indices) -> Indices:
        """The samples of some shards, a window after the other."""
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


def rank_slice(
    order: Indices,
    batch: int,
    rank: int = 0,
    world: int = 1,
    consumed: int = 0,
    *,
    drop_last: bool = True,
    nodes: int = 1,
) -> Indices:
    """One rank's batches of what is left of an epoch.

    A global batch is the next `world` times `batch` samples, so the sequence that the whole world sees is `order`
    itself, whatever the world. Node n gets those at positions p of the order with p mod `nodes` = n, in `batch` samples
    for each of its ranks, one after the other; with one node, these are consecutive blocks. Every rank gets the same
    number of batches, all of them full.

    Args:
        order: i64[n], an epoch's order (or, for evaluation, simply 0 to n - 1).
        batch: samples of one rank's batch.
        rank: this rank, from 0.
        world: number of ranks.
        consumed: samples that the whole world has already received in this epoch.
        drop_last: True (training) drops the tail that fills no global batch; False (evaluation) pads it with -1, so
            that each sample occurs exactly once over all ranks.
        nodes: machines, which have the same number of consecutive ranks each.

    Returns:
        i64[steps, batch].

    Raises:
        ValueError: a batch, rank, world or consumed that makes no sense.

    Example:
        >>> rank_slice(np.arange(7), batch=2, rank=1, world=2, drop_last=False).tolist()
        [[2, 3], [6, -1]]
        >>> rank_slice(np.arange(7), batch=2, rank=1, world=2).tolist()
        [[2, 3]]
        >>> rank_slice(np.arange(8), batch=1, rank=0, world=2, consumed=4).tolist()
        [[4], [6]]
    """
    if batch < 1 or world < 1 or not 0 <= rank < world:
        raise ValueError(f"batch {batch}, rank {rank} and world {world} make no sense together")
    if nodes < 1 or world % nodes:
        raise ValueError(f"{world} ranks cannot be shared evenly by {nodes} nodes")
    if not 0 <= consumed <= len(order):
        raise ValueError(f"consumed {consumed} is outside this epoch of {len(order)} samples")
    rest = np.asarray(order[consumed:], dtype=np.int64)
    whole = batch * world
    steps = len(rest) // whole if drop_last else -(-len(rest) // whole)
    if not drop_last:
        rest = np.concatenate([rest, np.full(steps * whole - len(rest), -1, np.int64)])
    here = world // nodes
    node, local = divmod(rank, here)
    mine = rest[: steps * whole].reshape(steps, whole // nodes, nodes)[:, :, (node - consumed) % nodes]
    return mine[:, local * batch : (local + 1) * batch]
