"""Workers that read and decode for an engine: threads of this process, or processes beside it.

Waiting may be broken off anywhere by an exception (Ctrl-C is one) and taken up again: what has been done is noted where
it stays before anybody is woken, so that nothing is lost with a message that nobody received.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np

from petseg.data.decode.boxes import Framing
from petseg.data.decode.images import Chroma
from petseg.data.loaders import child
from petseg.data.loaders.child import BOX_BYTES, LARGEST_MESSAGE, Done, Failure, SharedFile, Task
from petseg.data.loaders.kept import Kept
from petseg.data.shards.files import Span, TarFiles
from petseg.errors import PetsegError
from petseg.system import start_module, started_threads

P = ParamSpec("P")
T = TypeVar("T")

MOST_SAMPLES = 32
"""Samples of one task at most. Larger tasks cost less, and batches that are under way even out their lengths."""


class Work(Protocol):
    """A batch that a crew works on."""

    @property
    def memory(self) -> np.ndarray:
        """u8[bytes]: the memory it is written to, which is not reused while this array is referenced."""
        ...

    def wait(self) -> Failure | None:
        """Wait until it is done; the failure, if there is one. May be called again.

        Raises:
            PetsegError: a process died.
        """
        ...

    def is_done(self) -> bool:
        """Whether it is done; does not wait."""
        ...


class Crew(Protocol):
    """Reads and decodes samples."""

    def keep(self, samples: int, slot: int) -> Kept:
        """Reserve memory for whole images, to be passed to `submit`.

        Args:
            samples: of the split.
            slot: most bytes of one, as `slot_bytes` has them.

        Raises:
            PetsegError: there is none.
        """
        ...

    def forget(self, kept: Kept, /) -> None:
        """Release that memory."""
        ...

    def submit(
        self,
        spans: list[Span],
        framing: Framing,
        starts: Sequence[int],
        *,
        encoded: bool = False,
        kept: Kept | None = None,
        chroma: Chroma = "fancy",
    ) -> Work:
        """Start on a batch of n samples.

        Args:
            spans: where the samples are.
            framing: of the codes, and of the images unless they stay encoded.
            starts: n + 1 ascending numbers: where the room of each image begins in the batch's memory, and where the
                codes do. The boxes follow these, i32[n, 6] with their images' heights and widths.
            encoded: images go as they are.
            kept: whole images are looked for there first, and kept there; of one split.
            chroma: how JPEGs are decoded.
        """
        ...

    def close(self) -> None:
        """Stop the workers and release their memory."""
        ...


def tasks_of(
    batch: int,
    spans: list[Span],
    framing: Framing,
    starts: Sequence[int],
    encoded: bool,
    workers: int,
    at: int = 0,
    kept: Kept | None = None,
    chroma: Chroma = "fancy",
) -> Iterator[Task]:
    """A batch cut into tasks: one to two for two workers, as batches overlap.

    Args:
        batch: its number.
        spans: where the samples are.
        framing: see `Crew.submit`, as for the next two.
        starts: counted from the batch's first byte.
        encoded: images go as they are.
        workers: who will share the tasks.
        at: the batch's first byte in the memory that it is part of.
        kept: see `Crew.submit`, as for the next one.
        chroma: how JPEGs are decoded.
    """
    step = min(MOST_SAMPLES, math.ceil(2 * len(spans) / workers))
    codes_at, pixels = at + starts[-1], math.prod(framing.size)
    boxes_at = codes_at + len(spans) * pixels
    for number, first in enumerate(range(0, len(spans), step)):
        part = spans[first : first + step]
        images_at = [at + start for start in starts[first : first + len(part) + 1]]
        yield Task(
            batch,
            number,
            images_at,
            codes_at + first * pixels,
            boxes_at + first * BOX_BYTES,
            framing._replace(visits=framing.visits[first : first + step]) if framing.visits else framing,
            part,
            encoded,
            kept,
            chroma,
        )


def bytes_of(spans: list[Span], framing: Framing, starts: Sequence[int]) -> int:
    """Bytes of a batch: its images, then its codes, then its boxes."""
    return starts[-1] + len(spans) * (math.prod(framing.size) + BOX_BYTES)


def boxes_in(memory: np.ndarray, count: int) -> np.ndarray:
    """i32[count, 6]: the boxes of a finished batch, and their images' heights and widths; a copy."""
    return memory[len(memory) - count * BOX_BYTES :].copy().view(np.int32).reshape(count, 6)


# --- threads


class Promise(Generic[T]):
    """The future result of a thread."""

    def __init__(self) -> None:
        self._made: list[T] = []
        self._error: BaseException | None = None
        self._woken: SimpleQueue[None] = SimpleQueue()

    def keep(self, make: Callable[[], T]) -> None:
        """Run the call, in this thread."""
        try:
            self._made.append(make())
        except BaseException as error:
            self._error = error
        self._woken.put(None)

    def is_kept(self) -> bool:
        """Whether `result` would return at once."""
        return bool(self._made) or self._error is not None

    def result(self) -> T:
        """Wait for the result or raise its exception; for one waiting thread, any number of times."""
        while not self.is_kept():
            self._woken.get()
        if self._error is not None:
            raise self._error
        return self._made[0]


class Threads:
    """Threads whose results can be waited for safely under Ctrl-C.

    A `Future` cannot: its condition is entered in Python code, and stays locked where an exception comes in the middle.
    """

    def __init__(self, count: int, name: str = "petseg-decode") -> None:
        self.count = count
        self._pool = started_threads(count, name)  # later, Ctrl-C could come into the middle of a start

    def start(self, make: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]:
        """Submit a call."""
        promise: Promise[T] = Promise()
        self._pool.submit(promise.keep, lambda: make(*args, **kwargs))
        return promise

    def do(self, work: Callable[[T], object], parts: Iterable[T]) -> None:
        """Do work on all parts, and wait until it is done."""
        for promise in [self.start(work, part) for part in parts]:
            promise.result()

    def close(self) -> None:
        """End the threads, after their current work."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class _ThreadWork:
    memory: np.ndarray
    tasks: list[Promise[Done]]

    def wait(self) -> Failure | None:
        return next((failure for task in self.tasks if (failure := task.result().failure)), None)

    def is_done(self) -> bool:
        return all(task.is_kept() for task in self.tasks)


class ThreadCrew:
    """Threads of this process, which wait for each other's GIL, and cost nothing to start."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._files = TarFiles()
        self._kept = np.zeros(0, np.uint8)

    def keep(self, samples: int, slot: int) -> Kept:
        """See `Crew`; once."""
        self._kept = np.zeros(samples * slot, np.uint8)
        return Kept(0, slot, samples)

    def forget(self, _kept: Kept, /) -> None:
        """See `Crew`."""
        self._kept = np.zeros(0, np.uint8)

    def submit(
        self,
        spans: list[Span],
        framing: Framing,
        starts: Sequence[int],
        *,
        encoded: bool = False,
        kept: Kept | None = None,
        chroma: Chroma = "fancy",
    ) -> Work:
        """See `Crew`."""
        memory = np.empty(bytes_of(spans, framing, starts), np.uint8)
        tasks = tasks_of(0, spans, framing, starts, encoded, self._threads.count, kept=kept, chroma=chroma)
        return _ThreadWork(
            memory, [self._threads.start(child.work, task, self._files, memory, self._kept) for task in tasks]
        )

    def close(self) -> None:
        """See `Crew`."""
        self._threads.close()
        self._files.close()


# --- processes


def processes_work() -> bool:
    """Whether there are sockets that keep messages whole for many readers, and files without a name.

    Several builds of Python lack the latter on Linux too.
    """
    return sys.platform == "linux" and hasattr(os, "memfd_create")


class _Place(NamedTuple):
    """Part of the shared file, in bytes."""

    capacity: int
    offset: int


@dataclass(slots=True)
class _Batch:
    """A submitted batch, until its memory is released."""

    place: _Place
    outstanding: set[int] = field(default_factory=set)
    """Numbers of the tasks that may have been sent and have not been answered."""
    failure: Failure | None = None
    kept: int = -1
    """Where the kept images begin that its tasks may write to."""


@dataclass(slots=True)
class _ProcessWork:
    memory: np.ndarray
    _processes: Processes
    _number: int

    def wait(self) -> Failure | None:
        return self._processes.wait(self._number)

    def is_done(self) -> bool:
        return self._processes.is_done(self._number)


class Processes:
    """Processes that take their tasks from one queue, for all loaders and threads of this one.

    Use `shared`: they end when everyone who asked for them has closed them, or when this process ends.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.dead = ""
        """How a process died, if one has."""
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._batches: dict[int, _Batch] = {}
        self._dropped: deque[int] = deque()
        self._places: list[_Place] = []
        self._kept: set[int] = set()
        """Places that hold images, by their offsets."""
        self._answers: dict[int, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
        self._poll = select.poll()
        self._poll_room = select.poll()
        # Its pages are memory, and it has no name: nothing of it outlives the processes that hold it.
        self._file = _above_streams(os.memfd_create("petseg"))
        self._shared = SharedFile(self._file)
        self._tasks, queue = _sockets()
        self._tasks.setblocking(False)
        self._poll_room.register(self._tasks, select.POLLOUT)
        self._stop = weakref.finalize(self, _stop, os.getpid(), self._file, self._tasks, self._answers)
        try:
            for _ in range(count):
                mine, theirs = _sockets()
                with theirs:
                    process = _started(self._file, queue.fileno(), theirs.fileno())
                self._answers[mine.fileno()] = mine, process
                self._poll.register(mine, select.POLLIN)
                self._poll_room.register(mine, select.POLLIN)
        except OSError as error:
            self._stop()
            raise PetsegError(
                f"a decoding process cannot be started ({error.strerror}): give fewer --num-threads."
            ) from error
        except BaseException:
            self._stop()
            raise
        finally:
            queue.close()

    @classmethod
    def shared(cls, count: int) -> Processes:
        """The `count` shared processes of this process, started if there are none; release them by `close`.

        Raises:
            PetsegError: they cannot be started.
        """
        key = os.getpid(), count  # a fork must not speak on its parent's sockets
        with _lock:
            processes, users = _shared.get(key, (None, 0))
            if processes is None or processes.dead:
                processes, users = cls(count), 0
            _shared[key] = processes, users + 1
        return processes

    def close(self) -> None:
        """Release one use of the shared processes; see `Crew`."""
        key = os.getpid(), self.count
        with _lock:
            processes, users = _shared.get(key, (None, 0))
            if processes is self and users > 1:
                _shared[key] = self, users - 1
                return
            if processes is self:
                del _shared[key]
        self._stop()

    def keep(self, samples: int, slot: int) -> Kept:
        """See `Crew`."""
        with self._lock:
            place = self._free_place(samples * slot)
            self._shared.empty(place.offset, place.offset + place.capacity)
            self._kept.add(place.offset)
        return Kept(place.offset, slot, samples)

    def forget(self, kept: Kept, /) -> None:
        """See `Crew`."""
        with self._lock:
            self._kept.discard(kept.at)
            place = next(place for place in self._places if place.offset == kept.at)
            self._shared.empty(place.offset, place.offset + place.capacity)

    def submit(
        self,
        spans: list[Span],
        framing: Framing,
        starts: Sequence[int],
        *,
        encoded: bool = False,
        kept: Kept | None = None,
        chroma: Chroma = "fancy",
    ) -> Work:
        """See `Crew`."""
        with self._lock:
            number, length = next(self._numbers), bytes_of(spans, framing, starts)
            place = self._free_place(length)
            memory = self._shared.upto(place.offset + length)[place.offset : place.offset + length]
            weakref.finalize(memory, self._dropped.append, number).atexit = False
            batch = self._batches[number] = _Batch(place, kept=kept.at if kept else -1)
            for task in tasks_of(number, spans, framing, starts, encoded, self.count, place.offset, kept, chroma):
                message = pickle.dumps(task)
                # First: if an exception comes now, the place is never used again, as the task may have been sent.
                batch.outstanding.add(task.number)
                self._send(message)
        return _ProcessWork(memory, self, number)

    def wait(self, number: int) -> Failure | None:
        """See `Work`."""
        with self._lock:
            batch = self._batches[number]
            while batch.outstanding:
                self._take_answers(self._poll)
            return batch.failure

    def is_done(self, number: int) -> bool:
        """See `Work`.

        Raises:
            PetsegError: a process died.
        """
        with self._lock:
            batch = self._batches[number]
            while batch.outstanding and self._poll.poll(0):
                self._take_answers(self._poll)
            return not batch.outstanding

    def _free_place(self, size: int) -> _Place:
        for _ in range(len(self._dropped)):
            dropped = self._batches.get(self._dropped[0])
            if dropped is not None and dropped.outstanding:
                self._dropped.rotate(-1)  # somebody may still write there
            else:
                self._batches.pop(self._dropped[0], None)
                self._dropped.popleft()
        used = {batch.place.offset for batch in self._batches.values()} | self._kept
        used |= {batch.kept for batch in self._batches.values() if batch.outstanding}
        free = [place for place in self._places if place.capacity >= size and place.offset not in used]
        if free:
            return min(free)
        end = sum(place.capacity for place in self._places)
        # Batches of encoded images differ in length; rounded up, they find each other's places. Pages that nobody
        # writes to take no memory.
        capacity = max(1 << 12, 1 << (size - 1).bit_length())
        try:
            os.ftruncate(self._file, end + capacity)
        except OSError as error:
            raise PetsegError(
                f"{end + capacity:,} bytes of memory cannot be shared with decoding processes ({error.strerror}): "
                "raise the limit on file sizes (ulimit -f), or give a smaller --batch-size."
            ) from error
        self._places.append(_Place(capacity, end))
        return self._places[-1]

    def _send(self, message: bytes) -> None:
        if len(message) > LARGEST_MESSAGE:
            raise PetsegError("the path of the shards is too long: move them to a folder with a shorter one.")
        while True:
            try:
                self._tasks.send(message)
            except (BlockingIOError, BrokenPipeError):
                # The queue is full, or nobody is left to read it. Answers have to be taken meanwhile, or the
                # processes would wait to give them.
                self._take_answers(self._poll_room)
            else:
                return

    def _take_answers(self, poll: select.poll) -> None:
        """Receive results, and record them."""
        if self.dead:
            raise PetsegError(self.dead)
        for file, _ in poll.poll():
            if file not in self._answers:
                continue  # there is room in the queue
            answers, process = self._answers[file]
            try:
                # It is taken off the socket only when it has been noted, and may be noted twice.
                message = answers.recv(LARGEST_MESSAGE, socket.MSG_PEEK)
            except ConnectionError:
                message = b""
            if not message:
                code = process.wait()
                how = f"signal {-code}, perhaps out of memory" if code < 0 else f"exit code {code}"
                self.dead = f"a decoding process died ({how}): start again, with fewer --num-threads."
                raise PetsegError(self.dead)
            done: Done = pickle.loads(message)
            batch = self._batches.get(done.batch)
            if batch is not None:
                batch.failure = batch.failure or done.failure
                batch.outstanding.discard(done.number)
            answers.recv(1)  # the whole message: these sockets keep no rest


_shared: dict[tuple[int, int], tuple[Processes, int]] = {}
_lock = threading.RLock()  # a finaliser may close in the middle of anything


def _started(shared: int, tasks: int, done: int) -> subprocess.Popen[bytes]:
    return start_module(
        "petseg.data.loaders.child",
        *map(str, (shared, tasks, done)),
        pass_fds=(shared, tasks, done),
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # one core each
    )


def _above_streams(file: int) -> int:
    """A descriptor for the same file above 2: where a standard stream is closed, a new file may get its number."""
    if file > 2:
        return file
    import fcntl  # which there is not everywhere

    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(file)


def _sockets() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = (socket.socket(fileno=_above_streams(each.detach())) for each in pair)
    return one, other


def _stop(parent: int, file: int, tasks: socket.socket, answers: dict[int, tuple[socket.socket, Any]]) -> None:
    tasks.close()
    os.close(file)
    for socket_, process in answers.values():
        if os.getpid() == parent:  # and not a fork that merely lets go of what it has inherited
            process.kill()  # it holds nothing that could be lost
        socket_.close()
    for _, process in answers.values():
        if os.getpid() == parent:
            process.wait()
