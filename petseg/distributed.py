"""Ranks, as torchrun starts them. One process is a world of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from petseg.errors import PetsegError


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process's place among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, on every rank (in place where there are several)."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank, on every rank."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)).item())

    def broadcast_buffers(self, module: torch.nn.Module) -> None:
        """Rank 0's buffers, on every rank: each rank's BatchNorm has seen other batches."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def resolve_device(text: str) -> torch.device:
    """The device that `--device` means. Under torchrun the GPU's index is LOCAL_RANK, whatever index is named.

    Args:
        text: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        PetsegError: an unknown device, or one that this machine lacks.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = text.partition(":")
    if kind not in {"cpu", "cuda"} or (colon and (kind == "cpu" or not (number.isascii() and number.isdecimal()))):
        raise PetsegError(f"--device: unknown device '{text}'; choose auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PetsegError(
            f"--device {text}: this machine has no usable CUDA GPU; use --device cpu or see petseg doctor."
        )
    count, rank = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
    index = int(number or 0) if rank is None else int(rank)
    if index >= count:
        what = f"--device {text}" if rank is None else f"LOCAL_RANK {rank}"
        raise PetsegError(f"{what}: this machine has {count} GPU(s), counted from 0; start at most {count} processes.")
    return torch.device("cuda", index)


def local_share() -> tuple[int, int]:
    """(this process's number among torchrun's on this machine, how many those are); (0, 1) without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun's environment names, if any, and leave it at the end.

    Raises:
        PetsegError: see `resolve_device`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    rank = int(os.environ.get("RANK", "0"))
    if size > 1:
        # torchrun keeps one store over its restarts, in which the addresses of the dead still stand.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        shared, _, _ = next(rendezvous("env://"))
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
        backend = "nccl" if resolved.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(rank=rank, size=size, device=resolved)
    finally:
        if size > 1 and dist.is_initialized():
            dist.destroy_process_group()
