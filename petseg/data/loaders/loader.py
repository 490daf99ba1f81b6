"""What every loader shares: batches, the state, the order, and one endless stream of batches made ahead."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from petseg.classes import CROSS_ENTROPY_IGNORES, ClassTable
from petseg.data.order import epoch_order, rank_slice
from petseg.errors import PetsegError

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's batch, on the device.

    Example:
        >>> loss = F.cross_entropy(network(batch.images.permute(0, 3, 1, 2) / 255), batch.masks)  # doctest: +SKIP
    """

    images: torch.Tensor
    """u8[N, H, W, 3], RGB. `images.permute(0, 3, 1, 2)` is channels_last without a copy."""
    codes: torch.Tensor
    """u8[N, H, W], the codes of the mask files."""
    indices: torch.Tensor
    """i64[N], sample indices within the split; -1 marks a padding row (zeros in `images` and `codes`)."""
    classes: ClassTable
    """What the codes mean."""

    @property
    def masks(self) -> torch.Tensor:
        """Class indices i64[N, H, W] in [0, C), or -100, which cross-entropy ignores: void pixels and padding rows."""
        return self.classes.masks(self.codes, self.indices, ignore=CROSS_ENTROPY_IGNORES)


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


class Pixels(NamedTuple):
    """What an engine makes of one submission, on the device."""

    images: torch.Tensor
    """u8[n, H, W, 3]."""
    codes: torch.Tensor
    """u8[n, H, W]."""


class Engine(Protocol):
    """Turns sample indices into pixels: what was submitted first is received first."""

    def submit(self, indices: np.ndarray, size: Size) -> None:
        """Start on a batch, i64[n] with 1 <= n <= batch size, at (height, width) in pixels."""
        ...

    def receive(self) -> Pixels:
        """The oldest batch that was submitted and not yet received.

        The tensors are the receiver's own: no later call writes into them. An engine that raised is done for.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


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
    bad: tuple[int, ...] = ()
    """Damaged samples. Training takes the next sound one in place of each, evaluation leaves them out."""

    @property
    def total(self) -> int:
        """Samples of an epoch."""
        return sum(self.sizes) - (0 if self.training else len(self.bad))

    def order(self, epoch: int) -> np.ndarray:
        """i64[n]: the order in which the world visits the split."""
        if self.training:
            order = epoch_order(self.sizes, self.seed, epoch, self.window)
        else:
            order = np.arange(sum(self.sizes), dtype=np.int64)
        if not self.bad:
            return order
        sound = np.setdiff1d(order, self.bad)
        # Every sample keeps its place, so that a run goes on where it was, also after the shards were mended.
        return sound[np.searchsorted(sound, order) % len(sound)] if self.training else sound

    def batches(self, epoch: int, consumed: int = 0) -> np.ndarray:
        """i64[steps, batch size]: this rank's batches from `consumed` to the end of an epoch (see `rank_slice`)."""
        return rank_slice(self.order(epoch), self.batch_size, self.rank, self.world, consumed, drop_last=self.training)

    def steps(self, consumed: int) -> int:
        """Batches of each rank from `consumed` to the end of an epoch."""
        left, whole = self.total - consumed, self.batch_size * self.world
        return left // whole if self.training else -(-left // whole)


class _Ticket(NamedTuple):
    """A batch that was submitted to the engine."""

    indices: np.ndarray
    """i64[batch size], -1 for padding."""
    real: int
    """Samples at its head that are no padding; of a batch without any, the engine hears nothing."""
    size: Size
    consumed: int
    """Samples of the epoch that the whole world has once this batch is received."""
    last: bool
    """It is the epoch's last."""


class Loader:
    """Batches in petseg's order, from an engine.

    Iterating goes on from `consumed` to the end of the epoch; the loader then stands at the start of the next one.
    Batches are submitted from one stream that never ends: after an epoch's last batch comes the next epoch's first, so
    nothing drains between epochs.

    Args:
        plan: which batches.
        classes: what the masks' codes mean.
        size: (height, width) in pixels, or a function of the epoch that gives it.
        device: where the batches go.
        engine: makes the pixels; closed together with the loader.
        prefetch_batches: batches that are under way while the receiver works on one.
        skipped: names of the plan's damaged samples.

    Example:
        >>> state = loader.state_dict()  # after any batch  # doctest: +SKIP
        >>> another_loader.load_state_dict(state)  # of another kind, batch size or number of ranks  # doctest: +SKIP
    """

    def __init__(
        self,
        plan: LoaderPlan,
        classes: ClassTable,
        size: Size | Callable[[int], Size],
        device: torch.device,
        engine: Engine,
        prefetch_batches: int = 2,
        skipped: tuple[str, ...] = (),
    ) -> None:
        if not plan.steps(0):
            raise ValueError("there is no batch to make")
        self.plan = plan
        self.classes = classes
        self.skipped = skipped
        self._size: Callable[[int], Size] = size if callable(size) else lambda _: size
        # Then what was made ahead for the next epoch serves any other.
        self._epochs_alike = not (plan.training or callable(size))
        self.device = device
        self._on_cpu = device.type == "cpu"
        self._ahead = prefetch_batches
        self._epoch = 0
        self._consumed = 0
        self._iteration = 0
        self._tickets: deque[_Ticket] = deque()
        self._abandoned = 0  # submissions of an earlier place, still to be received and thrown away
        self._failure: PetsegError | None = None
        self._stream = self._tickets_from(0, 0)
        self._engine: Engine | None = engine

    def __len__(self) -> int:
        """Batches that remain in this epoch."""
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
        if found.epoch < 0 or not 0 <= found.consumed <= plan.total:
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
                ticket, pixels = self._receive(self._engine)
            except PetsegError as error:
                self._failure = error
                raise
            self._epoch, self._consumed = (self._epoch + 1, 0) if ticket.last else (self._epoch, ticket.consumed)
            yield self._batch(ticket, pixels)
            if ticket.last:
                return

    def _receive(self, engine: Engine) -> tuple[_Ticket, Pixels | None]:
        while self._abandoned:
            engine.receive()
            self._abandoned -= 1
        while len(self._tickets) <= self._ahead:
            ticket = next(self._stream)
            self._tickets.append(ticket)
            if ticket.real:
                engine.submit(ticket.indices[: ticket.real], ticket.size)
        ticket = self._tickets.popleft()
        return ticket, engine.receive() if ticket.real else None

    def _batch(self, ticket: _Ticket, pixels: Pixels | None) -> Batch:
        indices = torch.from_numpy(ticket.indices)
        if not self._on_cpu:
            indices = indices.to(self.device, non_blocking=True)
        if pixels is not None and ticket.real == len(ticket.indices):
            return Batch(pixels.images, pixels.codes, indices, self.classes)
        shape = (len(ticket.indices), *ticket.size)
        images = torch.zeros((*shape, 3), dtype=torch.uint8, device=self.device)
        codes = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        if pixels is not None:
            images[: ticket.real], codes[: ticket.real] = pixels
        return Batch(images, codes, indices, self.classes)

    def _move(self, epoch: int, consumed: int) -> None:
        self._iteration += 1
        stays = consumed == self._consumed and (epoch == self._epoch or self._epochs_alike)
        if not stays or not self.plan.steps(consumed):
            self._abandoned += sum(ticket.real > 0 for ticket in self._tickets)
            self._tickets.clear()
            self._stream = self._tickets_from(epoch, consumed)
        self._epoch, self._consumed = epoch, consumed

    def _tickets_from(self, epoch: int, consumed: int) -> Iterator[_Ticket]:
        plan = self.plan
        whole, total = plan.batch_size * plan.world, plan.total
        while True:
            batches, size = plan.batches(epoch, consumed), self._size(epoch)
            padded = 0 if plan.training else int((batches[-1:] < 0).sum())
            for number, indices in enumerate(batches, start=1):
                last = number == len(batches)
                real = plan.batch_size - (padded if last else 0)
                yield _Ticket(indices, real, size, min(consumed + number * whole, total), last)
            epoch, consumed = epoch + 1, 0
