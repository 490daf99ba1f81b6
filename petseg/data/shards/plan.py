"""Who goes into which shard: fixed before anything is decoded, from keys and a seed alone."""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from petseg.data.order import keyed_hash
from petseg.data.sources import TRAINVAL, Listing
from petseg.errors import PetsegError

SPLIT_MODES = ("official", "random")
SPLITS = ("train", "val", "test")

VAL_SHARE = 0.1
"""Share of an official trainval list that becomes `val`."""

RANDOM_CUTS = (0.7, 0.9)
"""Where a random split is cut into train, val and test: the notebook's shares."""

_SPLIT, _ORDER = 11, 12  # purposes of the hash: who is in val must say nothing about who stands first


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every shard and its samples."""

    shards: dict[str, tuple[str, ...]]
    """File name to keys, in the order in which they are written."""
    unlisted: tuple[str, ...]
    """Keys that were left out because they are on no list."""

    @property
    def samples(self) -> int:
        """How many samples all shards have."""
        return sum(map(len, self.shards.values()))

    def of_split(self, split: str) -> list[str]:
        """Names of a split's shards, in order."""
        return [name for name in self.shards if split_of(name) == split]


def split_of(name: str) -> str:
    """The split of a shard: `train` of `train-000000.tar`."""
    return name.rpartition("-")[0]


def make_plan(listing: Listing, mode: str, seed: int, samples_per_shard: int, group: str | None = None) -> Plan:
    """Deal the pairs of a listing out to shards.

    Args:
        listing: what the source holds; pairs on no list, where there are lists, are left out.
        mode: `official`: the source's own splits, with a seeded tenth of trainval as val. `random`: by a hash of the
            key, below 0.7 and 0.9 of all its values, so that more data moves nobody who was there. Shares are a little
            off for that. Where chance leaves a split empty, the sample that is nearest by its hash fills it.
        seed: of the splits and of the shuffling into shards.
        samples_per_shard: most samples in a shard; the shards of a split differ by one at most.
        group: regular expression, found in every key; keys in which it finds the same (its first group, if it has one)
            stay in one split wherever petseg deals them out, so that shares may be a little off.

    Raises:
        PetsegError: `official` for a source without lists; an expression that is none, or that a key lacks.
    """
    left_out = set(listing.unlisted)
    pairs = [pair for pair in listing.pairs if pair.key not in left_out]
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    if mode == "official":
        if not any(pair.split for pair in pairs):
            raise PetsegError("--split official: this source has no official lists; use --split random.")
        trainval = [pair.key for pair in pairs if pair.split == TRAINVAL]
        val, train = _dealt(trainval, (VAL_SHARE,), seed, group)
        splits["val"] += val
        splits["train"] += train
        for pair in pairs:
            if pair.split in splits:
                splits[pair.split].append(pair.key)
    else:
        parts = _by_threshold([pair.key for pair in pairs], RANDOM_CUTS, seed, group)
        splits = dict(zip(SPLITS, parts, strict=True))
    shards: dict[str, tuple[str, ...]] = {}
    for split, members in splits.items():
        order = by_hash(members, seed)
        count = -(-len(order) // samples_per_shard)
        for number in range(count):
            part = order[len(order) * number // count : len(order) * (number + 1) // count]
            shards[f"{split}-{number:06d}.tar"] = tuple(part)
    return Plan(shards=shards, unlisted=listing.unlisted)


def _grouped(keys: Sequence[str], group: str | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(_group_of(key, group), []).append(key)
    return groups


def _by_threshold(keys: Sequence[str], cuts: Sequence[float], seed: int, group: str | None) -> list[list[str]]:
    """Keys by where the hash of each, or of its group, falls between 0 and 1."""
    groups = _grouped(keys, group)
    names = sorted(groups)
    places = _hashes(names, seed, _SPLIT).astype(np.float64) / 2**64
    part_of = np.searchsorted(np.asarray(cuts), places, side="right")
    edges = [0.0, *cuts, 1.0]
    for part in range(len(edges) - 1):
        times = np.bincount(part_of, minlength=len(edges) - 1)
        free = times[part_of] > 1
        if not times[part] and free.any():
            away = np.maximum(edges[part] - places, places - edges[part + 1])
            part_of[np.where(free, away, np.inf).argmin()] = part
    parts: list[list[str]] = [[] for _ in range(len(cuts) + 1)]
    for name, part in zip(names, part_of.tolist(), strict=True):
        parts[part] += groups[name]
    return parts


def _dealt(keys: Sequence[str], cuts: Sequence[float], seed: int, group: str | None) -> list[list[str]]:
    """Keys in a seeded order, cut at shares of their number; a group goes where its middle falls."""
    groups = _grouped(keys, group)
    ends = [round(share * len(keys)) for share in cuts]
    parts: list[list[str]] = [[] for _ in range(len(cuts) + 1)]
    done = 0
    for name in _by_hash(groups, seed, _SPLIT):
        members = groups[name]
        parts[bisect.bisect_right(ends, done + (len(members) - 1) / 2)] += members
        done += len(members)
    return parts


def _group_of(key: str, group: str | None) -> str:
    if group is None:
        return key
    try:
        match = re.search(group, key)
    except re.error as error:
        raise PetsegError(f"--group '{group}' is no regular expression ({error}).") from error
    if match is None:
        raise PetsegError(f"--group '{group}' finds nothing in the key {key}: write it so that every key has a group.")
    found = match[1] if match.re.groups else match[0]
    return found or ""


def by_hash(keys: Iterable[str], seed: int) -> list[str]:
    """Keys in a seeded order, the one in which they fill shards."""
    return _by_hash(keys, seed, _ORDER)


def _by_hash(keys: Iterable[str], seed: int, purpose: int) -> list[str]:
    """Keys in a seeded order that depends on nothing but each key itself."""
    listed = sorted(keys)
    return [listed[i] for i in np.argsort(_hashes(listed, seed, purpose), kind="stable")]


def _hashes(keys: Sequence[str], seed: int, purpose: int) -> np.ndarray:
    """u64[n], one a key, which depends on nothing but the key, the seed and the purpose."""
    digests = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys]
    return keyed_hash(np.asarray(digests, dtype=np.uint64), seed, purpose)
