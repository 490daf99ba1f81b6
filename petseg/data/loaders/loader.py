"""What every loader shares: batches, the state, the order, and one endless stream of batches made ahead."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from petseg.data.order import epoch_order, rank_slice
from petseg.errors import PetsegError


class Batch(NamedTuple):
    """One rank's batch, on the device."""

    images: torch.Tensor
    """u8[N, H, W, 3], RGB. `images.permute(0, 3, 1, 2)` is channels_last without a copy."""
    codes: torch.Tensor
    """u8[N, H, W], the codes of the mask files."""
    indices: torch.Tensor
    """i64[N], sample indices within the split; -1 marks a padding row (zeros in `images` and `codes`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a loader stands: enough to go on under another loader, batch size or number of ranks."""

    digest: str
    """The manifest's digest."""
    split: str
    seed: int
    epoch: int
    consumed: int
    """Samples of this epoch that the whole world has received (not merely prefetched)."""
    window: int | None = None
    format: int = 1


class Loader(Protocol):
    """What every loader does.

    Iterating goes on from `consumed` to the end of the epoch; the loader then stands at the start of the next one.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Batches that remain in this epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Stand at the first sample of `epoch`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A `LoaderState` as plain data, counting the batches received so far."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says.

        Raises:
            PetsegError: the state is of another data set, split or a newer format.
        """
        ...

    def close(self) -> None:
        """Give back threads, processes and memory, at once. A closed loader yields nothing more."""
        ...


Pull = Callable[[], "np.ndarray | None"]
"""Gives the sample indices of the next batch to make, i64[n] with 1 <= n <= batch size; None: nothing for now."""


class Pixels(NamedTuple):
    """What an engine makes of one pull, on the device."""

    images: torch.Tensor
    """u8[n, H, W, 3]."""
    codes: torch.Tensor
    """u8[n, H, W]."""


class Engine(Protocol):
    """Turns indices into pixels, in the order of the pulls, working ahead as far as it likes."""

    def receive(self) -> Pixels | None:
        """The result of the oldest pull that was not yet received; None if that pull gave nothing.

        The tensors are the receiver's own: no later call writes into them.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


EngineFactory = Callable[[Pull], Engine]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderPlan:
    """Which batches a loader gives."""

    digest: str
    split: str
    sizes: tuple[int, ...]
    """Samples of each shard."""
    batch_size: int
    seed: int
    training: bool
    """True: shuffled, and the tail that fills no global batch is dropped. False: each sample once, in order, padded."""
    rank: int = 0
    world: int = 1
    window: int | None = None

    def order(self, epoch: int) -> np.ndarray:
        """i64[n]: the order in which the world visits the split."""
        if self.training:
            return epoch_order(self.sizes, self.seed, epoch, self.window)
        return np.arange(sum(self.sizes), dtype=np.int64)

    def steps(self, consumed: int) -> int:
        """Batches of each rank from `consumed` to the end of an epoch."""
        left, whole = sum(self.sizes) - consumed, self.batch_size * self.world
        return left // whole if self.training else -(-left // whole)


class _Ticket(NamedTuple):
    """A batch that was ordered from the engine."""

    generation: int
    indices: np.ndarray
    consumed: int
    """Where the world stands in the epoch once this batch is received."""
    last: bool
    """It is the epoch's last."""


class OrderedLoader:
    """A `Loader` whose pixels come from an engine.

    The engine pulls from one stream that never ends: after an epoch's last batch comes the next epoch's first, so
    nothing drains between epochs. Every pull leaves a ticket; tickets of an abandoned iteration carry an old
    generation, and what the engine still makes for them is thrown away.
    """

    def __init__(self, plan: LoaderPlan, size: tuple[int, int], device: torch.device, engine: EngineFactory) -> None:
        if not plan.steps(0):
            raise ValueError("there is no batch to make")
        self.plan = plan
        self.size = size
        self.device = device
        self._epoch = 0
        self._consumed = 0
        self._generation = 0
        self._iteration = 0
        self._tickets: deque[_Ticket] = deque()
        self._failure: PetsegError | None = None
        self._stream = self._tickets_from(0, 0)
        self._engine: Engine | None = engine(self._pull)

    def __len__(self) -> int:
        return self.plan.steps(self._consumed)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        return self._iterate(self._iteration)

    def set_epoch(self, epoch: int) -> None:
        """Stand at the first sample of `epoch`."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative: {epoch}")
        self._move(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """A `LoaderState` as plain data, counting the batches received so far."""
        plan = self.plan
        return dataclasses.asdict(
            LoaderState(
                digest=plan.digest,
                split=plan.split,
                seed=plan.seed,
                epoch=self._epoch,
                consumed=self._consumed,
                window=plan.window,
            )
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` says.

        Raises:
            PetsegError: the state is of another data set, split, seed or window, a newer format, or damaged.
        """
        plan = self.plan
        try:
            if state["format"] > LoaderState.__dataclass_fields__["format"].default:
                raise PetsegError("this loader state was written by a newer petseg: upgrade petseg.")
            found = LoaderState(**state)
        except (KeyError, TypeError) as error:
            raise PetsegError(f"this is no loader state ({error}): resume from another checkpoint.") from error
        if found.digest != plan.digest:
            raise PetsegError("these are not the shards that the run was trained on: give the same folder to resume.")
        for name in ("split", "seed", "window"):
            if getattr(found, name) != getattr(plan, name):
                raise PetsegError(
                    f"the loader state is of {name} {getattr(found, name)}, not {getattr(plan, name)}: the order would "
                    "differ; resume with the same."
                )
        if found.epoch < 0 or not 0 <= found.consumed <= sum(plan.sizes):
            raise PetsegError("this loader state does not fit its data set: resume from another checkpoint.")
        self._move(found.epoch, found.consumed)

    def close(self) -> None:
        """Give back threads, processes and memory, at once. A closed loader yields nothing more."""
        self._iteration += 1
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _iterate(self, iteration: int) -> Iterator[Batch]:
        if self._engine is None:
            return
        if not len(self):
            # Nothing but a dropped tail is left of this epoch.
            self._move(self._epoch + 1, 0)
            return
        while self._engine is not None and iteration == self._iteration:
            if self._failure is not None:  # an engine that failed gives nothing more
                raise self._failure
            try:
                pixels = self._engine.receive()
            except PetsegError as error:
                self._failure = error
                raise
            ticket = self._tickets.popleft()
            if ticket.generation != self._generation:
                continue
            if pixels is None:
                raise RuntimeError("an engine gave nothing for a batch that was ordered")
            self._epoch, self._consumed = (self._epoch + 1, 0) if ticket.last else (self._epoch, ticket.consumed)
            yield self._batch(pixels, ticket.indices)
            if ticket.last:
                return

    def _batch(self, pixels: Pixels, indices: np.ndarray) -> Batch:
        on_device = torch.from_numpy(indices).to(self.device, non_blocking=True)
        real = int((indices >= 0).sum())
        if real == len(indices):
            return Batch(pixels.images, pixels.codes, on_device)
        height, width = self.size
        images = torch.zeros((len(indices), height, width, 3), dtype=torch.uint8, device=self.device)
        codes = torch.zeros((len(indices), height, width), dtype=torch.uint8, device=self.device)
        # Padding rows always stand at the end (`rank_slice`); with none real, the one row that was made is dropped.
        images[:real], codes[:real] = pixels.images[:real], pixels.codes[:real]
        return Batch(images, codes, on_device)

    def _move(self, epoch: int, consumed: int) -> None:
        self._iteration += 1
        if (epoch, consumed) != (self._epoch, self._consumed) or not self.plan.steps(consumed):
            self._generation += 1
            self._stream = self._tickets_from(epoch, consumed)
        self._epoch, self._consumed = epoch, consumed

    def _pull(self) -> np.ndarray:
        ticket = next(self._stream)
        self._tickets.append(ticket)
        real = ticket.indices[ticket.indices >= 0]
        # A rank with nothing left makes one sample, to keep in step; `_batch` drops it.
        return real if len(real) else np.zeros(1, np.int64)

    def _tickets_from(self, epoch: int, consumed: int) -> Iterator[_Ticket]:
        plan, generation = self.plan, self._generation
        whole = plan.batch_size * plan.world
        while True:
            order = plan.order(epoch)
            batches = rank_slice(order, plan.batch_size, plan.rank, plan.world, consumed, drop_last=plan.training)
            for number, indices in enumerate(batches, start=1):
                received = min(consumed + number * whole, len(order))
                yield _Ticket(generation, indices, received, number == len(batches))
            epoch, consumed = epoch + 1, 0
