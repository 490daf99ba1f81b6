"""Which sample goes into which shard: fixed before anything is decoded, from keys and a seed alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from petseg.data.order import keyed_hash
from petseg.data.sources import TRAINVAL, Listing, Pair
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError

SPLIT_MODES = ("official", "random")
SPLITS = ("train", "val", "test")

VAL_SHARE = 0.1
"""Share of an official trainval list that becomes `val`."""

RANDOM_CUTS = (0.7, 0.9)
"""Where a random split is cut into train, val and test: the notebook's shares."""

_SPLIT, _ORDER = 11, 12  # purposes of the hash: who is in val must say nothing about who stands first

_TRAINVAL, _NONE, _LEFT_OUT = 3, 4, 5
"""What stands for a pair's split beside the numbers of `SPLITS`."""

_AT_ONCE = 1 << 22
"""Pairs that are hashed, or sorted, at once: all of a large set would take more memory than the rest of its plan."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """Every shard and its samples."""

    pairs: Pairs
    """The listing's."""
    orders: dict[str, np.ndarray]
    """By split: u32[n], numbers of pairs in the order in which they are written."""
    samples_per_shard: int
    """At most."""
    first: Mapping[str, int]
    """The number of each split's first shard; 0 where it has none."""
    sizes: dict[str, int]
    """Samples of every shard, by file name; see `shard_sizes`."""
    unlisted: tuple[str, ...]
    """Keys that were left out because they are on no list."""

    @property
    def samples(self) -> int:
        """How many samples all shards have."""
        return sum(map(len, self.orders.values()))

    def members(self, name: str) -> tuple[Pair, ...]:
        """The samples of a shard, in the order in which they are written."""
        return tuple(self.pairs[row] for row in self.rows(name).tolist())

    def rows(self, name: str) -> np.ndarray:
        """u32[n]: the numbers of a shard's pairs."""
        split = split_of(name)
        order, number = self.orders[split], number_of(name) - self.first.get(split, 0)
        shards = -(-len(order) // self.samples_per_shard)
        return order[len(order) * number // shards : len(order) * (number + 1) // shards]

    def chosen(self) -> Pairs:
        """The pairs of all shards."""
        if self.samples == len(self.pairs):
            return self.pairs
        chosen = np.zeros(len(self.pairs), bool)
        for order in self.orders.values():
            chosen[order] = True
        return Pairs.of(pair for pair, taken in zip(self.pairs, chosen, strict=True) if taken)

    def digest(self) -> str:
        """What two equal plans of one listing share."""
        digest = hashlib.sha256()
        for split, order in self.orders.items():
            digest.update(f"{split} {len(order)}\n".encode())
            digest.update(order.astype("<u4", copy=False).data)
        return digest.hexdigest()


def split_of(name: str) -> str:
    """The split of a shard: `train` of `train-000000.tar`."""
    return name.rpartition("-")[0]


def number_of(name: str) -> int:
    """The number of a shard: 12 of `train-000012.tar`."""
    return int(name.rpartition("-")[2].removesuffix(".tar"))


def shard_sizes(counts: Mapping[str, int], samples_per_shard: int, first: Mapping[str, int]) -> dict[str, int]:
    """Samples of every shard by file name: split after split, in order.

    Args:
        counts: samples by split.
        samples_per_shard: most samples in a shard; the shards of a split differ by one at most.
        first: number of each split's first shard, 0 where it has none.

    Examples:
        >>> shard_sizes({"train": 3, "test": 1}, 2, {})
        {'train-000000.tar': 1, 'train-000001.tar': 2, 'test-000000.tar': 1}
    """
    sizes: dict[str, int] = {}
    for split, samples in counts.items():
        shards, start = -(-samples // samples_per_shard), first.get(split, 0)
        for number in range(shards):
            end = samples * (number + 1) // shards
            sizes[f"{split}-{start + number:06d}.tar"] = end - samples * number // shards
    return sizes


def make_plan(
    listing: Listing,
    mode: str,
    seed: int,
    samples_per_shard: int,
    group: str | None = None,
    *,
    there: Mapping[str, str] | None = None,
    first: Mapping[str, int] | None = None,
) -> Plan:
    """Deal the pairs of a listing out to shards.

    Args:
        listing: what the source holds; pairs on no list, where there are lists, are left out.
        mode: `official`: the source's own splits, with a seeded tenth of trainval as val. `random`: by a hash of the
            key, below 0.7 and 0.9 of all its values, so that more data moves no existing sample. Shares are a little
            off for that. Where chance leaves a split empty, the sample that is nearest by its hash fills it.
        seed: of the splits and of the shuffling into shards.
        samples_per_shard: most samples in a shard; the shards of a split differ by one at most.
        group: regular expression, found in every key; keys in which it finds the same (its first group, if it has one)
            stay in one split wherever petseg deals them out, so that shares may be a little off.
        there: splits by the keys that are packed already, in an output that is added to; then trainval is dealt by the
            hash too, groups go where they are, and no split is filled.
        first: numbers of the first shards; see `shard_sizes`.

    Raises:
        PetsegError: `official` for a source without lists; an expression that is none, or that a key lacks.
    """
    pairs = compact(listing.pairs)
    there, adding = there or {}, there is not None
    hashes, parts = _looked_through(pairs, {*listing.unlisted, *there})
    if mode == "official":
        if not (parts < _NONE).any():
            raise PetsegError("--split official: this source has no official lists; use --split random.")
        dealt = parts == _TRAINVAL
        if adding:
            _by_threshold(pairs, hashes, parts, dealt, ("val", "train"), (VAL_SHARE,), seed, group, fill=False)
        else:
            _deal(pairs, hashes, parts, dealt, seed, group)
    else:
        dealt = parts < _LEFT_OUT
        _by_threshold(pairs, hashes, parts, dealt, SPLITS, RANDOM_CUTS, seed, group, fill=not adding)
    if there and group is not None:
        _join(pairs, parts, dealt, there, _compiled(group))
    orders = {split: _ordered(hashes, parts == number, seed, _ORDER) for number, split in enumerate(SPLITS)}
    first = first or {}
    return Plan(
        pairs=pairs,
        orders=orders,
        samples_per_shard=samples_per_shard,
        first=first,
        sizes=shard_sizes({split: len(order) for split, order in orders.items()}, samples_per_shard, first),
        unlisted=listing.unlisted,
    )


def compact(pairs: Sequence[Pair]) -> Pairs:
    """Pairs in little memory, sorted by key."""
    return pairs if isinstance(pairs, Pairs) else Pairs.of(sorted(pairs, key=lambda pair: pair.key))


def first_by_hash(pairs: Pairs, seed: int, most: int) -> list[Pair]:
    """The pairs that come first by the hash that fills shards."""
    hashes = _hashes(pair.key for pair in pairs)
    return [pairs[row] for row in _ordered(hashes, np.ones(len(pairs), bool), seed, _ORDER)[:most].tolist()]


def _looked_through(pairs: Pairs, left_out: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
    """(u64[n] hashes of the keys, u8[n] what their split is)."""
    known = {**{split: number for number, split in enumerate(SPLITS)}, TRAINVAL: _TRAINVAL}
    parts = np.empty(len(pairs), np.uint8)

    def keys() -> Iterator[str]:
        for row, (key, _, _, _, split, *_) in enumerate(pairs.rows()):
            parts[row] = _LEFT_OUT if key in left_out else known.get(split or "", _NONE)
            yield key

    return _hashes(keys()), parts


def _hashes(keys: Iterable[str]) -> np.ndarray:
    """u64[n], one a key, of the key alone."""
    digests = (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys)
    return np.fromiter(digests, np.uint64)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Pairs that stay in one split."""

    hashes: np.ndarray
    """u64[m], of the groups' names, which are sorted."""
    of_row: np.ndarray
    """i64[n]: the group of each pair that is dealt."""

    @classmethod
    def of(cls, pairs: Pairs, rows: np.ndarray, group: str) -> _Groups:
        """The groups of some pairs.

        Raises:
            PetsegError: an expression that is none, or that a key lacks.
        """
        found = _compiled(group)
        names = [_group_of(pairs[row].key, found) for row in rows.tolist()]
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        return cls(_hashes(numbers), np.fromiter((numbers[name] for name in names), np.int64, len(names)))


def _compiled(group: str) -> re.Pattern[str]:
    try:
        return re.compile(group)
    except re.error as error:
        raise PetsegError(f"--group '{group}' is not a regular expression ({error}).") from error


def _join(pairs: Pairs, parts: np.ndarray, dealt: np.ndarray, there: Mapping[str, str], group: re.Pattern[str]) -> None:
    """Bring what was dealt to where others of its group are packed."""
    home = {_group_of(key, group): SPLITS.index(split) for key, split in there.items()}
    for row in np.flatnonzero(dealt).tolist():
        parts[row] = home.get(_group_of(pairs[row].key, group), parts[row])


def _group_of(key: str, group: re.Pattern[str]) -> str:
    match = group.search(key)
    if match is None:
        raise PetsegError(
            f"--group '{group.pattern}' finds nothing in the key {key}: write it so that every key has a group."
        )
    found = match[1] if group.groups else match[0]
    return found or ""


def _by_threshold(
    pairs: Pairs,
    hashes: np.ndarray,
    parts: np.ndarray,
    dealt: np.ndarray,
    splits: Sequence[str],
    cuts: Sequence[float],
    seed: int,
    group: str | None,
    *,
    fill: bool,
) -> None:
    """Deal pairs by where the hash of each, or of its group, falls between 0 and 1: sets `parts` where `dealt`."""
    numbers = np.array([SPLITS.index(split) for split in splits], np.uint8)
    if group is not None:
        rows = np.flatnonzero(dealt)
        groups = _Groups.of(pairs, rows, group)
        parts[rows] = numbers[_cut(groups.hashes, seed, cuts, fill=fill)[groups.of_row]]
        return
    for begin in range(0, len(hashes), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        parts[some][dealt[some]] = numbers[_cut(hashes[some][dealt[some]], seed, cuts, fill=False)]
    if fill and len(np.unique(parts[dealt])) < len(splits):
        parts[dealt] = numbers[_cut(hashes[dealt], seed, cuts, fill=True)]


def _cut(hashes: np.ndarray, seed: int, cuts: Sequence[float], *, fill: bool) -> np.ndarray:
    """i64[n]: between which cuts each falls; with `fill`, parts that chance left empty get what is nearest to them."""
    places = keyed_hash(hashes, seed, _SPLIT).astype(np.float64) / 2**64
    found = np.searchsorted(np.asarray(cuts), places, side="right")
    edges = [0.0, *cuts, 1.0]
    for part in range(len(edges) - 1) if fill else ():
        times = np.bincount(found, minlength=len(edges) - 1)
        free = times[found] > 1
        if not times[part] and free.any():
            away = np.maximum(edges[part] - places, places - edges[part + 1])
            found[np.where(free, away, np.inf).argmin()] = part
    return found


def _deal(
    pairs: Pairs, hashes: np.ndarray, parts: np.ndarray, trainval: np.ndarray, seed: int, group: str | None
) -> None:
    """Deal trainval in a seeded order, cut at a share of its number; a group goes where its middle falls."""
    total = int(np.count_nonzero(trainval))
    end = round(VAL_SHARE * total)
    train, val = SPLITS.index("train"), SPLITS.index("val")
    if group is None:
        chosen = _ordered(hashes, trainval, seed, _SPLIT)[:end]
        parts[trainval] = train
        parts[chosen] = val
        return
    rows = np.flatnonzero(trainval)
    groups = _Groups.of(pairs, rows, group)
    order = np.argsort(keyed_hash(groups.hashes, seed, _SPLIT), kind="stable")
    sizes = np.bincount(groups.of_row, minlength=len(order))[order]
    middle = np.cumsum(sizes) - sizes + (sizes - 1) / 2
    found = np.empty(len(order), np.uint8)
    found[order] = np.where(middle < end, val, train)
    parts[rows] = found[groups.of_row]


def _ordered(hashes: np.ndarray, chosen: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """u32[n]: the chosen rows in a seeded order that depends on nothing but each key itself."""
    if np.count_nonzero(chosen) <= _AT_ONCE:
        return _sorted(hashes, np.flatnonzero(chosen), seed, purpose)
    # By their first byte first: what sorts all at once holds five times as much.
    heads = np.empty(len(hashes), np.uint8)
    for begin in range(0, len(hashes), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        heads[some] = keyed_hash(hashes[some], seed, purpose) >> np.uint64(56)
    return np.concatenate(
        [_sorted(hashes, np.flatnonzero(chosen & (heads == head)), seed, purpose) for head in range(256)]
    )


def _sorted(hashes: np.ndarray, rows: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    return rows[np.argsort(keyed_hash(hashes[rows], seed, purpose), kind="stable")].astype(np.uint32)
