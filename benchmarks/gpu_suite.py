"""Everything worth knowing of petseg on one GPU, in eight minutes: `python -m benchmarks.gpu_suite`.

Each section is a process of its own with a limit, so that one that fails or hangs costs the others nothing; what it had
measured by then is kept.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu.feeding import feeding, ordered, tuning, upsampling
from benchmarks.gpu.loading import GATHERED, caches, loaders
from benchmarks.gpu.measure import ON_GPU, SIZE, Plan
from benchmarks.gpu.runs import learning, whole
from benchmarks.gpu.steps import (
    CEILING,
    NNUNET,
    NNUNET_ON_A100,
    ceilings,
    compiled,
    ladder,
    optimisers,
    profile,
    seed,
    unet,
)
from benchmarks.harness import RESULTS, Row, environment, number, write_result

SIDES = (128, 256, 0)

SECTIONS: dict[str, tuple[Callable[[Plan], None], float]] = {
    "ceilings": (ceilings, 20),
    "upsampling": (upsampling, 120),
    "feeding": (feeding, 120),
    "ordered": (ordered, 90),
    "tuning": (tuning, 180),
    "optimisers": (optimisers, 90),
    "compiled": (compiled, 180),
    "whole": (whole, 90),
    "packed 256": (lambda plan: loaders(plan, 256), 60),
    "learning": (learning, 90),
    "caches": (caches, 30),
    "unet": (unet, 110),
    "seed": (seed, 60),
    "ladder": (ladder, 90),
    "packed 128": (lambda plan: loaders(plan, 128), 60),
    "originals": (lambda plan: loaders(plan, 0), 60),
    "profile": (profile, 60),
}
"""What is measured, and the seconds that it may take."""

READ = {"upsampling", "feeding", "ordered", "tuning", "whole", "packed 256", "caches", "packed 128", "originals"}
"""Sections that read samples."""


def ratios(rows: list[Row]) -> dict[str, float | None]:
    """The goals' figures, None where what they need was not measured."""

    def most(chart: str, name: str = "", *, kind: str = "", per_sample: str = "") -> float | None:
        """The best median of the rows whose chart begins, and whose name ends, like this."""
        found = [
            statistics.median(row.samples) * (row.facts[per_sample] if per_sample else 1)
            for row in rows
            if row.samples
            and row.facts["chart"].startswith(chart)
            and row.name.endswith(name)
            and kind in {"", row.facts["kind"]}
        ]
        return max(found, default=None)

    def over(a: float | None, b: float | None, scale: float = 1.0) -> float | None:
        return a * scale / b if a and b else None

    def together(way: str) -> float | None:
        """A loader and the step together, over the slower of the two alone."""
        chart = "End to end, default"
        load, step = most(chart, f"{way}, loader only"), most(chart, "step only")
        return over(most(chart, f"{way}, end to end"), min(load, step) if load and step else None)

    return {
        "mfu_seed": over(
            most("Steps of the notebook's network", kind="petseg", per_sample="gflop_an_image"),
            most(f"{CEILING}bf16 matrix product"),
            1e-3,
        ),
        "loader_256": most("Loading, packed at 256", kind="petseg"),
        "loader_256_over_dali": over(
            most("Loading, packed at 256", kind="petseg"), most("Loading, packed at 256", kind="library")
        ),
        **{
            f"{way}_over_reader_{chroma}": over(
                most("Decode policies", f"petseg {title}, {chroma}"),
                most("Decode policies", f"DALI's own reader, {chroma}"),
            )
            for way, title in (("dali", "dali"), ("webdataset", "nvImageCodec"))
            for chroma in ("fancy", "simple")
        },
        **{
            f"mfu_{name.replace(' ', '_')}_256": over(
                most(f"Steps at 256 px: {name}", per_sample="gflop_an_image"),
                most(f"{CEILING}bf16 matrix product"),
                1e-3,
            )
            for name in ("default", "width 32", "width 64", "oxford")
        },
        "device_cache_over_copy": over(
            most("Caches", f"bare gather of {GATHERED}"), most(f"{CEILING}copy on the device"), 8 * SIZE * SIZE / 1e9
        ),
        **{f"end_to_end_{way.replace(' ', '_')}": together(way) for way in ("dali", "webdataset", "cache device")},
        "over_notebook": over(
            most("End to end, seed", "end to end", kind="petseg"),
            most("End to end, seed", "end to end", kind="notebook"),
        ),
        "nnunet_192x160": over(most("Steps of petseg's U-Net", NNUNET), NNUNET_ON_A100),
    }


def run_section(name: str, limit: float, arguments: list[str], say: Callable[[str], None]) -> list[Row]:
    """Run a section in a process of its own; what it had measured when it ended or was ended."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_suite", *arguments, "--section", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    reading = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reading.start()
    ended = threading.Timer(limit, process.kill)
    ended.start()
    rows = []
    for line in process.stdout:
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
        row = rows[-1]
        median = number(statistics.median(row.samples)) if row.samples else row.note
        say(f"{row.facts['chart']}: {row.name}: {median} {row.facts.get('detail', '')}")
    code = process.wait()
    ended.cancel()
    reading.join(5)
    say(
        f"-- {name}: {time.perf_counter() - began:.0f} s"
        + (f", ended by {code}: {' '.join(errors[-3:])[-600:]}" if code else "")
    )
    return rows


def main(
    source: Annotated[str, typer.Option(help="synthetic, or whatever petseg-shard takes as SOURCE.")] = "synthetic",
    quick: Annotated[bool, typer.Option("--quick", help="A few batches of everything, to see that it runs.")] = False,
    seconds: Annotated[float, typer.Option(help="Length of one window.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="Windows of each contender.")] = 3,
    minutes: Annotated[float, typer.Option(help="Sections that begin later than this are left out.")] = 8.0,
    only: Annotated[
        str, typer.Option(help="Names of sections, with commas, in a result file of their own; default: all.")
    ] = "",
    section: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path, typer.Option(help="Folder for the result file.")] = RESULTS,
) -> None:
    """Measure petseg on this machine's GPU (on a CPU: see only that the suite runs)."""
    plan = Plan(source, quick, 0.05 if quick else seconds, 1 if quick else repeats)
    if section:
        SECTIONS[section][0](plan)
        return
    names = [name.strip() for name in only.split(",") if name.strip()] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise typer.BadParameter(f"no section '{unknown[0]}'; choose {', '.join(SECTIONS)}.", param_hint="--only")
    arguments = [
        "--source",
        source,
        "--seconds",
        str(seconds),
        "--repeats",
        str(repeats),
        *(["--quick"] if quick else []),
    ]
    began, rows, line = time.perf_counter(), list[Row](), ""
    device = gpu()
    bench = title_of(device) + (f"-{'-'.join(names).replace(' ', '-')}" if only else "")
    for side in SIDES if not READ.isdisjoint(names) else ():
        plan.cell(side)  # once, before anything is measured
    for name in names:
        left = 60 * minutes - (time.perf_counter() - began)
        if left < 10:
            print(f"-- {name}: left out, the time is up", file=sys.stderr)
            continue
        rows += run_section(
            name, min(SECTIONS[name][1], left), arguments, lambda text: print(text, file=sys.stderr, flush=True)
        )
        facts = {"gpu": device, "minutes": round((time.perf_counter() - began) / 60, 1), "page_cache": "warm"}
        # After each section: whatever ends the suite, that stands.
        line = write_result(bench, rows, ratios(rows), environment(Path(source).name, **facts), out)
    print(line)


def title_of(device: Mapping[str, str]) -> str:
    """The result file's name: what was measured, and by which versions."""
    parts = ("gpu", device.get("name", "cpu"), device.get("driver", ""), f"torch{torch.__version__}")
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(filter(None, parts))).strip("-").lower()


def gpu() -> dict[str, str]:
    """Name, driver and memory of the GPU."""
    if not ON_GPU:
        return {}
    asked = "--query-gpu=name,driver_version,memory.total"
    found = subprocess.run(
        ["nvidia-smi", asked, "--format=csv,noheader", "-i", "0"], capture_output=True, text=True, check=False
    )
    name, driver, memory = (found.stdout.strip() or f"{torch.cuda.get_device_name(0)}, , ").split(", ")
    return {"name": name, "driver": driver, "memory": memory, "cuda": str(torch.version.cuda)}


if __name__ == "__main__":
    typer.run(main)
