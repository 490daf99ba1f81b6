"""How fast training is from the shards to the updated weights, beside what its two parts can do alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.data import Cell, Reference
from benchmarks.harness import Row, check_samples, peer, ratio, run_children
from petseg.config import Recipe, resolve

PLANS: tuple[tuple[int, Recipe], ...] = ((128, "default"), (128, "seed"), (0, "seed"), (128, "demo"))
"""(short side of the shards, recipe)."""

QUICK: tuple[tuple[int, Recipe], ...] = ((128, "demo"),)
LOADERS = {
    "webdataset": ("--loader", "webdataset"),
    "dali": ("--loader", "dali"),
    "cache host": ("--loader", "webdataset", "--cache", "host"),
}
STEP, NOTEBOOK, EXPECTED = "step only", "notebook, end to end", "ceiling: "
SKIP = 3
"""Batches that are not clocked: those that were made ahead while the others were measured."""


def contenders(recipe: Recipe, loaders: Sequence[str], *, peers: bool) -> list[str]:
    """Names of what is measured, for one recipe."""
    parts = [f"{loader}, {what}" for loader in loaders for what in ("loader only", "end to end")]
    return [STEP, *parts, *([NOTEBOOK] if peers and recipe == "seed" else [])]


def run_plan(
    cell: Cell,
    recipe: Recipe,
    size: int,
    loaders: Sequence[str],
    *,
    peers: bool,
    repeats: int,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure the parts and the whole of one recipe on one way of storing the samples.

    Args:
        cell: how the samples are stored.
        recipe: petseg-train's `--recipe`.
        size: height and width of the batches in pixels; 0 for the recipe's own.
        loaders: of `LOADERS`.
        peers: the notebook too, where the recipe is its own.
        repeats: windows of each.
        seconds: length of a window; two steps at least.
        progress: called with a contender's name after each of its steps.
    """
    config = resolve({"recipe": recipe})
    size = size or config.height_width[0]
    rows, commands = {}, {}
    for name in contenders(recipe, loaders, peers=peers):
        kind = "notebook" if name == NOTEBOOK else "petseg" if name.endswith("end to end") else "part"
        rows[name] = Row(
            name=name,
            unit="images/s",
            facts={
                "cell": cell.label, "recipe": recipe, "size": size, "kind": kind,
                "chart": f"Training, {recipe} recipe, {cell.label}, {size} px, batch {config.batch_size}",
            },
        )  # fmt: skip
        script = "notebook_training.py" if name == NOTEBOOK else "petseg_training.py"
        shared = ["--data", str(cell.folder), "--size", str(size), "--batch", str(config.batch_size)]
        commands[name] = [*peer(script), *shared, *_options(name, recipe)]
    reference = Reference.of(cell, size)
    run_children(
        rows, commands, repeats=repeats, seconds=seconds, skip=SKIP, least=2, progress=progress,
        check=lambda row, contender: "" if row.name == STEP else check_samples(contender, reference, 2),
    )  # fmt: skip
    for row in rows.values():
        if row.samples:
            row.facts["detail"] = _detail(row)
    return [*rows.values(), *(_expected(loader, rows[f"{loader}, loader only"], rows[STEP]) for loader in loaders)]


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """End to end over what loader and step allow together, for each loader; petseg over the notebook."""
    packed = [row for row in rows if row.facts["cell"] == "packed at 128"]
    first = packed[0].facts["recipe"] if packed else ""
    mine = [row for row in packed if row.facts["recipe"] == first]
    made = {
        loader.replace(" ", "_"): ratio(mine, [f"{loader}, end to end"], [f"{EXPECTED}{loader} and step"])
        for loader in LOADERS
    }
    seed = [row for row in packed if row.facts["recipe"] == "seed" and row.facts["kind"] == "petseg"]
    notebook = [row for row in rows if row.facts["cell"] == "originals" and row.name == NOTEBOOK]
    return {**made, "notebook": ratio([*seed, *notebook], [row.name for row in seed], [NOTEBOOK])}


def _expected(loader: str, loading: Row, step: Row) -> Row:
    """What both together can reach: they share a CPU, and on a GPU they run beside each other."""
    on_gpu = torch.cuda.is_available()
    pairs = zip(loading.samples, step.samples, strict=False)
    return Row(
        name=f"{EXPECTED}{loader} and step",
        unit="images/s",
        samples=[min(load, learn) if on_gpu else 1 / (1 / load + 1 / learn) for load, learn in pairs],
        facts={
            **{key: loading.facts[key] for key in ("cell", "recipe", "size", "chart")},
            "kind": "ceiling",
            "detail": "the slower of the two" if on_gpu else "one after the other on the same cores",
        },
    )


def _options(name: str, recipe: Recipe) -> list[str]:
    if name == NOTEBOOK:
        return ["--workers", "0"]
    if name == STEP:
        return ["--recipe", recipe, "--part", "step"]
    loader, what = name.split(", ")
    return ["--recipe", recipe, *LOADERS[loader], "--part", "loader" if what == "loader only" else "both"]


def _detail(row: Row) -> str:
    memory = f"{max(row.facts['memory_mb']):,.0f} MB" if "memory_mb" in row.facts else ""
    waiting: list[Any] = row.facts.get("data_wait_pct", [])
    if row.facts["kind"] == "petseg" and waiting:
        return f"{statistics.median(waiting):.1f}% waiting for data, {memory}"
    return memory
