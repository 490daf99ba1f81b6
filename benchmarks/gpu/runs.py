"""Loader and step together, the notebook from its files, and whole runs with their scores."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.measure import BATCH, DEVICE, ON_GPU, SEED, Make, Once, Plan, compare, emit, endless, fail, peers
from petseg import build_loader
from petseg.classes import OXFORD
from petseg.config import resolve
from petseg.data.loaders.loader import Batch


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
        contenders: list[tuple[str, str, Make]] = []
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


def _part(plan: Plan, config: Any, name: str, cache: Any, modules: Any, *, loads: bool, learns: bool) -> Make:
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
        ("120 epochs of batch 16, 32 channels", {"epochs": 120, "batch_size": 16, "width": 32, "max_width": 512}),
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
