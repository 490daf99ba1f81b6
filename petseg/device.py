"""The device, its mixed precision, and the ranks, as torchrun starts them: what `auto` means on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from petseg.errors import PetsegError
from petseg.system import read_text

T = TypeVar("T")

Amp = Literal["auto", "bf16", "fp16", "off"]


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
    count, under_launcher = torch.cuda.device_count(), "LOCAL_RANK" in os.environ
    index = count_from_environment("LOCAL_RANK", 0) if under_launcher else int(number or 0)
    if index >= count:
        what = f"LOCAL_RANK {index}" if under_launcher else f"--device {text}"
        raise PetsegError(f"{what}: this machine has {count} GPU(s), counted from 0; start at most {count} processes.")
    return torch.device("cuda", index)


def amp_dtype(amp: str) -> torch.dtype | None:
    """The autocast dtype of a resolved `--amp`, None for `off`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def resolve_amp(choice: Amp, device: torch.device) -> Literal["bf16", "fp16", "off"]:
    """`auto` means bf16 where the hardware multiplies in it, fp16 on older GPUs, off on older CPUs."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if cpu_has_bf16() else "off"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's BF16); emulation is slower than fp32."""
    flags = read_text("/proc/cpuinfo").split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def local_share() -> tuple[int, int]:
    """(this process's number among torchrun's on this machine, how many those are); (0, 1) without both variables.

    Raises:
        PetsegError: the environment's numbers do not fit each other.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:  # Lightning's launcher gives LOCAL_RANK alone
        return 0, 1
    return _rank_from_environment("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def rank_and_world(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """(this process's rank, number of ranks): as given, else the process group's, else those of torchrun's environment.

    Raises:
        PetsegError: one is given without the other, or they do not fit each other.
    """
    if (rank is None) != (world is None):
        raise PetsegError("rank and world: give both, or neither for those of the process group or torchrun.")
    if rank is None or world is None:
        if group_size():
            return dist.get_rank(), dist.get_world_size()
        return _rank_from_environment("RANK", "WORLD_SIZE")
    if world < 1 or not 0 <= rank < world:
        raise PetsegError(f"rank {rank} is not one of {world} ranks, which count from 0.")
    return rank, world


def group_size() -> int:
    """Ranks of the process group, 0 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0


def from_every_rank(value: T) -> list[T]:
    """What each rank of the process group gives, in their order. Every rank must call it."""
    found: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _rank_from_environment(name: str, every_name: str) -> tuple[int, int]:
    """(a rank, how many there are), as a launcher has put them into the environment; (0, 1) without it."""
    rank, every = count_from_environment(name, 0), count_from_environment(every_name, 1, least=1)
    if rank >= every:
        raise PetsegError(f"{name} {rank} does not fit {every_name} {every}: start by torchrun, or unset both.")
    return rank, every


def count_from_environment(name: str, default: int, *, least: int = 0) -> int:
    """A number that a launcher has put into the environment.

    Raises:
        PetsegError: it is not a whole number of at least `least`.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise PetsegError(f"{name}: '{text}' is not a number of at least {least}; start by torchrun, or unset it.")
    return int(text)


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun's environment names, if any, and leave it at the end.

    A group that this process is in already is taken as it is, and not left.

    Raises:
        PetsegError: see `resolve_device`; or the other ranks cannot be met.
    """
    rank, size = _rank_from_environment("RANK", "WORLD_SIZE")
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    if joined := group_size():
        rank, size = dist.get_rank(), joined
    elif size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise PetsegError(f"WORLD_SIZE is {size}, but {missing[0]} is not set: start by torchrun, or unset it.")
        # torchrun keeps one store over its restarts, in which the addresses of the dead still stand.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        backend = "nccl" if resolved.type == "cuda" else "gloo"
        try:
            shared, _, _ = next(rendezvous("env://"))
            store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        except (dist.DistError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PetsegError(
                f"the {size} ranks cannot meet at MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT "
                f"{os.environ['MASTER_PORT']} ({reason}): choose a free port, and an address that all can reach."
            ) from error
    try:
        yield World(rank=rank, size=size, device=resolved)
    finally:
        if size > 1 and not joined and dist.is_initialized():
            dist.destroy_process_group()
