"""Cache of decoded samples in memory: filled on each miss, with the same batches as without it."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist

from petseg.data.decode.boxes import Framing
from petseg.data.loaders.loader import Engine, Pending, Pixels, Size
from petseg.data.shards.manifest import Manifest
from petseg.device import from_every_rank, group_size
from petseg.errors import PetsegError
from petseg.system import available_memory, bytes_in_words, memory_barrier

_SHM = Path("/dev/shm")
_BOX_BYTES = 16


class Store(Protocol):
    """Samples by index."""

    size: Size
    """(height, width) of the samples in pixels."""

    def has(self, indices: np.ndarray) -> np.ndarray:
        """bool[n]: which of the samples i64[n] are there."""
        ...

    def put(self, indices: np.ndarray, pixels: Pixels) -> None:
        """Keep samples."""
        ...

    def get(self, indices: np.ndarray) -> Pixels:
        """Copies of samples that are there, on the device."""
        ...


@dataclass(slots=True)
class _Cached:
    """A batch of which some samples are in the store."""

    store: Store
    indices: np.ndarray
    missing: np.ndarray
    """Positions in `indices` of those that are decoded now."""
    decoding: Pending | None
    """The pending decode of those, if there are any."""

    def receive(self) -> Pixels:
        """See `Pending`."""
        if self.decoding is None:
            return self.store.get(self.indices)
        decoded = self.decoding.receive()
        self.store.put(self.indices[self.missing], decoded)
        return decoded if len(self.missing) == len(self.indices) else self.store.get(self.indices)


class CachedEngine:
    """An engine that submits to another engine only the samples that are not cached.

    Args:
        store: where samples are kept.
        inner: the engine that decodes; closed together with this one.
    """

    def __init__(self, store: Store, inner: Engine) -> None:
        self._store: Store | None = store
        self._inner = inner

    def submit(self, indices: np.ndarray, framing: Framing) -> Pending:
        """See `Engine`."""
        if self._store is None:
            raise ValueError("this engine is closed")
        if framing.size != self._store.size or framing.fit.kind == "crop":
            raise ValueError(f"this cache holds whole samples of {self._store.size}, not {framing}")
        present = self._store.has(indices)
        if present.all():
            return _Cached(self._store, indices, indices, None)
        missing = np.flatnonzero(~present)
        return _Cached(self._store, indices, missing, self._inner.submit(indices[missing], framing))

    def close(self) -> None:
        """See `Engine`."""
        self._inner.close()
        self._store = None


class DeviceStore:
    """The whole split on one device.

    Raises:
        PetsegError: it does not fit.
    """

    def __init__(self, samples: int, size: tuple[int, int], device: torch.device) -> None:
        try:
            self._images = torch.empty((samples, *size, 3), dtype=torch.uint8, device=device)
            self._codes = torch.empty((samples, *size), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; CPU allocators raise the plain one
            needed = cache_bytes(samples, size)
            raise PetsegError(
                f"--cache device: the split needs {bytes_in_words(needed)} ({needed} bytes), more than the device "
                "has; give a smaller --size, or leave it out."
            ) from error
        self._boxes = np.zeros((samples, 4), np.int32)
        self._present = np.zeros(samples, dtype=bool)
        self.size = size
        self._device = device

    def has(self, indices: np.ndarray) -> np.ndarray:
        """See `Store`."""
        found: np.ndarray = self._present[indices]
        return found

    def put(self, indices: np.ndarray, pixels: Pixels) -> None:
        """See `Store`."""
        where = torch.from_numpy(indices).to(self._device, non_blocking=True)
        self._images.index_copy_(0, where, pixels.images)
        self._codes.index_copy_(0, where, pixels.codes)
        self._boxes[indices] = pixels.boxes
        self._present[indices] = True

    def get(self, indices: np.ndarray) -> Pixels:
        """See `Store`."""
        where = torch.from_numpy(indices).to(self._device, non_blocking=True)
        return Pixels(self._images.index_select(0, where), self._codes.index_select(0, where), self._boxes[indices])


class HostStore:
    """The whole split in host memory, one copy for all ranks of a machine."""

    def __init__(self, memory: mmap.mmap, samples: int, size: tuple[int, int], device: torch.device) -> None:
        self.size = size
        height, width = size
        pixels = height * width
        whole = np.frombuffer(memory, np.uint8)
        self._images = torch.from_numpy(whole[: samples * pixels * 3].reshape(samples, height, width, 3))
        self._codes = torch.from_numpy(
            whole[samples * pixels * 3 :][: samples * pixels].reshape(samples, height, width)
        )
        self._boxes = whole[samples * pixels * 4 :][: samples * _BOX_BYTES].view(np.int32).reshape(samples, 4)
        self._present = whole[samples * (pixels * 4 + _BOX_BYTES) :][:samples].view(bool)
        self._device = device
        self._on_cpu = device.type == "cpu"

    def has(self, indices: np.ndarray) -> np.ndarray:
        """See `Store`."""
        found: np.ndarray = self._present[indices]
        return found

    def put(self, indices: np.ndarray, pixels: Pixels) -> None:
        """See `Store`. Ranks may write the same sample at once: they write the same bytes."""
        where = torch.from_numpy(indices)
        self._images.index_copy_(0, where, pixels.images.cpu())
        self._codes.index_copy_(0, where, pixels.codes.cpu())
        self._boxes[indices] = pixels.boxes
        memory_barrier()  # no rank sees the mark before the pixels
        self._present[indices] = True

    def get(self, indices: np.ndarray) -> Pixels:
        """See `Store`."""
        memory_barrier()  # nor reads the pixels before the mark
        where = torch.from_numpy(indices)
        return Pixels(self._gather(self._images, where), self._gather(self._codes, where), self._boxes[indices])

    def _gather(self, source: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        if self._on_cpu:
            return source.index_select(0, where)
        pinned = torch.empty((len(where), *source.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(source, 0, where, out=pinned)
        return pinned.to(self._device, non_blocking=True)


def cache_bytes(samples: int, size: tuple[int, int]) -> int:
    """Bytes that a cache of `samples` at (height, width) takes: four a pixel, a box, and one for what is there."""
    return samples * (size[0] * size[1] * 4 + _BOX_BYTES + 1)


def whole_bytes(manifest: Manifest, samples: int) -> int:
    """About how many bytes so many whole images take: four a pixel, by the mean of all splits."""
    every = sum(map(manifest.samples, manifest.splits))
    pixels = sum(manifest.pixel_counts.values()) or manifest.max_height * manifest.max_width * every
    return 4 * pixels * samples // every


def make_store(
    kind: Literal["host", "device"], samples: int, size: tuple[int, int], device: torch.device, world: int
) -> Store:
    """Take the memory for a cache.

    With several ranks every one must call it at the same point, as they agree on one copy a machine.

    Raises:
        PetsegError: it does not fit, or is of an unknown kind; names the bytes.
    """
    needed = cache_bytes(samples, size)
    check_room(kind, needed, device)
    if kind == "device":
        return DeviceStore(samples, size, device)
    shared = world > 1 and group_size() == world
    return HostStore(_shared_map(needed) if shared else mmap.mmap(-1, needed), samples, size, device)


def check_room(kind: str, needed: int, device: torch.device) -> None:
    """Refuse a cache that does not fit. A run with several cached splits asks once for all of them together.

    Raises:
        PetsegError: it does not, or is of an unknown kind; names the bytes.
    """
    if kind not in {"host", "device"}:
        raise PetsegError(f"--cache: unknown value '{kind}'; choose none, host, device.")
    if kind == "device" and device.type == "cuda":
        # The network needs memory too; how much is known only later.
        free = int(0.9 * torch.cuda.mem_get_info(device)[0])
    else:
        free = available_memory()
    if needed > free:
        raise PetsegError(
            f"--cache {kind}: the samples need {bytes_in_words(needed)} ({needed} bytes), and {bytes_in_words(free)} "
            "are free; give a smaller --size, or leave it out."
        )


def _shared_map(needed: int) -> mmap.mmap:
    hosts = from_every_rank(socket.gethostname())
    leader = hosts.index(socket.gethostname())
    made: tuple[str, str] = ("", "")
    if dist.get_rank() == leader:
        made = _shared_file(needed)
    every = from_every_rank(made)
    # Every failure reaches every rank, or some would wait for the others forever.
    if failures := [failure for _, failure in every if failure]:
        raise PetsegError(failures[0])
    file = os.open(every[leader][0], os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        memory = mmap.mmap(file, needed)
    finally:
        os.close(file)
    dist.barrier()
    if dist.get_rank() == leader:
        # Nameless from here on: however the run ends, the kernel frees it with the last process.
        Path(every[leader][0]).unlink(missing_ok=True)
    return memory


def _shared_file(needed: int) -> tuple[str, str]:
    """(path, "") or ("", what went wrong)."""
    file, path = tempfile.mkstemp(prefix="petseg-cache-", dir=_SHM if _SHM.is_dir() else None)
    try:
        # Take the memory now: a hole that cannot be filled later is a SIGBUS.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, needed)
        else:
            os.truncate(file, needed)
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        failure = f"--cache host: {bytes_in_words(needed)} do not fit in {_SHM} ({error.strerror}); enlarge it."
        return "", failure
    finally:
        os.close(file)
    return path, ""
