"""The loader: batches in petseg's order from an engine, its state, and prefetching across epochs."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from petseg.classes import CROSS_ENTROPY_IGNORES, ClassTable
from petseg.data.decode.boxes import SQUASH, Fit, Framing
from petseg.data.order import VISIT, EpochOrder, Order, rank_batches
from petseg.data.weights import digest_of
from petseg.errors import PetsegError

Size = tuple[int, int]
"""(height, width) in pixels."""


_NOWHERE: tuple[int, int, Iterator[np.ndarray]] = (-1, 0, iter(()))

_FORMAT = 2
"""Version of a loader's state. The first had neither `order`, `lanes`, `weights`, `fit` nor `decode`."""


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """One rank's batch, on the device.

    Examples:
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
    boxes: torch.Tensor = field(default_factory=lambda: torch.zeros((0, 4), dtype=torch.int32))
    """i32[N, 4], on the host: top, left, height and width of what each row shows, in its image's pixels (beyond them
    where it is padded); zeros in a padding row."""
    visits: torch.Tensor | None = None
    """i64[N]: how often this epoch was at each sample before; None where it is there once."""

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.images.shape))
        return f"Batch(images u8[{shape}], {self.classes}, on {self.images.device})"

    @property
    def masks(self) -> torch.Tensor:
        """Class indices i64[N, H, W] in [0, C), or -100, which cross-entropy ignores: void pixels and padding rows."""
        return self.classes.masks(self.codes, self.indices, ignore=CROSS_ENTROPY_IGNORES)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """The position of a loader: enough to resume under another loader, batch size or number of ranks."""

    digest: str
    """The manifest's digest."""
    split: str
    seed: int
    epoch: int
    consumed: int
    """Samples of this epoch that the whole world has received (not merely prefetched)."""
    window: int | None = None
    order: int = 1
    """Which rule orders an epoch."""
    lanes: int = 1
    """Into how many parts the shards are dealt, each for a node of its own."""
    weights: str | None = None
    """Digest of the samples' weights; None where each is visited once an epoch."""
    fit: str = "squash"
    """How images become inputs, as `Fit` says it."""
    decode: str = "fancy-upsampling"
    """How JPEGs are decoded, as checkpoints say it."""
    format: int = _FORMAT


class Pixels(NamedTuple):
    """The pixels of one submission, on the device."""

    images: torch.Tensor
    """u8[n, H, W, 3]."""
    codes: torch.Tensor
    """u8[n, H, W]."""
    boxes: np.ndarray
    """i32[n, 4], on the host."""


class Pending(Protocol):
    """A batch that was submitted to an engine."""

    def receive(self) -> Pixels:
        """Wait for its pixels.

        An exception may break this off anywhere, Ctrl-C too; then it may be called again, and gives these same samples.
        The tensors are the receiver's own: nothing that is received later is written into them.

        Raises:
            PetsegError: a sample cannot be read or decoded, or the engine failed; so it will be the next time.
        """
        ...


class Engine(Protocol):
    """Decodes samples by index. Which batches have been received is tracked by the loader, not here."""

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """Start on a batch, i64[n] with 1 <= n <= batch size: which box of each sample, and how large.

        Batches are received in the order in which they were submitted; one that is passed over is abandoned.
        """
        ...

    def close(self) -> None:
        """Release threads and memory."""
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
    lanes: int = 1
    nodes: int = 1
    """Machines that the lanes are shared by; 1 where every machine may need any shard."""
    weights: np.ndarray | None = None
    """f64[samples], in proportion to which training visits them; None for once an epoch each."""
    bad: tuple[int, ...] = ()
    """Damaged samples. Training takes the next sound one in place of each, evaluation leaves them out."""

    @property
    def total(self) -> int:
        """Samples of an epoch."""
        return sum(self.sizes) - (0 if self.training else len(self.bad))

    @property
    def version(self) -> int:
        """Of the rule that orders an epoch."""
        if not self.training or self.weights is not None:
            return 1
        return EpochOrder(self.sizes, self.seed, 0, self.window, lanes=self.lanes).version

    def order(self, epoch: int) -> Order:
        """The order in which the world visits the split, repeated visits distinguished as in `epoch_order`."""
        if self.training:
            order = EpochOrder(self.sizes, self.seed, epoch, self.window, self.weights, self.lanes)
            return _Mended(order, sum(self.sizes), self.bad) if self.bad else order
        every = np.arange(sum(self.sizes), dtype=np.int64)
        return np.setdiff1d(every, self.bad) if self.bad else every

    def node_order(self, epoch: int) -> np.ndarray:
        """i64[m]: what of the order is this machine's."""
        return self.order(epoch)[:][self.rank // (self.world // self.nodes) :: self.nodes]

    def batches(self, epoch: int, consumed: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches, i64[batch size], from `consumed` to the end of an epoch (see `rank_batches`)."""
        return rank_batches(
            self.order(epoch),
            self.batch_size,
            self.rank,
            self.world,
            consumed,
            drop_last=self.training,
            nodes=self.nodes,
        )

    def steps(self, consumed: int) -> int:
        """Batches of each rank from `consumed` to the end of an epoch."""
        left, whole = self.total - consumed, self.batch_size * self.world
        return left // whole if self.training else -(-left // whole)


class _Mended:
    """An order in which the next sound sample stands in the place of each damaged one.

    Every sample keeps its place, so that a run resumes where it was, also after the shards were mended.
    """

    def __init__(self, order: EpochOrder, samples: int, bad: tuple[int, ...]) -> None:
        self._order = order
        self._sound = np.setdiff1d(np.arange(samples, dtype=np.int64), bad)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, positions: slice) -> np.ndarray:
        order, sound = self._order[positions], self._sound
        found: np.ndarray = sound[np.searchsorted(sound, order % VISIT) % len(sound)] + order // VISIT * VISIT
        return found


class _Record(NamedTuple):
    """A batch, from its submission until its pixels are there."""

    begins: tuple[int, int]
    """Its place: the epoch (0 where epochs are alike), and the samples that the world has received before it."""
    ends: tuple[int, int]
    """The place of the next one."""
    last: bool
    """It is the epoch's last."""
    indices: np.ndarray
    """i64[batch size], -1 for padding."""
    visits: tuple[int, ...]
    """See `Framing`."""
    size: Size
    pending: Pending | None
    """None for a batch of padding alone."""


class Loader:
    """Batches in petseg's order, from an engine.

    Iterating continues from `consumed` to the end of the epoch; the loader then stands at the start of the next one.
    After an epoch's last batch the next epoch's first ones are under way, so nothing drains between epochs.

    An exception that comes while a batch is awaited, Ctrl-C too, loses nothing: the next iteration begins with it.

    Args:
        plan: which batches.
        classes: what the masks' codes mean.
        size: (height, width) in pixels, or a function of the epoch that gives it.
        fit: how images become inputs of that size; crops are for training.
        device: where the batches go.
        engine: makes the pixels; closed together with the loader.
        prefetch_batches: batches that are under way while the receiver works on one.
        skipped: names of the plan's damaged samples.
        decode: the engine's decode policy.

    Examples:
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
        fit: Fit = SQUASH,
        decode: str = "fancy-upsampling",
    ) -> None:
        if not plan.steps(0):
            raise ValueError("there is no batch to make")
        self.fit = fit
        self.decode = decode
        self._weights_digest = digest_of(plan.weights)
        self._codes, self._outside = bytes(classes.codes), classes.outside
        self.plan = plan
        self.classes = classes
        self.skipped = skipped
        self._size: Callable[[int], Size] = size if callable(size) else lambda _: size
        # Then what was made ahead for the next epoch serves any other.
        self._epochs_alike = not (plan.training or callable(size))
        self.device = device
        self._on_cpu = device.type == "cpu"
        self._ahead = prefetch_batches
        self._pid = os.getpid()
        self._iteration = 0
        # Where the loader stands; set as one, so that no exception comes between its parts.
        self._position = (0, 0)
        # Those whose place is not `_position` or does not follow from it were received, or are of an earlier place.
        self._queue: deque[_Record] = deque()
        self._order = _NOWHERE
        """The epoch, what is consumed before the next batch, and the batches from it on."""
        self._version = plan.version
        self._engine: Engine | None = engine

    def __repr__(self) -> str:
        epoch, consumed = self._position
        return (
            f"Loader({self.plan.split}, {self.plan.total:,} samples, epoch {epoch}, {consumed:,} received, batches of "
            f"{self.plan.batch_size}, on {self.device})"
        )

    def __len__(self) -> int:
        """Batches that remain in this epoch."""
        return self.plan.steps(self._position[1])

    def __iter__(self) -> Iterator[Batch]:
        """Batches from here to the end of the epoch; an earlier iteration that had not come to its end is over.

        Raises:
            PetsegError: a sample is damaged, a process died, or the loader is of another process.
            RuntimeError: from an iteration that is over: another one was begun, or the loader was moved.
        """
        self._check_process()
        self._iteration += 1
        return self._iterate(self._iteration)

    def start(self) -> None:
        """Begin with the first batches, without waiting for them."""
        self._check_process()
        if self._engine is not None and len(self):
            self._next(self._engine)

    def set_epoch(self, epoch: int) -> None:
        """Move to the first sample of `epoch`."""
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
                epoch=self._position[0],
                consumed=self._position[1],
                window=plan.window,
                order=self._version,
                lanes=plan.lanes,
                weights=self._weights_digest,
                fit=str(self.fit),
                decode=self.decode,
            )
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of `state`.

        Raises:
            PetsegError: the state is of another data set, split, seed or window, a newer format, or damaged.
        """
        plan = self.plan
        try:
            if state["format"] > _FORMAT:
                raise PetsegError("this loader state was written by a newer petseg: upgrade petseg.")
            found = LoaderState(**{**state, "format": _FORMAT})  # what an older state lacks has its default
        except (KeyError, TypeError) as error:
            raise PetsegError(f"this is not a valid loader state ({error}): resume from another checkpoint.") from error
        if found.digest != plan.digest:
            raise PetsegError(
                "these are not the shards that the run was trained on, or some were added: give the same ones to "
                "resume, or begin a new run from its weights (--init-from)."
            )
        mine = LoaderState(**self.state_dict())
        for name in ("split", "seed", "window", "order", "lanes", "weights", "fit", "decode"):
            if getattr(found, name) != getattr(mine, name):
                raise PetsegError(
                    f"the loader state is of {name} {getattr(found, name)}, not {getattr(mine, name)}: the "
                    f"{'images' if name in {'fit', 'decode'} else 'order'} would differ; resume with the same."
                )
        if found.epoch < 0 or not 0 <= found.consumed <= plan.total:
            raise PetsegError("this loader state does not fit its data set: resume from another checkpoint.")
        self._move(found.epoch, found.consumed)

    def close(self) -> None:
        """Release threads, processes and memory, at once. A closed loader yields nothing more."""
        self._iteration += 1
        engine, self._engine = self._engine, None
        self._queue.clear()
        if engine is not None:
            engine.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Loader holds processes and open files, so it cannot be pickled or copied: call build_loader in the "
            "process that uses it, or give a DataLoader an OrderedSamples."
        )

    def _iterate(self, iteration: int) -> Iterator[Batch]:
        if not len(self):
            # Nothing but a dropped tail is left of this epoch.
            self._move(self._position[0] + 1, 0)
            return
        last = False
        while self._engine is not None and not last:
            if iteration != self._iteration:
                raise RuntimeError(
                    "this iteration over the loader is over: another one was begun, or set_epoch or load_state_dict "
                    "called; use one loop at a time over a loader."
                )
            self._check_process()
            record = self._next(self._engine)
            batch = self._batch(record, record.pending.receive() if record.pending else None)
            last = record.last
            self._position = self._position[0] + last, record.ends[1]
            self._queue.popleft()
            yield batch

    def _next(self, engine: Engine) -> _Record:
        """The record of the next batch, with `prefetch_batches` more submitted after it."""
        queue, place = self._queue, self._position
        if self._epochs_alike:
            place = 0, place[1]
        while queue and queue[0].begins != place:
            queue.popleft()
        while len(queue) <= self._ahead:
            queue.append(self._submitted(engine, *(queue[-1].ends if queue else place)))
        return queue[0]

    def _submitted(self, engine: Engine, epoch: int, consumed: int) -> _Record:
        plan = self.plan
        (known, at, batches), self._order = self._order, _NOWHERE  # if this is broken off, they are made again
        if (epoch, consumed) != (known, at):
            batches = plan.batches(epoch, consumed)
        indices, whole = next(batches), plan.batch_size * plan.world
        self._order = epoch, consumed + whole, batches
        last = plan.steps(consumed) == 1
        real = int((indices >= 0).sum()) if last else len(indices)
        size = self._size(epoch)
        visits: tuple[int, ...] = ()
        if plan.weights is not None:
            visits, indices = tuple((indices // VISIT).tolist()), indices % VISIT
        framing = Framing(size, self.fit, plan.seed, epoch, self._codes, self._outside, visits)
        pending = engine.submit(indices[:real], framing) if real else None
        ends = (0 if self._epochs_alike else epoch + 1, 0) if last else (epoch, consumed + whole)
        return _Record((epoch, consumed), ends, last, indices, visits, size, pending)

    def _batch(self, record: _Record, pixels: Pixels | None) -> Batch:
        indices = torch.from_numpy(record.indices)
        visits = torch.tensor(record.visits) if record.visits else None
        if not self._on_cpu:
            indices = indices.to(self.device, non_blocking=True)
            visits = None if visits is None else visits.to(self.device, non_blocking=True)
        real = 0 if pixels is None else len(pixels.images)
        boxes = torch.zeros((len(record.indices), 4), dtype=torch.int32)
        if pixels is not None:
            boxes[:real] = torch.from_numpy(pixels.boxes)
        if pixels is not None and real == len(record.indices):
            return Batch(pixels.images, pixels.codes, indices, self.classes, boxes, visits)
        shape = (len(record.indices), *record.size)
        images = torch.zeros((*shape, 3), dtype=torch.uint8, device=self.device)
        codes = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        if pixels is not None:
            images[:real], codes[:real] = pixels.images, pixels.codes
        return Batch(images, codes, indices, self.classes, boxes, visits)

    def _move(self, epoch: int, consumed: int) -> None:
        self._iteration += 1
        self._position = epoch, consumed

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise PetsegError(
                "this loader belongs to the process that made it, and this one is a fork of it: call build_loader in "
                "the process that uses it."
            )
