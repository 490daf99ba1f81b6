"""Processes that decode for all loaders of this one, and the file that they share with it."""

from __future__ import annotations

import mmap
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from petseg.data.loaders.worker import LARGEST_MESSAGE, Done, Failure, Shared, Task
from petseg.errors import PetsegError

SUPPORTED = sys.platform == "linux"
"""Whether there are sockets that keep messages whole for many readers, and files without a name."""


class _Place(NamedTuple):
    """Part of the shared file."""

    capacity: int
    """Bytes."""
    offset: int


@dataclass(slots=True)
class _Batch:
    """What was submitted, until its place is given back."""

    place: _Place
    size: int
    """Bytes."""
    tasks: int
    """Those that have not been heard of."""
    failure: Failure | None = None


class Workers:
    """Decoding processes that take their tasks from one queue; for any number of threads.

    Use `shared`: the processes end when everyone who asked for them has released them, or when this process ends.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.dead = False
        self._lock = threading.RLock()
        self._tickets = 0
        self._batches: dict[int, _Batch] = {}
        self._dropped: deque[int] = deque()
        self._free: list[_Place] = []
        self._end = 0
        # Its pages are memory, and it has no name: nothing of it outlives the processes that hold it.
        self._file = os.memfd_create("petseg")
        self._shared = Shared(self._file)
        self._tasks, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tasks.setblocking(False)
        self._poll = select.poll()
        self._done: dict[int, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
        self._stop = weakref.finalize(self, _stop, self._file, self._tasks, self._done)
        try:
            for _ in range(count):
                mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    process = _started(self._file, queue.fileno(), theirs.fileno())
                self._done[mine.fileno()] = mine, process
                self._poll.register(mine, select.POLLIN)
        except OSError as error:
            self._stop()
            raise PetsegError(
                f"a decoding process cannot be started ({error.strerror}): give fewer --num-threads."
            ) from error
        finally:
            queue.close()

    @classmethod
    def shared(cls, count: int) -> Workers:
        """The `count` processes of this one, started if there are none; to be given back by `release`.

        Raises:
            PetsegError: they cannot be started.
        """
        key = os.getpid(), count  # a fork must not speak on its parent's sockets
        with _lock:
            workers, users = _shared.get(key, (None, 0))
            if workers is None or workers.dead:
                workers, users = cls(count), 0
            _shared[key] = workers, users + 1
        return workers

    def release(self) -> None:
        """Give back what `shared` gave."""
        key = os.getpid(), self.count
        with _lock:
            workers, users = _shared.get(key, (None, 0))
            if workers is self and users > 1:
                _shared[key] = self, users - 1
                return
            if workers is self:
                del _shared[key]
        self._stop()

    def submit(self, tasks: Sequence[Task], size: int) -> int:
        """Queue a batch of `size` bytes; its ticket.

        Args:
            tasks: their tickets are filled in here, and their offsets count from the batch's first byte.
            size: bytes of all rows.
        """
        with self._lock:
            ticket, self._tickets = self._tickets, self._tickets + 1
            place = self._place(size)
            self._batches[ticket] = _Batch(place, size, len(tasks))
            for task in tasks:
                images_at, codes_at = place.offset + task.images_at, place.offset + task.codes_at
                self._send(pickle.dumps(task._replace(ticket=ticket, images_at=images_at, codes_at=codes_at)))
        return ticket

    def wait(self, ticket: int) -> Failure | None:
        """Wait until a batch is done; what went wrong, if anything did.

        Raises:
            PetsegError: a process died.
        """
        with self._lock:
            batch = self._batches[ticket]
            while batch.tasks:
                self._hear()
            return batch.failure

    def is_sound(self, ticket: int) -> bool:
        """Whether a batch is done, and nothing was wrong with it; does not wait.

        Raises:
            PetsegError: a process died.
        """
        with self._lock:
            batch = self._batches[ticket]
            while batch.tasks and self._poll.poll(0):
                self._hear()
            return not batch.tasks and batch.failure is None

    def take(self, ticket: int) -> np.ndarray:
        """The bytes of a batch that is done, u8[size]; its place is used again when the array is gone."""
        with self._lock:
            batch = self._batches[ticket]
            found = self._shared.rows(batch.place.offset, (batch.size,))
        weakref.finalize(found, self.drop, ticket).atexit = False
        return found

    def drop(self, ticket: int) -> None:
        """Be done with a batch, also with one that is under way."""
        self._dropped.append(ticket)  # nothing more: a finaliser may call this in the middle of anything

    def _place(self, size: int) -> _Place:
        for _ in range(len(self._dropped)):
            ticket = self._dropped.popleft()
            if self._batches[ticket].tasks:
                self._dropped.append(ticket)
            else:
                self._free.append(self._batches.pop(ticket).place)
        fitting = [place for place in self._free if place.capacity >= size]
        if fitting:
            self._free.remove(min(fitting))
            return min(fitting)
        capacity = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._end += capacity
        try:
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise PetsegError(
                f"{self._end:,} bytes of memory cannot be shared with decoding processes ({error.strerror}): raise the "
                "limit on file sizes (ulimit -f), or give a smaller --batch-size."
            ) from error
        return _Place(capacity, self._end - capacity)

    def _send(self, message: bytes) -> None:
        if len(message) > LARGEST_MESSAGE:
            raise PetsegError("the path of the shards is too long: move them to a folder with a shorter one.")
        while True:
            try:
                self._tasks.send(message)
            except (BlockingIOError, BrokenPipeError):
                # The queue is full, or nobody is left to read it. What is done has to be heard of meanwhile, or the
                # processes would wait to say so.
                self._poll.register(self._tasks, select.POLLOUT)
                try:
                    self._hear()
                finally:
                    self._poll.unregister(self._tasks)
            else:
                return

    def _hear(self) -> None:
        """Wait for something, and note it."""
        for file, _ in self._poll.poll():
            if file not in self._done:
                continue  # there is room in the queue
            socket_, process = self._done[file]
            try:
                message = socket_.recv(LARGEST_MESSAGE)
            except ConnectionError:
                message = b""
            if not message:
                self.dead = True
                code = process.wait()
                how = f"signal {-code}, perhaps for want of memory" if code < 0 else f"exit code {code}"
                raise PetsegError(f"a decoding process died ({how}): start again, with fewer --num-threads.")
            done: Done = pickle.loads(message)
            batch = self._batches[done.ticket]
            batch.tasks -= 1
            batch.failure = done.failure or batch.failure


_shared: dict[tuple[int, int], tuple[Workers, int]] = {}
_START = "from petseg.data.loaders.worker import main; main()"
_lock = threading.RLock()  # a finaliser may release in the middle of anything


def _started(shared: int, tasks: int, done: int) -> subprocess.Popen[bytes]:
    path = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        # -P: a module in the current folder must not stand in for one of the standard library.
        [sys.executable, "-P", "-c", _START, str(shared), str(tasks), str(done)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(shared, tasks, done),
        # torch is imported there only to reduce large images, and then computes on one thread.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"},
        process_group=0,  # Ctrl-C is for the process that trains; these end with it
    )


def _stop(file: int, tasks: socket.socket, done: dict[int, tuple[socket.socket, subprocess.Popen[bytes]]]) -> None:
    tasks.close()
    for _, process in done.values():
        process.kill()  # it holds nothing that could be lost
    for socket_, process in done.values():
        process.wait()
        socket_.close()
    os.close(file)
