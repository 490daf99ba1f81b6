"""CamVid's streets: mean IoU on whole images of val, petseg's `scenes` recipe beside smp's U-Net in a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.data import WORK, folder_for, write_files
from benchmarks.harness import ContenderError, Row
from benchmarks.learn import Entry, Point, run_entry
from petseg.classes import ClassTable
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources import Source
from petseg.data.sources.resolve import resolve_source
from petseg.system import usable_cores

MINUTES, QUICK_MINUTES = 25.0, 1.0
"""What each contender may train for; the two of a seed take an hour with their scores."""

PETSEG = Entry(name="petseg --recipe scenes", kind="petseg", script="learn_scenes_petseg.py", budgets=True)
SMP = Entry(name="smp Unet-resnet18, plain loop", kind="library", script="learn_scenes_smp.py")

NAMES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
"""The classes of SegNet's tutorial, by their codes; 11 is void."""

PAIRS = ("train/*.{jpg,png}=trainannot/*.png", "val/*.{jpg,png}=valannot/*.png")


def source_of(folder: str) -> Source:
    """The train and val images of a folder in the layout of SegNet's tutorial.

    Raises:
        PetsegError: it is not such a folder.
    """
    classes = ClassTable.from_dict({"codes": list(range(11)), "names": list(NAMES), "ignored": [11]})
    return resolve_source(folder, classes=classes, pair=PAIRS)


def prepare(source: Source) -> Path:
    """Its shards at their own size, and the same images of train as files beside them; kept between runs."""
    folder, whole = folder_for("scenes", source, WORK)
    if whole:
        return folder
    pack(source, folder / "shards", PackOptions(split="official", short_side=0), workers=usable_cores())
    write_files(folder / "shards", folder / "files")
    (folder / "whole").touch()
    return folder


def run_all(
    data: Path, entries: Sequence[Entry], *, seeds: Sequence[int], minutes: float, progress: Callable[[str], None]
) -> Iterator[list[Row]]:
    """Run every contender with every seed, in turns.

    Args:
        data: as `prepare` made it.
        entries: of `PETSEG` and `SMP`.
        seeds: of weights and order.
        minutes: of training, for each.
        progress: called with a contender's name after each run.

    Yields:
        After each seed, the rows of all until then.
    """
    curves: dict[str, list[list[Point]]] = {entry.name: [] for entry in entries}
    failed: dict[str, str] = {}
    for seed in seeds:
        for entry in entries:
            if entry.name not in failed:
                try:
                    curves[entry.name].append(run_entry(entry, data, seed, 60 * minutes))
                except ContenderError as error:
                    failed[entry.name] = f"failed: {error}"
            progress(entry.name)
        yield [_row(entry, curves[entry.name], minutes, failed.get(entry.name, "")) for entry in entries]


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Medians of mean IoU over seeds: petseg's, and by how much it is more than the loop's."""
    ours, theirs = (
        next(
            (sorted(row.samples)[len(row.samples) // 2] for row in rows if row.name == entry.name and row.samples), None
        )
        for entry in (PETSEG, SMP)
    )
    return {"mean_iou": ours, "above_smp": ours - theirs if ours is not None and theirs is not None else None}


def _row(entry: Entry, curves: Sequence[Sequence[Point]], minutes: float, note: str) -> Row:
    """The best of each curve: a kindness to the loop, which has no weights to choose."""
    best = [max(points, key=lambda point: point.mean_iou) for points in curves]
    detail = ""
    if best:
        first = best[0]
        detail = f"{first.facts['epochs']} epochs in {first.seconds / 60:.1f} minutes; " + ", ".join(
            f"{name} {value:.2f}" for name, value in first.facts["iou"].items()
        )
    return Row(
        name=entry.name, unit="mean IoU", samples=[point.mean_iou for point in best], note=note,
        facts={
            "chart": f"CamVid, whole images of val, after {minutes:g} minutes of training at most",
            "kind": entry.kind, "detail": detail,
            "curves": [[{"seconds": p.seconds, "mean_iou": p.mean_iou, **p.facts} for p in curve] for curve in curves],
        },
    )  # fmt: skip
