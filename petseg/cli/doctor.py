"""`petseg doctor`: this machine's hardware and libraries, and which of them petseg uses.

Every probe that fails becomes a row; none ends the list.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from petseg.system import cpu_model, cpu_quota, memory_limit, read_text, usable_cores

if TYPE_CHECKING:
    from rich.table import Table

Ok = Literal["yes", "no", "warn"]

_GIB = 2**30
_PROBE_SECONDS = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row: one thing that was checked."""

    name: str
    ok: Ok
    """`yes`: works; `warn`: petseg works without it, or it could be better; `no`: petseg does not work like this."""
    value: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty where nothing needs doing."""


def examine() -> list[Check]:
    """Check everything. Takes some seconds: DALI and nvImageCodec are tried in processes of their own."""
    checks: list[Check] = []
    for name, probe in _PROBES.items():
        checks.extend(_guarded(name, probe))
    return checks


def render(checks: list[Check]) -> Table:
    """The rows as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    marks: dict[Ok, str] = {"yes": "[green]yes[/]", "warn": "[yellow]warn[/]", "no": "[red]no[/]"}
    advised = any(check.advice for check in checks)
    table = Table(title="petseg doctor", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    table.add_column("found", overflow="fold")
    if advised:
        table.add_column("advice", overflow="fold")
    for check in checks:
        row = [escape(check.name), marks[check.ok], escape(check.value)]
        table.add_row(*row, *([escape(check.advice)] if advised else []))
    return table


def _guarded(name: str, probe: Callable[[], Check | list[Check]]) -> list[Check]:
    try:
        found = probe()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check(name=name, ok="warn", value=f"could not be checked ({text[:200]})")]
    return found if isinstance(found, list) else [found]


def _python() -> Check:
    return Check(name="Python", ok="yes", value=f"{platform.python_version()} on {platform.platform(terse=True)}")


def _torch() -> Check:
    import torch

    build = torch.version.cuda
    return Check(name="torch", ok="yes", value=f"{torch.__version__}, " + (f"CUDA {build}" if build else "CPU build"))


def _gpu() -> list[Check]:
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        if driver is None:
            return [Check(name="GPU", ok="warn", value="none: no NVIDIA driver was found", advice="the CPU is used")]
        why = "torch is a CPU build" if torch.version.cuda is None else f"torch wants CUDA {torch.version.cuda}"
        advice = "install a torch built for CUDA" if torch.version.cuda is None else "update the driver"
        return [Check(name="GPU", ok="no", value=f"driver {driver}, but torch cannot use it: {why}", advice=advice)]
    rows = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        old = (about.major, about.minor) < (8, 0)
        rows.append(
            Check(
                name=f"GPU {index}",
                ok="warn" if old else "yes",
                value=f"{about.name}, {about.total_memory / _GIB:.0f} GiB, compute capability "
                f"{about.major}.{about.minor}, driver {driver or 'unknown'}",
                advice="no bf16 in hardware: fp16 is used" if old else "",
            )
        )
    return rows


def _driver() -> str | None:
    """The NVIDIA driver's version, None without one."""
    from torch.utils import collect_env

    if found := collect_env.get_nvidia_driver_version(collect_env.run):  # type: ignore[no-untyped-call]
        return str(found).split()[0]
    words = read_text("/proc/driver/nvidia/version").split()
    return next((w for w in words if w[0].isdigit() and "." in w), None)


# In a process of its own: an import that ends in a crash of native code, or hangs, must cost no more than its row.
_DALI = """
import json, time
start = time.perf_counter()
import numpy as np, nvidia.dali as dali
from nvidia.dali import fn
pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
with pipe:
    pipe.set_outputs(fn.resize(fn.constant(idata=[7] * 12, shape=[2, 2, 3], dtype=dali.types.UINT8), size=[4, 4]))
pipe.build()
assert pipe.run()[0].as_array().shape == (1, 4, 4, 3)
print(json.dumps(f"{dali.__version__}, a CPU pipeline runs ({time.perf_counter() - start:.1f} s to start)"))
"""
_NVIMGCODEC = """
import json, io
import numpy as np
from PIL import Image
from nvidia import nvimgcodec
data = io.BytesIO()
Image.new("RGB", (16, 16), (200, 30, 40)).save(data, "JPEG")
# Without the backend named, its CPU-only device still asks a driver how many GPUs there are.
cpu = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=cpu)
assert np.asarray(decoder.decode(data.getvalue()).cpu()).shape == (16, 16, 3)
print(json.dumps(f"{nvimgcodec.__version__}, decodes on the CPU"))
"""


def _dali() -> Check:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        linux = sys.platform == "linux"
        advice = "pip install nvidia-dali-cuda120" if linux else "DALI is for Linux only: --loader webdataset is used"
        return Check(name="DALI", ok="warn", value="not installed", advice=advice)
    return _apart("DALI", _DALI, "use --loader webdataset, or reinstall nvidia-dali-cuda120")


def _nvimgcodec() -> Check:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        return Check(name="nvImageCodec", ok="warn", value="not installed", advice="it comes with nvidia-dali-cuda120")
    return _apart("nvImageCodec", _NVIMGCODEC, "the webdataset loader then decodes on the CPU with libjpeg")


def _apart(name: str, code: str, advice: str) -> Check:
    """Run `code` in another interpreter; its last line is the value as JSON."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name=name, ok="warn", value=f"did not answer within {_PROBE_SECONDS} s", advice=advice)
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        why = lines[-1][:200] if lines and ran.returncode > 0 else f"ended by signal {-ran.returncode}"
        return Check(name=name, ok="warn", value=f"installed, but fails: {why}", advice=advice)
    return Check(name=name, ok="yes", value=json.loads(ran.stdout.splitlines()[-1]))


def _libjpeg() -> Check:
    import numpy as np
    import simplejpeg

    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    decoded = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey))
    if abs(int(decoded.mean()) - 128) > 2:
        advice = "reinstall simplejpeg"
        return Check(name="libjpeg-turbo", ok="no", value="simplejpeg decodes wrongly", advice=advice)
    return Check(name="libjpeg-turbo", ok="yes", value=f"simplejpeg {simplejpeg.__version__}")


def _opencv() -> Check:
    import cv2

    return Check(name="OpenCV", ok="yes", value=cv2.__version__)


def _webdataset() -> Check:
    return _installed("webdataset", advice="pip install webdataset")


def _export() -> Check:
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        advice = "pip install 'petseg[export]' for petseg export --format onnx"
        return Check(name="ONNX export", ok="warn", value=f"{', '.join(missing)} not installed", advice=advice)
    return Check(name="ONNX export", ok="yes", value=f"onnx {version('onnx')}, onnxruntime {version('onnxruntime')}")


def _installed(package: str, *, advice: str) -> Check:
    try:
        return Check(name=package, ok="yes", value=version(package))
    except PackageNotFoundError:
        return Check(name=package, ok="no", value="not installed", advice=advice)


def _compiler() -> Check:
    import torch

    from petseg.training.auto import missing_compiler

    reason = missing_compiler(torch.device("cpu"))
    if reason:
        return Check(name="C++ compiler", ok="warn", value=reason, advice="torch.compile stays off; install g++ for it")
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    ran = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return Check(name="C++ compiler", ok="yes", value=ran.stdout.splitlines()[0])


def _triton() -> Check:
    if importlib.util.find_spec("triton") is None:
        return Check(name="Triton", ok="warn", value="not installed", advice="torch.compile needs it on GPUs only")
    return Check(name="Triton", ok="yes", value=version("triton"))


def _cpu() -> Check:
    lines = read_text("/proc/cpuinfo").splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    extra = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "bf16": "BF16", "avx512f": "AVX512", "avx2": "AVX2"}
    has = [label for flag, label in extra.items() if flag in flags]
    return Check(name="CPU", ok="yes", value=", ".join([cpu_model(), f"{os.cpu_count()} cores", *has]))


def _cores() -> Check:
    quota = cpu_quota()
    limits = f"a cgroup allows {quota:g}" if quota else "no cgroup limit"
    return Check(name="usable cores", ok="yes", value=f"{usable_cores()}; {limits}")


def _memory() -> Check:
    fields = dict(line.split(":", 1) for line in read_text("/proc/meminfo").splitlines() if ":" in line)
    if not fields:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Check(name="memory", ok="yes", value=f"{total / _GIB:.1f} GiB")
    total, free = (int(fields[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    limited = limit is not None and limit < total
    value = f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} free" + (
        f"; a cgroup allows {(limit or 0) / _GIB:.1f}" if limited else "; no cgroup limit"
    )
    small = min(total, limit or total) < 4 * _GIB
    advice = "4 GiB are comfortable: give a smaller --batch-size" if small else ""
    return Check(name="memory", ok="warn" if small else "yes", value=value, advice=advice)


def _shm() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check(name="/dev/shm", ok="warn", value="none", advice="--cache host needs shared memory")
    usage = shutil.disk_usage(path)
    small = usage.free < _GIB
    advice = "containers start with 64 MB: run with --shm-size=8g (or --ipc=host) for --cache host" if small else ""
    value = f"{usage.free / _GIB:.2f} of {usage.total / _GIB:.2f} GiB free"
    return Check(name="/dev/shm", ok="warn" if small else "yes", value=value, advice=advice)


def _disk() -> list[Check]:
    rows = []
    for name, path in (("disk, this folder", Path.cwd()), ("disk, temporary", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(path)
        small = usage.free < 2 * _GIB
        advice = "free some space: a packed data set takes 0.1 to 1 GiB" if small else ""
        value = f"{usage.free / _GIB:.1f} GiB free in {path}"
        rows.append(Check(name=name, ok="warn" if small else "yes", value=value, advice=advice))
    return rows


def _will_use() -> list[Check]:
    import torch

    from petseg.data.loaders.build import decoders, resolve_loader
    from petseg.device import resolve_amp, resolve_device
    from petseg.training.auto import missing_compiler

    device = resolve_device("auto")
    reason = missing_compiler(device)
    uses = {
        "--device auto": str(device),
        "--loader auto": resolve_loader("auto", device),
        "--amp auto": resolve_amp("auto", device),
        "--compile auto": f"off: {reason}" if reason else "on for runs long enough to pay for it",
        "--num-threads 0": f"{decoders(0)} for decoding, {torch.get_num_threads()} for torch",
    }
    return [Check(name=name, ok="yes", value=value) for name, value in uses.items()]


_PROBES: dict[str, Callable[[], Check | list[Check]]] = {
    "Python": _python,
    "torch": _torch,
    "GPU": _gpu,
    "DALI": _dali,
    "nvImageCodec": _nvimgcodec,
    "libjpeg-turbo": _libjpeg,
    "OpenCV": _opencv,
    "webdataset": _webdataset,
    "ONNX export": _export,
    "C++ compiler": _compiler,
    "Triton": _triton,
    "CPU": _cpu,
    "usable cores": _cores,
    "memory": _memory,
    "/dev/shm": _shm,
    "disk": _disk,
    "petseg will use": _will_use,
}
