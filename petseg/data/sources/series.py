"""Which files below a folder go with its images, whatever they are called: rivals of a rule, and what to ask for.

Names are compared by their parts (runs of letters or of digits). A part, or some in a row, that one image of a folder
has alone stands for that image: `21` for `21_training.tif` among its like, and so for `21_manual1.gif`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from petseg.data.decode.image_files import ImageError, opened
from petseg.data.sources.files import IMAGES, MASKS, FilePath, named_split
from petseg.data.sources.pairing import IMAGE_FOLDERS, MASK_FOLDERS, PART, says_mask, says_no_classes

_IMAGES_LOOKED_AT, _OTHERS_LOOKED_AT = 200, 2_000
"""Files of a folder, the first by name."""

_MOST_PARTS = 12
_COVERED = 0.5
"""Share of a folder's images that a series goes with at least."""


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one folder that go with the images of one folder, and differ in their names by what images differ."""

    images: str
    """The images' pattern, such as `training/images/*_training.tif`."""
    others: str
    """The files' pattern, such as `training/mask/*_training_mask.gif`."""
    partners: tuple[tuple[str, str], ...]
    """(image, file) each, by name; of the images that were looked at."""

    @property
    def pair(self) -> str:
        """The value of `--pair` that takes them for the masks."""
        return f"{self.images}={self.others}"


def choices(series: Iterable[Series]) -> str:
    """`--pair` for every series; a line for those of one kind, or for all where each images' folder has but one."""
    every = list(series)
    times = Counter((each.images, _kind_of(each)) for each in every)
    lines: dict[tuple[str, ...], list[Series]] = {}
    folders = Counter(str(PurePosixPath(each.images).parent) for each in every)
    for each in every:
        kind = _kind_of(each) if max(folders.values()) > 1 else ""
        shape = PurePosixPath(each.others).name if times[each.images, kind] > 1 else ""
        lines.setdefault((kind, shape), []).append(each)
    return "".join(
        "\n  " + " ".join(f"--pair '{pair}'" for pair in _joined(alike)[:_SHOWN]) for alike in lines.values()
    )


def series_of(images: Iterable[str], others: Iterable[str]) -> list[Series]:
    """Series of files that go with at least half of a folder's images.

    Args:
        images: paths below one folder, with `/`.
        others: likewise; those of formats that keep codes are compared.

    Returns:
        Those with most images first.
    """
    folders = _by_folder(images)
    near: dict[tuple[int, tuple[str, ...]], set[str]] = {}
    for folder in folders:
        for place in _places(folder):
            near.setdefault(place, set()).add(folder)
    found: list[Series] = []
    for folder, names in _by_folder(path for path in others if PurePosixPath(path).suffix.lower() in MASKS).items():
        for beside in sorted({one for place in _places(folder) for one in near.get(place, ())}):
            if not _other_split(beside, folder):
                found += _compared(beside, folders[beside], folder, names)
    return sorted(found, key=lambda each: (-len(each.partners), each.others))


def rivals_of(root: FilePath, mask_of: dict[str, str], others: Iterable[str]) -> list[Series]:
    """Series among files that were not used which may as well be the masks.

    Not what names or headers say to be something else: images, single objects, colours for the eye.

    Args:
        root: the folder that all paths are relative to.
        mask_of: the mask of every image that has one.
        others: files that are neither.
    """
    return [
        each
        for each in series_of(mask_of, others)
        if not says_no_classes(each.others)
        and not _says_image(each.others)
        and not _looks_like_image(root, each, mask_of)
    ]


def proposals(root: FilePath, files: Iterable[str], *, most: int = 3) -> list[Series]:
    """Series of images and masks among files that no rule pairs, the likeliest first."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path in sorted(files):
        where = PurePosixPath(path)
        if where.suffix.lower() in IMAGES:
            kinds.setdefault((str(where.parent), where.suffix), []).append(path)
    largest = sorted(kinds.values(), key=lambda paths: (-len(paths), paths))[:_KINDS_LOOKED_AT]
    sides = [(images, masks) for images in largest for masks in largest if images is not masks]
    for paths in largest:
        longer = _named_after_others(paths)
        sides.append((sorted(set(paths) - longer), sorted(longer)))
    found = [
        each
        for images, masks in sides
        if images and not says_mask(PurePosixPath(images[0]).stem)
        for each in series_of(images, masks)
        if not says_no_classes(each.others) and _mode(root / images[0]) not in {"P", "1"}
    ]
    found.sort(key=lambda each: (_likeness(root, each), len(each.partners), _alike(each)), reverse=True)
    best: list[Series] = []
    images_of: dict[str, str] = {}
    for each in found:  # what goes with the likelier images goes with no others, and images are not masks
        one, other = str(PurePosixPath(each.images).parent), str(PurePosixPath(each.others).parent)
        taken = {folder: images for folder, images in images_of.items() if folder != images}
        if taken.get(other, one) == one and one not in taken and (one == other or other not in taken.values()):
            images_of[other] = one
            best.append(each)
    return best[:most]


def _alike(series: Series) -> int:
    """How much the names of two that go together have in common: characters of what stands for the image."""
    image, other = (PurePosixPath(path).stem for path in series.partners[0])
    return -abs(len(image) - len(other)) if image not in other else len(image)


_KINDS_LOOKED_AT = 12


def _named_after_others(paths: Sequence[str]) -> set[str]:
    """Files of a folder whose names are another one's and more: `x_truth.png` beside `x.png`."""
    stems = {PurePosixPath(path).stem for path in paths}
    longer: set[str] = set()
    for path in paths:
        stem = PurePosixPath(path).stem
        ends = [match.start() for match in PART.finditer(stem)][1:]
        if any(stem[:end].rstrip(" _-.") in stems - {stem} for end in ends):
            longer.add(path)
    return longer


def _likeness(root: FilePath, series: Series) -> int:
    """How much a series of two looks like images and their masks."""
    image, mask = series.partners[0]
    words = [part.lower() for part in PART.findall(series.others)]
    modes = _mode(root / image), _mode(root / mask)
    said = says_mask(PurePosixPath(mask).stem) or any(word in MASK_FOLDERS for word in words)
    return (
        2 * (modes[0] == "RGB" and modes[1] in {"P", "L", "1"})
        + said
        + (PurePosixPath(image).suffix.lower() not in MASKS)
    )


def _kind_of(series: Series) -> str:
    """The folder that the others have where the images have another; empty where both lie in one."""
    image, other = PurePosixPath(series.images).parts[:-1], PurePosixPath(series.others).parts[:-1]
    return next((name for at, name in enumerate(other) if image[at : at + 1] != (name,)), "")


def _joined(series: Sequence[Series]) -> list[str]:
    """Values of `--pair`; one for series whose names differ only by a folder that both sides have."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for each in series:
        image, other = each.images.split("/"), each.others.split("/")
        shape = (
            image[-1],
            other[-1],
            *("" if i == o else f"{i}\0{o}" for i, o in zip(image[:-1], other[:-1], strict=False)),
        )
        if len(image) != len(other):
            shape = (each.pair,)
        alike.setdefault(shape, []).append([each.images, each.others])
    found: list[str] = []
    for every in alike.values():
        sides = [
            [
                "*" if len(set(names)) > 1 else names[0]
                for names in zip(*(side.split("/") for side in sides), strict=True)
            ]
            for sides in zip(*every, strict=True)
        ]
        found.append("=".join("/".join(side) for side in sides))
    return found


_SHOWN = 4


def _compared(image_folder: str, images: list[str], folder: str, names: list[str]) -> list[Series]:
    images = images[:_IMAGES_LOOKED_AT]
    of_part: dict[str, str | None] = {}
    for path in images:
        for part, _, _ in rows_of_parts(PurePosixPath(path).stem):
            of_part[part] = None if of_part.get(part, path) != path else path
    if len(images) == 1:
        of_part = {part: path for part, path in of_part.items() if any(c.isdigit() for c in part)}
    by_shape: dict[tuple[str, str, str], dict[str, tuple[str, str]]] = {}
    for path in names[:_OTHERS_LOOKED_AT]:
        where = PurePosixPath(path)
        for part, before, after in rows_of_parts(where.stem):
            image = of_part.get(part)
            if image is not None:
                if image != path:
                    by_shape.setdefault((before, after, where.suffix), {})[image] = path, part
                break
    found: list[Series] = []
    for (before, after, suffix), partners in by_shape.items():
        if len(partners) >= _COVERED * len(images):
            shapes = {_shape(PurePosixPath(image), part) for image, (_, part) in partners.items()}
            if len(shapes) == 1:
                pair = tuple((image, path) for image, (path, _) in sorted(partners.items()))
                found.append(
                    Series(_within(image_folder, shapes.pop()), _within(folder, f"{before}*{after}{suffix}"), pair)
                )
    return found


def _shape(image: PurePosixPath, part: str) -> str:
    before, _, after = image.stem.partition(part)
    return f"{before}*{after}{image.suffix}"


def _within(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def rows_of_parts(stem: str) -> list[tuple[str, str, str]]:
    """(parts in a row, what stands before, what stands behind), the longest first."""
    parts = list(PART.finditer(stem))[:_MOST_PARTS]
    rows = [
        (stem[first.start() : last.end()], stem[: first.start()], stem[last.end() :])
        for number, first in enumerate(parts)
        for last in parts[number:]
    ]
    return sorted(rows, key=lambda row: -len(row[0]))


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found.setdefault(str(PurePosixPath(path).parent), []).append(path)
    return found


def _places(folder: str) -> list[tuple[int, tuple[str, ...]]]:
    """The part of a folder's path in common with those that differ from it in one name, and with the one above it."""
    names = PurePosixPath(folder).parts
    return [(-1, names), *((at, names[:at] + names[at + 1 :]) for at in range(len(names)))] + (
        [(-1, names[:-1])] if names else []
    )


def _other_split(one: str, other: str) -> bool:
    """Whether the other folder names a split that the one does not."""
    splits = [{named_split(name) for name in PurePosixPath(folder).parts} for folder in (one, other)]
    return bool(splits[1] - splits[0] - {None})


def _says_image(pattern: str) -> bool:
    folders = PurePosixPath(pattern).parts[:-1]
    return any(part.lower() in IMAGE_FOLDERS for folder in folders for part in PART.findall(folder))


def _looks_like_image(root: FilePath, series: Series, mask_of: dict[str, str]) -> bool:
    image, other = series.partners[0]
    kind = _mode(root / other)
    return kind == _mode(root / image) != _mode(root / mask_of[image])


@functools.lru_cache(maxsize=64)
def _mode(path: FilePath) -> str:
    """Pillow's name for what a pixel of an image is, by its header."""
    try:
        with opened(path.read_bytes()) as image:
            return image.mode
    except (OSError, ImageError):
        return ""
