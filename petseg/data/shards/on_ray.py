"""Jobs as tasks of a Ray cluster: bounded in number, tried again where a worker or a node dies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petseg.data.shards.pool import Report, Work
from petseg.errors import PetsegError

_RETRIES = 5
"""Times that a job is tried again whose worker or node died."""

_CLIENT_PORT = 10_001
"""Ray's own, where an address has none."""

_AHEAD = 2
"""Jobs that are given out for each one that runs: enough that no worker waits for the next."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Runs jobs as `run_jobs` does, on a cluster that is there already.

    Every node needs the same versions of Python, Ray and petseg, and sees sources and output under the same names: a
    file system that they share, or stores, for which each has its own credentials.

    Args:
        address: `ray` for the cluster that this machine belongs to (or that RAY_ADDRESS names), or `ray://HOST[:PORT]`
            for one from outside.
        tasks: tasks that run at once, at most; 0 for as many as the cluster has cores.
    """

    address: str
    tasks: int = 0

    def __post_init__(self) -> None:
        if self.address != "ray" and not (self.address.startswith("ray://") and self.address[len("ray://") :]):
            raise PetsegError(f"--on {self.address}: give ray, or ray://HOST:PORT.")

    def __call__(
        self,
        work: Work,
        jobs: Sequence[Any],
        *,
        workers: int,  # noqa: ARG002 - of this machine
        progress: Report,
    ) -> Generator[Any, None, None]:
        """Do jobs, and yield their results as they come.

        Args:
            work: does one job.
            jobs: what is to be done, largest first.
            workers: processes of this machine, where none is needed.
            progress: called with what a job reported, when it is done.

        Raises:
            PetsegError: no cluster, or other versions on it; from a job; a job whose worker died again and again.
            RuntimeError: any other error in a job, with its traceback.
        """
        if not jobs:
            return
        ray = _imported()
        with self._connected(ray):
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            most = min(self.tasks or cores, cores)
            task = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)(_do)
            shared, here = ray.put(work), str(Path.cwd())
            waiting, left = iter(jobs), len(jobs)
            running: dict[Any, Any] = {}
            try:
                while left or running:
                    # Where fewer run than could, what is given out would run.
                    while left and len(running) < (most if most < cores else _AHEAD * cores):
                        job, left = next(waiting), left - 1
                        running[task.remote(shared, job, here)] = job
                    (ready, *_), _ = ray.wait(list(running), num_returns=1)
                    job = running.pop(ready)
                    kind, value, reported = self._result(ray, ready, job)
                    if kind == "refused":
                        raise PetsegError(value)
                    if kind == "failed":
                        raise RuntimeError(f"packing failed in a worker process:\n{value}")
                    progress(reported)
                    yield value
            finally:
                with contextlib.suppress(Exception):  # the cluster may be gone, which is said already
                    for ref in running:
                        ray.cancel(ref, force=True)

    @contextlib.contextmanager
    def _connected(self, ray: Any) -> Generator[None, None, None]:
        if ray.is_initialized():
            yield
            return
        address = os.environ.get("RAY_ADDRESS") or "auto" if self.address == "ray" else self.address
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise PetsegError(
                f"--on {self.address}: no such Ray cluster ({said}): `ray start --head` makes one, ray://HOST:10001 "
                "names another one."
            ) from None
        try:
            yield
        finally:
            ray.shutdown()

    def _result(self, ray: Any, ready: Any, job: Any) -> tuple[str, Any, int]:
        name = getattr(job, "name", "a job")
        try:
            result: tuple[str, Any, int] = ray.get(ready)
        except ray.exceptions.OutOfMemoryError:
            raise PetsegError(f"{name}: there is not enough memory for it on its node: give fewer --workers.") from None
        except ray.exceptions.RayTaskError as error:
            # Before the first line of the task: the package, or what the work holds, is not there.
            raise PetsegError(
                f"{name} cannot begin on the cluster ({_last_line(str(error))}): install the same petseg on every node."
            ) from None
        except ray.exceptions.RayError as error:
            raise PetsegError(
                f"{name}: its worker died {_RETRIES + 1} times ({_last_line(str(error))}): look at the node, then run "
                "the same command again; what is finished is kept."
            ) from None
        return result


def _reach(address: str) -> None:
    """Check that the cluster answers: Ray itself would wait for minutes.

    Raises:
        OSError: it does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or (colon and not port.isdecimal()):
        return
    with contextlib.closing(socket.create_connection((host, int(port)) if colon else (port, _CLIENT_PORT), 10)):
        pass


def _do(work: Work, job: Any, here: str) -> tuple[str, Any, int]:
    """One job, in a worker: how it ended, with what, and how much it reported."""
    import cv2

    cv2.setNumThreads(1)
    reported = 0

    def report(count: int) -> None:
        nonlocal reported
        reported += count

    try:
        os.chdir(here)  # names of files may be relative to it
        return "done", work(job, report), reported
    except FileNotFoundError as error:
        return "refused", f"{error.filename} is not there on a node of the cluster: share the folder.", 0
    except PetsegError as error:
        return "refused", str(error), 0
    except Exception:
        return "failed", traceback.format_exc(), 0


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1][:200]


def _imported() -> Any:
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError:
        raise PetsegError("--on ray: Ray is not installed: pip install 'petseg[ray]'.") from None
    return ray
