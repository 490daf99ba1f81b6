"""Everything worth knowing of petseg on one GPU, in eight minutes: `python -m benchmarks.gpu_suite`.

Each section is a process of its own with a limit, so that one that fails or hangs costs the others nothing; what it had
measured by then is kept.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.data import Cell, Reference, prepare, source_of
from benchmarks.harness import RESULTS, ROOT, Row, environment, number, write_result
from petseg import build_loader
from petseg.classes import OXFORD
from petseg.config import resolve
from petseg.data.loaders.cache import DeviceStore
from petseg.data.loaders.dali import DaliEngine
from petseg.data.loaders.loader import Batch, Loader, LoaderPlan
from petseg.data.loaders.processes import ProcessEngine
from petseg.data.loaders.threads import ThreadEngine
from petseg.data.shards.reader import ShardReader
from petseg.distributed import resolve_device
from petseg.system import usable_cores
from petseg.training.auto import training_flops

DEVICE = resolve_device("auto")
ON_GPU = DEVICE.type == "cuda"
SIZE = 128
BATCH = 128
SIDES = (128, 256, 0)
CEILING = "What the device can do at most: "
GATHERED = 4096
NNUNET, NNUNET_ON_A100 = "192x160, batch 128", 1345.0
"""nnU-Net 2D with DALI and AMP: its published images/s on one A100, of a U-Net of this many pixels."""

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.26, 0.27)
Once = Callable[[], int]
"""Does one batch's work, which the device may still be busy with; gives its samples."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every section is told."""

    source: str
    quick: bool
    """A few batches of everything, to see that it runs."""
    seconds: float
    repeats: int

    def cell(self, side: int) -> Cell:
        """The samples, packed at a short side."""
        return prepare(source_of(self.source, 160 if self.quick else 500), side)


def settle() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def emit(name: str, samples: list[float], *, unit: str = "images/s", chart: str, kind: str, **facts: Any) -> None:
    """One row, for the process that started this one."""
    print(
        json.dumps({"name": name, "unit": unit, "samples": samples, "facts": {"chart": chart, "kind": kind, **facts}})
    )
    sys.stdout.flush()


def fail(name: str, error: object, *, chart: str, kind: str = "petseg") -> None:
    """A row that has no figure."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    print(
        json.dumps(
            {"name": name, "unit": "images/s", "note": f"failed: {text}", "facts": {"chart": chart, "kind": kind}}
        )
    )
    sys.stdout.flush()


def compare(
    plan: Plan, chart: str, contenders: Iterable[tuple[str, str, Callable[[], tuple[Once, dict[str, Any]]]]]
) -> None:
    """Measure contenders in turn, again and again.

    Args:
        plan: seconds and repeats.
        chart: title.
        contenders: name, kind, and what makes it (with what is known of it).
    """
    made: dict[str, tuple[str, Once, dict[str, Any]]] = {}
    for name, kind, make in contenders:
        try:
            began = time.perf_counter()
            once, facts = make()
            for _ in range(2 if plan.quick else 6):
                once()
            settle()
            made[name] = kind, once, {**facts, "start_s": round(time.perf_counter() - began, 2)}
        except (Exception, SystemExit) as error:  # whatever a library raises: the others are measured all the same
            fail(name, error, chart=chart, kind=kind)
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(plan.repeats):
        for name, (_, once, _) in made.items():
            once()
            settle()
            samples, began = 0, time.perf_counter()
            while time.perf_counter() - began < plan.seconds:
                samples += once()
            settle()
            found[name].append(samples / (time.perf_counter() - began))
    for name, (kind, _, facts) in made.items():
        late = {key: value() if callable(value) else value for key, value in facts.items()}
        emit(name, found[name], chart=chart, kind=kind, **late)


def ceilings(plan: Plan) -> None:
    """A bf16 matrix product and a copy, as large as it takes to fill the device."""
    side = 8192 if ON_GPU else 512
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 256, ((1 << 31) if ON_GPU else 1 << 22,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    works: tuple[tuple[str, str, Callable[[], torch.Tensor], float], ...] = (
        ("bf16 matrix product", "TFLOP/s", lambda: torch.mm(a, b), 2 * side**3 / 1e12),
        ("copy on the device", "GB/s", lambda: target.copy_(source), 2 * len(source) / 1e9),
    )
    for name, unit, work, amount in works:
        found = []
        for _ in range(plan.repeats + 1):
            settle()
            began = time.perf_counter()
            for _ in range(20):
                work()
            settle()
            found.append(20 * amount / (time.perf_counter() - began))
        emit(name, found[1:], unit=unit, chart=f"{CEILING}{name}", kind="ceiling")


# --- loading


def loaders(plan: Plan, side: int) -> None:
    """Every way to batches on the device, 128 px out."""
    cell = plan.cell(side)
    cores = usable_cores()
    reference = Reference.of(cell, SIZE)
    chart = f"Loading, {cell.label}, {SIZE} px out, batch {BATCH}"

    def engine_of(kind: str, threads: int, hw: float) -> Any:
        reader = ShardReader(cell.shards, cell.manifest, "train")
        if kind == "dali":
            return DaliEngine(
                reader, cell.manifest, batch_size=BATCH, device=DEVICE, num_threads=threads, hw_decoder_load=hw
            )
        if kind == "processes":
            return ProcessEngine(reader, device=DEVICE, processes=threads)
        return ThreadEngine(reader, device=DEVICE, num_threads=threads)

    def ours(kind: str, threads: int, hw: float = 0.65) -> Callable[[], tuple[Once, dict[str, Any]]]:
        def make() -> tuple[Once, dict[str, Any]]:
            split = cell.manifest.split("train")
            sizes = tuple(split.sizes)
            plan_ = LoaderPlan(
                digest=cell.manifest.digest, split="train", sizes=sizes, batch_size=BATCH, seed=0, training=True
            )
            loader = Loader(plan_, OXFORD, (SIZE, SIZE), DEVICE, engine_of(kind, threads, hw))
            batches = endless(loader)
            first = [next(batches) for _ in range(len(loader))]
            wrong = reference.judge(
                *(np.concatenate([np.asarray(getattr(b, part).cpu()) for b in first]) for part in ("images", "codes"))
            )
            return lambda: len(next(batches).indices), {"hw_decoder_load": hw, "detail": wrong}

        return make

    def theirs(stream_of: str, threads: int) -> Callable[[], tuple[Once, dict[str, Any]]]:
        def make() -> tuple[Once, dict[str, Any]]:
            stream = getattr(peers("_device_loading"), stream_of)(cell.folder, threads, SIZE, BATCH, DEVICE)
            return lambda: len(next(stream)[0]), {}

        return make

    half = max(1, cores // 2)
    many = sorted({half, max(1, cores - 2)})
    contenders = [
        *((f"petseg dali, {n} threads", "petseg", ours("dali", n)) for n in sorted({max(1, cores // 4), *many})),
        (f"petseg dali, {half} threads, no JPEG engine", "petseg", ours("dali", half, 0.0)),
        (f"petseg dali, {half} threads, JPEG engine 0.9", "petseg", ours("dali", half, 0.9)),
        *((f"petseg processes, {n}", "petseg", ours("processes", n)) for n in many),
        (f"petseg nvImageCodec, {half} threads", "petseg", ours("threads", half)),
        *((f"DALI's own reader, {n} threads", "library", theirs("dali_native", n)) for n in many),
        (f"torchvision's CUDA decoder, {half} threads", "library", theirs("torchvision_cuda", half)),
    ]
    compare(plan, chart, contenders)


def endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def caches(plan: Plan) -> None:
    """Samples that were decoded before: the gather alone, and through a loader."""
    samples, batch = (4 * GATHERED, GATHERED) if ON_GPU else (256, 64)
    store = DeviceStore(samples, (SIZE, SIZE), DEVICE)
    rng = np.random.default_rng(0)
    draws = [rng.permutation(samples)[:batch] for _ in range(8)]

    def gather() -> tuple[Once, dict[str, Any]]:
        turns = itertools.cycle(draws)
        return lambda: len(store.get(next(turns)).images), {"bytes_a_sample": 2 * 4 * SIZE * SIZE}

    def through(kind: Any, size: int) -> Callable[[], tuple[Once, dict[str, Any]]]:
        def make() -> tuple[Once, dict[str, Any]]:
            loader = build_loader(
                "webdataset", shards=plan.cell(128).shards, split="train", batch_size=size, size=(SIZE, SIZE),
                device=DEVICE, training=True, cache=kind,
            )  # fmt: skip
            for _ in loader:
                pass
            batches = endless(loader)
            return lambda: len(next(batches).indices), {}

        return make

    compare(
        plan,
        f"Caches, {SIZE} px out",
        [
            (f"device cache, bare gather of {batch}", "petseg", gather),
            ("petseg cache device, batch 32", "petseg", through("device", 32)),
            (f"petseg cache device, batch {BATCH}", "petseg", through("device", BATCH)),
            (f"petseg cache host, batch {BATCH}", "petseg", through("host", BATCH)),
        ],
    )


# --- the step


def peers(name: str) -> Any:
    """A module of `peers/`; they know each other by their bare names."""
    if str(ROOT / "peers") not in sys.path:
        sys.path.insert(0, str(ROOT / "peers"))
    return importlib.import_module(name)


def drawn(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels u8[batch, height, width, 3] and codes u8[batch, height, width], on the CPU."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=g)
    return images, torch.randint(1, 4, (batch, height, width), dtype=torch.uint8, generator=g)


def our_step(options: Mapping[str, Any], *, compiled: bool) -> Callable[[], tuple[Once, dict[str, Any]]]:
    """The step of petseg as a run of it has it."""

    def make() -> tuple[Once, dict[str, Any]]:
        config = resolve({"compile": "on" if compiled else "off", **options})
        height, width = config.height_width
        images, codes = drawn(config.batch_size, height, width)
        modules = peers("_training")
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        step = modules.petseg_step(config, OXFORD, MEAN, STD)
        batch = Batch(images.to(DEVICE), codes.to(DEVICE), torch.arange(config.batch_size, device=DEVICE), OXFORD)
        step(batch, modules.EPOCH)
        loss = step.mean_loss()
        gflop = training_flops(step.network, height, width) / 1e9

        def once() -> int:
            step(batch, modules.EPOCH)
            return config.batch_size

        return once, {"first_loss": loss, "gflop_an_image": gflop, "memory_mb": modules.memory_mb}

    return make


def notebook_step(
    recipe: str, size: int, batch: int, changes: tuple[str, ...]
) -> Callable[[], tuple[Once, dict[str, Any]]]:
    """The notebook's loop with changes to it."""

    def make() -> tuple[Once, dict[str, Any]]:
        modules = peers("_training")
        net = modules.network(resolve({"recipe": recipe}), OXFORD)
        gflop = training_flops(net, size, size) / 1e9
        images, codes = drawn(batch, size, size)
        floats = (images.permute(0, 3, 1, 2).contiguous() / 255).to(DEVICE)
        one_hot = torch.stack([codes == code for code in OXFORD.codes], 1).to(DEVICE, torch.float32)
        step = modules.notebook_loop(net, changes)
        loss = step(floats, one_hot)

        def once() -> int:
            step(floats, one_hot)
            return batch

        return once, {"first_loss": loss, "gflop_an_image": gflop}

    return make


SEED = {"recipe": "seed", "size": "100"}
LADDER = ("channels_last", "bf16", "fused", "compile", "graphs")


def ladder(plan: Plan) -> None:
    """The notebook's network, from its own loop to petseg's."""
    batch, size = (32, 100) if ON_GPU else (2, 16)
    rungs = [LADDER[:n] for n in (0, 1, 2, 3, 5)]
    compare(
        plan,
        f"One step of the notebook's network, {size} px, batch {batch}",
        [
            *(
                (
                    "the notebook's loop" if not each else f"+ {each[-1]}",
                    "library" if each else "notebook",
                    notebook_step("seed", size, batch, each),
                )
                for each in rungs
                if ON_GPU or "compile" not in each
            ),
            (
                "petseg, no graph",
                "petseg",
                our_step({**SEED, "size": str(size), "batch_size": batch, "cuda_graphs": False}, compiled=False),
            ),
            ("petseg", "petseg", our_step({**SEED, "size": str(size), "batch_size": batch}, compiled=False)),
        ],
    )


def seed(plan: Plan) -> None:
    """The notebook's network at larger batches."""
    sizes = (128, 512, 1024) if ON_GPU else (2,)
    base = dict(SEED) if ON_GPU else {**SEED, "size": "16"}
    compare(
        plan,
        f"Steps of the notebook's network, {base['size']} px, by batch",
        [
            *((f"petseg, batch {n}", "petseg", our_step({**base, "batch_size": n}, compiled=False)) for n in sizes),
            *(
                (f"petseg, compiled, batch {n}", "petseg", our_step({**base, "batch_size": n}, compiled=True))
                for n in sizes[1:2]
            ),
        ],
    )


def unet(plan: Plan) -> None:
    """The U-Net of petseg, its recipes, and nnU-Net's published setting."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32", "batch_size": 2}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("default, batch 8", {}),
        ("default, batch 128", {"batch_size": 128}),
        ("default, batch 1024", {"batch_size": 1024}),
        ("oxford", {"recipe": "oxford"}),
        (f"5 levels, 32 channels, {NNUNET}", {"width": 32, "stem": 1, "size": "192x160", "batch_size": 128}),
    ]
    compare(
        plan,
        "Steps of petseg's U-Net",
        [
            *((name, "petseg", our_step({**options, **small}, compiled=False)) for name, options in cases),
            *(
                (f"{name}, compiled", "petseg", our_step({**options, **small}, compiled=True))
                for name, options in (cases[1], cases[4])
                if ON_GPU
            ),
        ],
    )


# --- all together


def whole(plan: Plan) -> None:
    """From shards to updated weights, beside the loader and the step alone; and the notebook from its files."""
    batch = BATCH if ON_GPU else 4
    configs = {
        "default": {"batch_size": batch, "size": "128" if ON_GPU else "32"},
        "seed": {**SEED, "batch_size": batch, "size": "100" if ON_GPU else "32"},
    }
    ways: list[tuple[str, Any, str]] = [
        ("dali", "none", "dali"),
        ("webdataset", "none", "webdataset"),
        ("cache device", "device", "dali"),
    ]
    modules = peers("_training")
    for recipe, options in configs.items():
        contenders: list[tuple[str, str, Callable[[], tuple[Once, dict[str, Any]]]]] = []
        config = resolve({"compile": "off", **options})
        for title, cache, name in ways:
            contenders += [
                (
                    f"{title}, loader only",
                    "petseg",
                    _part(plan, config, name, cache, modules, loads=True, learns=False),
                ),
                (f"{title}, end to end", "petseg", _part(plan, config, name, cache, modules, loads=True, learns=True)),
            ]
        contenders.append(
            ("step only", "petseg", _part(plan, config, "dali", "none", modules, loads=False, learns=True))
        )
        if recipe == "seed":
            contenders.append(("notebook, end to end", "notebook", lambda: _notebook(plan, modules)))
        compare(plan, f"End to end, {recipe}, packed at 128, {options['size']} px, batch {batch}", contenders)


def _part(
    plan: Plan, config: Any, name: str, cache: Any, modules: Any, *, loads: bool, learns: bool
) -> Callable[[], tuple[Once, dict[str, Any]]]:
    def make() -> tuple[Once, dict[str, Any]]:
        cell = plan.cell(128)
        manifest = cell.manifest
        step = modules.petseg_step(config, manifest.classes, manifest.mean, manifest.std) if learns else None
        loader = build_loader(
            name, shards=cell.shards, split="train", batch_size=config.batch_size, size=config.height_width,
            device=DEVICE, training=True, cache=cache,
        )  # fmt: skip
        for _ in loader if cache != "none" else ():
            pass
        batches: Iterator[Batch] = endless(loader)
        if not loads:
            batches = itertools.cycle(list(itertools.islice(batches, 3)))
        seconds = {"data": 0.0, "all": 1e-9}

        def once() -> int:
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter()
            if step:
                step(batch, modules.EPOCH)
            seconds["data"] += waited - began
            seconds["all"] += time.perf_counter() - began
            return len(batch.indices)

        return once, {"data_wait_pct": lambda: 100 * seconds["data"] / seconds["all"]} if loads and learns else {}

    return make


def _notebook(plan: Plan, modules: Any) -> tuple[Once, dict[str, Any]]:
    from torch.utils.data import DataLoader

    dataset_of = peers("_notebook").DatasetSeg
    files = plan.cell(0).folder / "files"
    loader = DataLoader(
        dataset_of(files / "images", files / "masks", 100 if ON_GPU else 16),
        batch_size=32 if ON_GPU else 2,
        shuffle=True,
    )
    step = modules.notebook_loop(modules.network(resolve({"recipe": "seed"}), OXFORD))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def once() -> int:
        images, masks = next(batches)
        step(images, masks)
        return len(images)

    return once, {}


def profile(_: Plan) -> None:
    """Which kernels a step of the notebook's network and one of the U-Net spend their time in."""
    small: dict[str, Any] = {} if ON_GPU else {"size": "32", "batch_size": 2}
    cases = {
        "seed, batch 512": ({**SEED, "batch_size": 512, **small}, False),
        "seed, batch 512, compiled": ({**SEED, "batch_size": 512, **small}, True),
        "default, batch 128": ({"batch_size": 128, **small}, False),
    }
    kind = torch.profiler.ProfilerActivity.CUDA if ON_GPU else torch.profiler.ProfilerActivity.CPU
    for title, (options, compiled) in cases.items():
        if compiled and not ON_GPU:
            continue
        try:
            once = our_step(options, compiled=compiled)()[0]
            for _turn in range(3):
                once()
            settle()
            with torch.profiler.profile(activities=[kind]) as found:
                for _turn in range(3):
                    once()
                settle()
        except Exception as error:
            fail(title, error, chart="Profile")
            continue
        attribute = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
        events = sorted(found.key_averages(), key=lambda event: -float(getattr(event, attribute)))
        total = sum(float(getattr(event, attribute)) for event in events)
        kernels = [
            {
                "kernel": event.key[:120],
                "pct": round(100 * float(getattr(event, attribute)) / total, 1),
                "calls": event.count // 3,
            }
            for event in events[:16]
        ]
        emit(title, [total / 3000], unit="ms", chart="Profile of one step", kind="petseg", kernels=kernels)


def learning(plan: Plan) -> None:
    """Test mean IoU of whole runs on the official split, and the seconds that they took."""
    import petseg
    from benchmarks.learn import prepare as prepare_learning
    from petseg.data.sources.resolve import resolve_source
    from petseg.data.sources.synthetic import SyntheticSource

    source = SyntheticSource(60) if plan.source == "synthetic" else resolve_source(plan.source)
    shards = prepare_learning(source) / "shards"
    tiny = {"size": "32", "width": 4, "depth": 3} if not ON_GPU else {}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("default", {"epochs": 1 if plan.quick else 60}),
        ("120 epochs of batch 16, 32 channels", {"epochs": 120, "batch_size": 16, "width": 32}),
    ]
    for name, options in cases[: 1 if plan.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            try:
                result = petseg.train(
                    {"shards": str(shards), "run_dir": f"{folder}/run", "compile": "off", **options, **tiny}
                )
            except Exception as error:
                fail(name, error, chart="Learning")
                continue
            seconds = time.perf_counter() - began
            assert result.summary is not None
            records = result.run.records()
            curve = [(round(r["seconds"], 2), (r["val"] or {}).get("mean_iou")) for r in records]
            emit(
                name, [result.summary["mean_iou"]], unit="test mIoU", chart="Whole runs on three breeds, packed at 128",
                kind="petseg", seconds=round(seconds, 1), time=result.summary["time"],
                images_per_s=result.summary["images_per_s"], data_wait_pct=result.summary["data_wait_pct"],
                curve=curve[:: max(1, len(curve) // 8)],
            )  # fmt: skip


SECTIONS: dict[str, tuple[Callable[[Plan], None], float]] = {
    "ceilings": (ceilings, 20),
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

READ = {"whole", "packed 256", "caches", "packed 128", "originals"}
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
    only: Annotated[str, typer.Option(help="Names of sections, with commas; all of them by default.")] = "",
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
    bench = title_of(device)
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
