"""An engine for remote shards: submits a batch once its shards are on this machine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from petseg.data.decode.boxes import Framing
from petseg.data.loaders.loader import Engine, LoaderPlan, Pending, Pixels
from petseg.data.order import VISIT
from petseg.data.shards.reader import ShardReader


class _Uses(NamedTuple):
    """When an epoch uses the shards."""

    sequence: np.ndarray
    """i64[m]: shards in the order of their first samples."""
    first: np.ndarray
    """i64[shards]: the place of each one's first sample in the epoch's order; beyond its end where it has none."""
    last: np.ndarray
    """i64[shards]: the place of each one's last sample in the epoch's order; -1 where it has none."""
    places: np.ndarray
    """i64[samples]: the place of each sample's first visit in the order."""

    def finished(self, place: int) -> int:
        """How many of the sequence's first shards are not used after a place."""
        after = np.flatnonzero(self.last[self.sequence] > place)
        return int(after[0]) if len(after) else len(self.sequence)


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Awaited:
    """A batch, from its submission on."""

    engine: StagedEngine
    indices: np.ndarray
    framing: Framing
    shards: tuple[int, ...]
    inner: Pending | None = None
    """The submission to the engine below, once its shards are there."""

    def receive(self) -> Pixels:
        """See `Pending`."""
        self.engine.pass_over(self)
        while self.inner is None:
            self.engine.pump(wait=True)
        pixels = self.inner.receive()
        self.engine.received(self)
        return pixels


class StagedEngine:
    """Holds batches back until their shards are here; the wrapped engine gets all submissions in their order.

    Args:
        inner: decodes; closed together with this one.
        reader: the same that it reads from.
        plan: which samples come when.
    """

    def __init__(self, inner: Engine, reader: ShardReader, plan: LoaderPlan) -> None:
        assert reader.stage is not None, "it is for shards of a store"
        self._inner, self._reader, self._plan, self._stage = inner, reader, plan, reader.stage
        mine = plan.lanes // plan.nodes  # which are in use beside each other
        self._ahead = 2 * plan.window * mine if plan.training and plan.window else len(plan.sizes)
        self._waiting: deque[_Awaited] = deque()
        self._under_way: WeakSet[_Awaited] = WeakSet()
        """Batches that were submitted and not received; abandoned ones are dropped."""
        self._epoch, self._uses = -2, _Uses(*(np.zeros(0, np.int64),) * 4)
        self._following: _Uses | None = None
        """The next epoch's."""
        self._reached, self._place = -1, -1
        """Finished shards of the sequence, and the place in the epoch's order of what was received last."""

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """See `Engine`."""
        epoch = framing.epoch if self._plan.training else 0
        if epoch != self._epoch and epoch != self._epoch + 1:
            self._follow(epoch, indices)
        shards = tuple(np.unique(self._reader.shards_of(indices)).tolist())
        batch = _Awaited(self, indices, framing, shards)
        self._under_way.add(batch)
        self._waiting.append(batch)
        self.pump(wait=False)
        return batch

    def pass_over(self, batch: _Awaited) -> None:
        """Forget the batches before this one that were never received."""
        while batch in self._waiting and self._waiting[0] is not batch:
            self._waiting.popleft()

    def pump(self, *, wait: bool) -> None:
        """Submit what can be submitted; at least one more batch if it is waited for.

        Raises:
            PetsegError: a shard cannot be had.
        """
        while self._waiting:
            batch = self._waiting[0]
            if wait:
                self._let_go()  # what the loader has passed over, too
            if not self._reader.take(batch.shards, wait=wait):
                return
            if batch.inner is None:
                batch.inner = self._inner.submit(batch.indices, batch.framing)
            self._waiting.popleft()
            wait = False

    def received(self, batch: _Awaited) -> None:
        """Note that its shards have been used."""
        self._under_way.discard(batch)
        epoch = batch.framing.epoch if self._plan.training else 0
        if epoch != self._epoch:
            self._follow(epoch, batch.indices)
        self._place = int(self._uses.places[batch.indices].max())
        self._let_go()
        if (reached := self._uses.finished(self._place)) != self._reached:
            self._reached = reached
            self._stage.reach(reached)

    def _let_go(self) -> None:
        """Release the shards that no batch waits for, and that are not in the middle of their use."""
        used = {shard for batch in self._under_way for shard in batch.shards}
        first, last = self._uses.first, self._uses.last
        done = [n for n in self._stage.held() - used if not first[n] <= self._place < last[n]]
        self._reader.release(done)

    def close(self) -> None:
        """See `Engine`."""
        self._waiting.clear()
        self._inner.close()

    def _follow(self, epoch: int, indices: np.ndarray) -> None:
        """Plan this epoch and the next."""
        self._uses = self._following if epoch == self._epoch + 1 and self._following else self._of(epoch)
        self._following = self._of(epoch + 1) if self._plan.training else self._uses
        self._epoch = epoch
        self._place = int(self._uses.places[indices].min()) - 1
        self._reached = self._uses.finished(self._place)
        sequence = np.concatenate([self._uses.sequence, self._following.sequence])
        self._stage.follow(sequence.tolist(), self._reached, self._ahead)

    def _of(self, epoch: int) -> _Uses:
        samples = self._plan.node_order(epoch) % VISIT
        shards, count = self._reader.shards_of(samples), len(self._plan.sizes)
        first, last = np.full(count, len(shards), np.int64), np.full(count, -1, np.int64)
        places, every = np.zeros(sum(self._plan.sizes), np.int64), np.arange(len(shards))
        last[shards] = every  # of several places the last one stays
        first[shards[::-1]] = places[samples[::-1]] = every[::-1]  # and here the first
        return _Uses(np.argsort(first, kind="stable")[: (last >= 0).sum()], first, last, places)
