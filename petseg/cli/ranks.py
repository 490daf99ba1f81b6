"""`--ranks`: several processes on this machine, one a rank, started by torchrun without its log lines."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

import torch

from petseg.device import count_from_environment, resolve_device
from petseg.errors import PetsegError
from petseg.system import process_began, usable_cores

HEARTBEAT_S = 365 * 24 * 3600
"""Seconds between torchrun's heartbeats, which other machines would wait for; `--ranks` has none. A heartbeat in flight
while the process exits aborts it: its thread is then unwound through C++ code that must not throw."""

BEGAN = "PETSEG_BEGAN"
"""Environment variable with the time at which the command was started, by the clock that all processes share."""


def wants_ranks(ranks: int, device: str) -> bool:
    """Whether this process is to start the ranks, instead of being one.

    Args:
        ranks: `--ranks`.
        device: `--device`.

    Raises:
        PetsegError: fewer than one, more than there are GPUs, or another number than torchrun has started.
    """
    if ranks < 1:
        raise PetsegError(f"--ranks: {ranks} is out of range; give at least 1.")
    started = count_from_environment("WORLD_SIZE", 0)
    if started:
        if ranks not in {1, started}:
            raise PetsegError(f"--ranks: torchrun has started {started} processes already; leave --ranks out.")
        return False
    if ranks > 1 and resolve_device(device).type == "cuda" and ranks > torch.cuda.device_count():
        raise PetsegError(f"--ranks: this machine has {torch.cuda.device_count()} GPU(s); start at most one rank each.")
    return ranks > 1


def launch(ranks: int, args: Sequence[str]) -> int:
    """Run `petseg train ARGS` in several processes; the exit code of the first that failed, or 128 + signal.

    Raises:
        PetsegError: a rank died without an error message.
    """
    # torchrun would say at length that it takes one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    os.environ[BEGAN] = str(process_began())
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    launcher = ["--standalone", "--rdzv-conf", f"keep_alive_interval={HEARTBEAT_S}", "--nproc-per-node", str(ranks)]
    try:
        torchrun.run(torchrun.parse_args([*launcher, "-m", "petseg", "train", *args]))  # type: ignore[no-untyped-call]
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode == 2:
            return 2  # it has said why
        how = f"exit code {failure.exitcode}: see above" if failure.exitcode >= 0 else f"signal {-failure.exitcode}"
        memory = " (often out of memory)" if failure.exitcode == -signal.SIGKILL else ""
        raise PetsegError(f"the other ranks were stopped because rank {rank} ended with {how}{memory}.") from None
    return 0
