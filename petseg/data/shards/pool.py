"""Jobs on worker processes that report as they go, end with their parent and never outlive an error."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from petseg.errors import PetsegError

J = TypeVar("J")

Report = Callable[[int], None]
"""Called by a job with the number of samples that it has finished since its last call."""


class Work(Protocol):
    """A function of one job. Picklable, as are its jobs and results."""

    def __call__(self, job: Any, report: Report) -> Any:
        """Do one job."""
        ...


class Runner(Protocol):
    """`run_jobs`, or what does the same elsewhere."""

    def __call__(
        self, work: Work, jobs: Sequence[Any], *, workers: int, progress: Report
    ) -> Generator[Any, None, None]:
        """Do jobs, and yield their results as they come."""
        ...


class Made(Sequence[J]):
    """Jobs that are made when they are asked for: all at once may take more memory than there is."""

    def __init__(self, make: Callable[[int], J], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._make(number)


def run_jobs(work: Work, jobs: Sequence[Any], *, workers: int, progress: Report) -> Generator[Any, None, None]:
    """Do jobs, handed out in order, and yield their results as they come.

    With one worker (or one job) everything happens in this process.

    Args:
        work: does one job.
        jobs: what is to be done, largest first for an even load.
        workers: processes, at least 1.
        progress: called in this process with what the jobs report.

    Raises:
        PetsegError: from a job, or a worker that died. The other workers are ended first.
        RuntimeError: any other error in a worker, with the worker's traceback.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield work(job, progress)
        return
    pool: dict[Connection, BaseProcess] = {}
    waiting = iter(jobs)
    try:
        context = _context()
        for _ in range(min(workers, len(jobs))):
            ours, theirs = context.Pipe()
            # mypy: BaseContext declares no Process.
            process = context.Process(  # type: ignore[attr-defined]
                target=_serve, args=(work, theirs, dict(os.environ)), daemon=True
            )
            process.start()
            theirs.close()
            pool[ours] = process
        # Only now: a job may fill the pipe, and then sending it waits until its process has started.
        for connection, process in pool.items():
            with _death_said(process):
                connection.send(next(waiting))
        while pool:
            for ready in wait(list(pool)):
                assert isinstance(ready, Connection)  # for the type checker; wait returns what it was given
                with _death_said(pool[ready]):
                    kind, value = ready.recv()
                if kind == "progress":
                    progress(value)
                    continue
                if kind == "refused":
                    raise PetsegError(value)
                if kind == "failed":
                    raise RuntimeError(f"packing failed in a worker process:\n{value}")
                if (job := next(waiting, None)) is not None:
                    with _death_said(pool[ready]):
                        ready.send(job)
                else:
                    ready.close()
                    pool.pop(ready).join()
                yield value
    finally:
        for process in pool.values():
            process.terminate()
        for connection, process in pool.items():
            process.join()
            connection.close()


def warm_up() -> None:
    """Let a first worker process import what it needs, while this process is still getting ready itself."""
    if _context().get_start_method() == "forkserver":
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def _death_said(process: BaseProcess) -> Iterator[None]:
    """A broken pipe means that the process at its other end died."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        process.join()
        raise PetsegError(
            f"a packing process died (exit code {process.exitcode}), perhaps out of memory: run the same command "
            "again to resume, with fewer --workers."
        ) from error


def _context() -> BaseContext:
    # Never fork: this process has threads (the progress bar's, OpenCV's), and a copy of a held lock hangs.
    # The fork server is a clean process that imports once for all workers.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "petseg.data.shards.work"])
    return context


def _serve(work: Work, connection: Connection, environment: dict[str, str]) -> None:
    import cv2

    # The fork server has that of its own start, and credentials may have been set since.
    os.environ.clear()
    os.environ.update(environment)

    # Ctrl-C goes to the whole group; the parent alone decides, and ends us with SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    # A parent that is gone closes its end: the next send or receive fails, and so this process ends.
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = connection.recv()
            try:
                answer = ("done", work(job, lambda n: connection.send(("progress", n))))
            except ConnectionError:
                raise
            except PetsegError as error:
                answer = ("refused", str(error))
            except Exception:
                answer = ("failed", traceback.format_exc())
            connection.send(answer)
