"""Statistics of a pack's shards, in 40 bytes a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from petseg.data.shards.plan import Plan, split_of
from petseg.data.shards.stats import ShardStats
from petseg.data.sources import Pair

MOST_LOOKS = 2_000_000
"""Samples of a pack whose copies are looked for: what images look like takes 300 bytes each."""


class Collected:
    """The statistics of shards as they come, without what they hold of single samples: that is kept in columns."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._read = np.zeros(len(plan.pairs), bool)
        self._digests = np.zeros((len(plan.pairs), 32), np.uint8)
        self.stats: dict[str, ShardStats] = {}
        """By file name."""
        self.looks: dict[str, str] = {}
        """What images look like, by key; empty for more than `MOST_LOOKS` samples."""
        self.splits: dict[str, str] = {}
        """The split of each of these."""

    def add(self, stats: ShardStats) -> None:
        """Take a shard's; its columns are emptied."""
        if stats.digests:
            for row, pair in zip(self._plan.rows(stats.name).tolist(), self._plan.members(stats.name), strict=True):
                if digest := stats.digests.get(pair.key):
                    self._read[row] = True
                    self._digests[row] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if self._plan.samples <= MOST_LOOKS:
            self.looks |= stats.looks
            self.splits |= dict.fromkeys(stats.looks, split_of(stats.name))
        stats.digests, stats.looks, stats.tags = {}, {}, {}
        self.stats[stats.name] = stats

    def pairs(self) -> Iterator[Pair]:
        """Those that were read, sorted by key; rejected ones too."""
        return (pair for pair, read in zip(self._plan.pairs, self._read, strict=True) if read)

    def digest(self) -> str:
        """SHA-256 of the keys and digests of all that was read, in the order of keys."""
        total = hashlib.sha256()
        for pair, row in zip(self.pairs(), np.flatnonzero(self._read), strict=True):
            total.update(f"{pair.key} {self._digests[row].tobytes().hex()}\n".encode())
        return total.hexdigest()
