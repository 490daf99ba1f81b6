"""How fast samples come: petseg's loaders and caches against its peers and against plain decoding."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.data import Cell, Reference
from benchmarks.harness import ROOT, Contender, ContenderError, Row, check_samples, peer, ratio, run_children
from petseg.system import usable_cores

BATCH = 32
CORES = usable_cores()
SKIP = 6
"""Batches that use up what was made ahead: more than any contender's prefetch depth."""

MIN_TIMED = 8
INSTALL_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender."""

    name: str
    script: str
    options: tuple[str, ...] = ()
    kind: str = "library"
    """`petseg`, `library`, `ceiling` or `notebook`."""
    workers: int = CORES
    cached: bool = False
    """It gives samples that were decoded before, so it is shown apart."""
    own_environment: bool = False
    """Started by `uv run --script`, with what its header pins; else in this environment."""


ENTRIES = (
    Entry("petseg webdataset", "petseg_loader.py", ("--loader", "webdataset"), "petseg"),
    Entry("petseg dali", "petseg_loader.py", ("--loader", "dali"), "petseg"),
    Entry("petseg webdataset, ppm", "petseg_loader.py", ("--shards", "pixels"), "petseg"),
    Entry("petseg dali, ppm", "petseg_loader.py", ("--loader", "dali", "--shards", "pixels"), "petseg"),
    Entry("petseg cache host", "petseg_loader.py", ("--cache", "host"), "petseg", cached=True),
    Entry("DataLoader over files", "files.py"),
    Entry("torchvision", "torchvision_pets.py"),
    Entry("webdataset", "webdataset_plain.py"),
    Entry("DALI's own reader", "dali_native.py"),
    Entry("LitData", "litdata_stream.py", own_environment=True),
    Entry("MosaicML Streaming", "mosaic_streaming.py", own_environment=True),
    Entry("Megatron-Energon", "energon_loader.py", own_environment=True),
    Entry("SPDL", "spdl_pipeline.py", own_environment=True),
    Entry("FFCV jpg", "ffcv_loader.py", ("--mode", "jpg"), own_environment=True),
    Entry("FFCV raw", "ffcv_loader.py", ("--mode", "raw"), own_environment=True),
    Entry("notebook, 0 workers", "notebook.py", (), "notebook", workers=0),
    Entry(f"notebook, {CORES} workers", "notebook.py", (), "notebook"),
    Entry("ceiling: OpenCV", "ceiling.py", ("--decoder", "cv2"), "ceiling"),
    Entry("ceiling: simplejpeg", "ceiling.py", ("--decoder", "simplejpeg"), "ceiling"),
    Entry("ceiling: bare gather", "gather.py", (), "ceiling", cached=True),
)
"""Every contender, in the order of measuring."""

THREADED = (
    "petseg webdataset",
    "petseg dali",
    "DataLoader over files",
    "webdataset",
    "DALI's own reader",
    "ceiling: OpenCV",
)
"""Who is measured against the number of threads too."""

LIBRARIES = ("DataLoader over files", "webdataset", "LitData", "MosaicML Streaming")
OURS = ("petseg webdataset", "petseg dali")
CEILINGS = ("ceiling: OpenCV", "ceiling: simplejpeg")


def run_cell(
    cell: Cell,
    size: int,
    entries: Sequence[Entry],
    *,
    repeats: int,
    seconds: float,
    scratch: Path,
    install: bool = True,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure all contenders on one cell.

    Args:
        cell: how the samples are stored.
        size: height and width of the batches in pixels.
        entries: the contenders.
        repeats: windows of each.
        seconds: length of a window.
        scratch: folder for what contenders convert.
        install: make the environments of contenders that need one; else those that have none yet are left out.
        progress: called with a contender's name after each of its steps.
    """
    entries = [entry for entry in entries if "pixels" not in entry.options or (cell.folder / "pixels").is_dir()]
    rows = {
        entry.name: Row(
            name=entry.name,
            unit="images/s",
            facts={
                "cell": cell.label,
                "size": size,
                "kind": entry.kind,
                "chart": f"{'Caches' if entry.cached else 'Loading'}, {cell.label}, {size} px out",
            },
        )
        for entry in entries
    }
    reference = Reference.of(cell, size)
    for entry in entries:
        if reason := missing_environment(entry, install=install):
            rows[entry.name].note = f"failed: {reason}"
    run_children(
        rows,
        {entry.name: _command(entry, cell, size, scratch) for entry in entries if not rows[entry.name].note},
        repeats=repeats,
        seconds=seconds,
        skip=SKIP,
        least=MIN_TIMED,
        check=lambda _, contender: check_samples(contender, reference, len(reference.images) // BATCH),
        progress=progress,
    )
    return list(rows.values())


def run_threads(
    cell: Cell,
    size: int,
    *,
    peers: bool,
    repeats: int,
    seconds: float,
    scratch: Path,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure some contenders against the number of threads (or processes, for those that use them).

    Args:
        cell: how the samples are stored.
        size: height and width of the batches in pixels.
        peers: other libraries too.
        repeats: windows of each.
        seconds: length of a window.
        scratch: folder for what contenders convert.
        progress: called with a contender's name after each of its steps.
    """
    rows, commands = {}, {}
    for entry, count in itertools.product(threaded(peers=peers), thread_counts()):
        name = f"{entry.name}, {count}"
        facts = {
            "cell": cell.label, "size": size, "kind": entry.kind, "threads": count, "line": entry.name,
            "chart": f"Images a second against threads, {cell.label}, {size} px out",
        }  # fmt: skip
        rows[name] = Row(name=name, unit="images/s", facts=facts)
        commands[name] = _command(replace(entry, workers=count), cell, size, scratch)
    run_children(
        rows, commands, repeats=repeats, seconds=seconds, skip=SKIP, least=MIN_TIMED, check=lambda *_: "",
        progress=progress,
    )  # fmt: skip
    return list(rows.values())


def threaded(*, peers: bool) -> list[Entry]:
    """Who `run_threads` measures."""
    return [each for each in ENTRIES if each.name in THREADED and (peers or each.kind != "library")]


def thread_counts() -> list[int]:
    """Powers of two up to the number of cores, and that number."""
    return sorted({CORES, *(2**i for i in range(CORES.bit_length()) if 2**i <= CORES)})


def run_stages(cell: Cell, size: int, *, repeats: int, progress: Callable[[str], None]) -> list[Row]:
    """Time each stage of the thread engine by itself; arguments as for `run_threads`."""
    rows: dict[str, Row] = {}
    chart = f"Where a sample's time goes, one thread, {cell.label}, {size} px out"
    with Contender([*peer("stages.py"), "--data", str(cell.folder), "--size", str(size)]) as child:
        try:
            child.wait_ready()
            for repeat in range(repeats + 1):
                stages = child.ask(skip=0, timed=1)["stages"]
                for name, micros in stages.items() if repeat else ():  # the first pass warms up
                    theirs = name.startswith("OpenCV")
                    facts = {
                        "cell": cell.label, "size": size, "chart": chart, "kind": "ceiling" if theirs else "petseg",
                        "parts_of": None if theirs else "petseg's thread engine",
                    }  # fmt: skip
                    rows.setdefault(name, Row(name=name, unit="µs", facts=facts)).samples.append(micros)
                progress("stages")
        except ContenderError as error:
            facts = {"cell": cell.label, "size": size, "chart": chart, "kind": "petseg"}
            rows["stages"] = Row(name="stages", unit="µs", note=f"failed: {error}", facts=facts)
    return list(rows.values())


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Ours over theirs, packed at 128 and 100 px out unless the name says originals."""

    def of(label: str) -> list[Row]:
        return [row for row in rows if row.facts["cell"] == label and row.facts["size"] == 100]

    rows = [row for row in rows if "threads" not in row.facts]
    packed, originals = of("packed at 128"), of("originals")
    notebook = [row for row in originals if row.name == "notebook, 0 workers"]
    return {
        "ffcv_jpg": ratio(packed, OURS, ["FFCV jpg"]),
        "ffcv_raw": ratio(packed, ["petseg webdataset, ppm"], ["FFCV raw"]),
        "libraries": ratio(packed, OURS, LIBRARIES),
        "spdl": ratio(packed, OURS, ["SPDL"]),
        "ceiling": ratio(packed, OURS, CEILINGS),
        "originals": ratio(originals, OURS, LIBRARIES),
        "dali_native": ratio(packed, ["petseg dali"], ["DALI's own reader"]),
        "cache": ratio(packed, ["petseg cache host"], ["ceiling: bare gather"]),
        "notebook": ratio([*packed, *notebook], OURS, ["notebook, 0 workers"]) if notebook else None,
    }


def missing_environment(entry: Entry, *, install: bool) -> str:
    """Why a contender's own environment is not there; empty where it is, or where it needs none."""
    if not entry.own_environment:
        return ""
    if shutil.which("uv") is None:
        return "its environment is made by uv, which is not installed"
    script = str(ROOT / "peers" / entry.script)
    command = ["uv", "sync", "--script", script, *([] if install else ["--check", "--offline"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its environment was not made within {INSTALL_SECONDS} s"
    if not done.returncode:
        return ""
    if not install:
        return f"not ready: uv sync --script benchmarks/peers/{entry.script}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"its environment cannot be made ({' '.join(lines[-3:])[:300]})"


def _command(entry: Entry, cell: Cell, size: int, scratch: Path) -> list[str]:
    starter = peer(entry.script)
    if entry.own_environment:
        starter = ["uv", "run", "--quiet", "--script", starter[-1]]
    own = scratch / entry.name.replace(" ", "-").replace("'", "") / f"{cell.folder.name}-{size}"
    own.mkdir(parents=True, exist_ok=True)
    options = ["--data", str(cell.folder), "--size", str(size), "--batch", str(BATCH), "--scratch", str(own)]
    return [*starter, *options, "--workers", str(entry.workers), *entry.options]
