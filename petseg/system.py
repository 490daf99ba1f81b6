"""Operating-system services: atomic writes, reads at an offset, cores and memory with their limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedWriter
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted, version 1 or 2."""

OWN_CGROUPS = Path("/proc/self/cgroup")
"""Lists the control groups of this process."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_lock = threading.Lock()
_barrier = threading.Lock()


def process_began() -> float:
    """When this process was started, by `time.perf_counter`; now, where the system does not say."""
    now = time.perf_counter()
    try:
        # proc(5): the 22nd field, in clock ticks since boot; the name before it may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19])
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return now


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under its final name only when it is whole and on the disk.

    Raises:
        OSError: the disk is full, or the folder read-only; a file that was there before is unchanged.
    """
    partial = partial_of(path)
    try:
        with open_fresh(partial) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """Where a file is while it is not whole: another place for every process of every machine that shares the folder.

    Examples:
        >>> partial_of(Path("out/a.tar")).name.startswith(".a.tar.partial-")
        True
    """
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")


def open_fresh(path: Path) -> BufferedWriter:
    """A new file in the place of whatever has its name; a link is replaced, never followed.

    Raises:
        OSError: it cannot be made.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def replace_durably(source: Path, target: Path) -> None:
    """Rename a file over another, and wait until the folder that names them is on the disk too.

    Raises:
        OSError: the folder is read-only or went away.
    """
    source.replace(target)
    if hasattr(os, "O_DIRECTORY"):  # Windows has no descriptors of folders
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def open_file(path: Path | str) -> int:
    """A descriptor for `read_at`; close it with os.close."""
    return os.open(path, _FLAGS)


def read_at(file: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset`, fewer only at the file's end. From any thread, also where there is no pread."""
    data = _read_once(file, size, offset)
    while len(data) < size and (more := _read_once(file, size - len(data), offset + len(data))):
        data += more  # the kernel may give less than was asked for: networks' file systems do
    return data


def _read_once(file: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with _lock:  # Windows: position and read must not be parted
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)


def memory_barrier() -> None:
    """Let no read or write of memory pass this point, in the eyes of other processes.

    Processors other than x86 reorder them. What stands between releasing one lock and taking another cannot move past
    either, as both are sequentially consistent (Arm's `stlr` and `ldar`).
    """
    for _ in range(2):
        with _barrier:
            pass


@contextlib.contextmanager
def locked(file: int, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Keep other processes from a file while this one is at it; no protection where the system has no such locks.

    With `shared`, those that ask for the same may be at it too.

    Raises:
        BlockingIOError: another process has it, and `wait` is False.
        OSError: the file system has none.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def started_threads(count: int, name: str, **options: Any) -> ThreadPoolExecutor:
    """A pool whose threads have all started, and have run its initialiser; `options` are the pool's own."""
    pool = ThreadPoolExecutor(count, name, **options)
    all_started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_started.wait)
    all_started.wait()
    return pool


_PACKAGE = Path(__file__).parent / "__init__.py"
_START = f"""
import importlib.util, sys
module, *arguments, package, path = sys.argv[1:]
sys.path += [each for each in path.split({os.pathsep!r}) if each not in sys.path]
spec = importlib.util.spec_from_file_location("petseg", package)
sys.modules["petseg"] = petseg = importlib.util.module_from_spec(spec)
spec.loader.exec_module(petseg)
importlib.import_module(module).main(*arguments)
"""
"""The package that the parent has imported, wherever it lies; what else the parent's path holds comes last, so that
nothing in it stands in for a module of the standard library."""


def start_module(
    module: str,
    *arguments: str,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `main(*arguments)` of one of petseg's modules in a process of its own, started and not forked.

    Args:
        module: its full name.
        arguments: strings.
        pass_fds: descriptors that it inherits.
        env: of its environment, beside this process's.
        stdin: as `subprocess.Popen` has it, as the next one.
        stdout: see there.

    Raises:
        OSError: it cannot be started.
    """
    path = os.pathsep.join(str(Path(each).absolute()) for each in sys.path if each)
    return subprocess.Popen(
        # -P: a module in the current folder must not stand in for one of the standard library.
        [sys.executable, "-P", "-c", _START, module, *arguments, str(_PACKAGE), path],
        stdin=stdin,
        stdout=stdout,
        pass_fds=pass_fds,
        env={**os.environ, **(env or {})},
        process_group=0,  # Ctrl-C is for the process that trains; these end with it
    )


def bytes_in_words(size: int) -> str:
    """`3.2 MB`, `1.25 GB`: in GB from a hundredth of one on."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def usable_cores() -> int:
    """Cores that this process may use, at least 1: by its affinity, and by the whole cores of its cgroups' quota."""
    cores = len(runnable_cores())
    return max(1, min(cores, int(cpu_quota() or cores)))


def runnable_cores() -> set[int]:
    """Numbers of the cores that this process may be run on; a quota may give it less of their time."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_model() -> str:
    """The processor's name, as the kernel or else the platform gives it."""
    lines = read_text("/proc/cpuinfo").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Cores that cgroups (v2 or v1) let this process use, None without a limit."""
    quotas = []
    for folder in _cgroup_folders(root, own, "cpu"):
        words = read_text(folder / "cpu.max").split() or [
            *read_text(folder / "cpu.cfs_quota_us").split(),
            *read_text(folder / "cpu.cfs_period_us").split(),
        ]
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Bytes that cgroups (v2 or v1) let this process use, None without a limit."""
    return min((limit for limit, _ in _memory_limits(root, own)), default=None)


def available_memory(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Bytes of host memory that can still be taken, by the kernel's estimate and every cgroup above this process."""
    meminfo = read_text("/proc/meminfo").splitlines()
    free = next((int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")), 2**63 - 1)
    return max(0, min([free, *(limit - used for limit, used in _memory_limits(root, own))]))


def read_text(path: str | Path) -> str:
    """A small file of the system's, empty where it cannot be read."""
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _memory_limits(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be given back) of each cgroup that has a limit."""
    for folder in _cgroup_folders(root, own, "memory"):
        text = (read_text(folder / "memory.max") or read_text(folder / "memory.limit_in_bytes")).strip()
        # Version 1 says "no limit" with a number near 2**63.
        if not text.isdigit() or int(text) >= 2**60:
            continue
        used = (read_text(folder / "memory.current") or read_text(folder / "memory.usage_in_bytes")).strip()
        lines = [line.split() for line in read_text(folder / "memory.stat").splitlines()]
        stat = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        # The page cache is given back when memory is wanted. Version 1 counts that of the groups below as `total_`.
        cached = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        yield int(text), max(0, int(used or 0) - cached)


def _cgroup_folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The process's own cgroup and those above it, as far as they can be seen from here; limits add up on the way."""
    for line in read_text(own).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        number, names, place = parts
        if number != "0" and controller not in names.split(","):
            continue
        top = root if number == "0" else root / controller
        here = top / place.lstrip("/")
        # Inside a container the path may be the host's: then only the top is there.
        yield from (f for f in (here, *here.parents) if f.is_relative_to(top) and f != top and f.is_dir())
        yield top


def versions() -> dict[str, str]:
    """Versions of what a result depends on; `-` for what is not installed."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "petseg", "webdataset", "nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    if "torch" in sys.modules:  # it alone says which CUDA it was built for, and importing it takes seconds
        found["torch"] = sys.modules["torch"].__version__
    return found
