"""The table of values in masks, and the class map to start from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from petseg.data.shards.labels import Value
from petseg.data.shards.mask_files import RejectError, packed_colours, read_mask
from petseg.data.sources import Rejected
from petseg.data.sources.files import JPEGS, MASKS, ignored
from petseg.data.sources.pairing import IMAGE_FOLDERS
from petseg.errors import PetsegError

VOID = 255
"""The code that VOC, ADE20K, Cityscapes and their tools give to pixels that count for nothing."""

_MOST = 255


@dataclass(slots=True)
class Found:
    """How often a value occurs."""

    pixels: int = 0
    files: int = 0


@dataclass(slots=True)
class MaskScan:
    """What a number of masks hold."""

    files: int = 0
    values: dict[Value, Found] = field(default_factory=dict)
    """By code, or by colour if any mask is in colours."""
    rejected: list[Rejected] = field(default_factory=list)
    void_beside: set[Value] = field(default_factory=set)
    """Codes that stand in one mask with `VOID`."""
    between: int = 0
    """Pixels that are neither 0 nor 255."""
    on_edges: int = 0
    """Those of them that lie on a slope, or next to 0 or 255 in value, as smoothing and compression leave them."""
    disagreement: str = ""
    """What palettes disagree about, where they do; then `values` are their colours."""

    @property
    def in_colours(self) -> bool:
        """Whether `values` are colours."""
        return any(len(value) == 3 for value in self.values)

    @property
    def soft(self) -> bool:
        """Whether these are masks of 0 and 255 with soft edges."""
        two = not self.in_colours and (0,) in self.values and (VOID,) in self.values
        return two and len(self.values) > _CODES_OF_SOFT and self.on_edges >= _SHARE_OF_SOFT * self.between

    @property
    def mixed(self) -> bool:
        """Whether some masks have 0 and 1, and others 0 and 255."""
        return set(self.values) == {(0,), (1,), (VOID,)} and (1,) not in self.void_beside

    def void(self) -> int | None:
        """The code that is taken for void: `VOID`, where it stands beside two others in one mask."""
        foreground = self.void_beside - {(0,)}
        return VOID if foreground and not self.soft else None

    def class_map(self, labels: Mapping[Value, str] | None = None) -> dict[str, object]:
        """A class map (`ClassTable.from_dict`) that takes every value for a class, but `void`; black or 0 comes first.

        Args:
            labels: names by value, where they are known (`label_names`).

        Raises:
            PetsegError: fewer than two values, or more than there are codes.
        """
        every = sorted(self.values)
        if not self.files and self.rejected:
            first = self.rejected[0]
            raise PetsegError(
                f"none of the {len(self.rejected)} masks could be read, the first ({first.key}) because it "
                f"{first.reason.removeprefix('mask ')}."
            )
        if self.soft:
            return {"codes": [0, VOID], "names": ["background", "foreground"], "threshold": 128}
        if self.mixed:
            return {"codes": [0, 1], "names": ["background", "foreground"], "values": [[0], [1, VOID]]}
        if not 2 <= len(every) <= _MOST + 1:
            raise PetsegError(
                f"the masks hold {len(every)} different {'colours' if self.in_colours else 'codes'}, and a class map "
                f"has 2 to {_MOST}: edges that were smoothed have to be saved again without interpolation, and "
                "photographs are not masks."
            )
        chosen = [value for value in every if value != (self.void(),)]
        codes = list(range(len(chosen))) if self.in_colours else [value[0] for value in chosen]
        two = len(chosen) == 2 and not any(chosen[0])
        names = ["background", "foreground"] if two else [f"class {code}" for code in codes]
        if not any(chosen[0]):
            names[0] = "background"
        known = labels or {}
        names = [known.get(value, name) for value, name in zip(chosen, names, strict=True)]
        times = Counter(names)
        names = [f"{name} {code}" if times[name] > 1 else name for name, code in zip(names, codes, strict=True)]
        made: dict[str, object] = {"codes": [*codes], "names": [*names]}
        if self.in_colours:
            made["colours"] = [list(value) for value in chosen]
        if self.void() is not None:
            made["ignored"] = [VOID]
        return made

    def remarks(self) -> list[str]:
        """What was guessed, in sentences."""
        if self.soft:
            return ["0 and 255 with soft edges: threshold = 128 in the class map takes what is lighter for foreground."]
        if self.mixed:
            return ["Some masks have 0 and 1, others 0 and 255: values = [[0], [1, 255]] takes 255 for 1."]
        return [self.disagreement] if self.disagreement else []

    def to_toml(self, labels: Mapping[Value, str] | None = None) -> str:
        """`class_map` as TOML, one line a key."""
        # TOML writes numbers, strings and arrays of them as JSON does.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.class_map(labels).items())


_CODES_OF_SOFT = 8
"""Different values that masks of two classes have at least, if their edges are soft."""

_SHARE_OF_SOFT = 0.9
_NEAR = 16
_NEIGHBOURS = np.ones((3, 3), np.uint8)


def scan_masks(masks: Iterable[tuple[str, bytes]], progress: Callable[[int], None] = lambda _: None) -> MaskScan:
    """Count what masks hold.

    Args:
        masks: (name, file) each.
        progress: called with 1 after each.

    Raises:
        PetsegError: some are in colours and others have one code a pixel.
    """
    grey, colours, by_palette = MaskScan(), MaskScan(), MaskScan()
    first: dict[bool, str] = {}
    palettes: dict[int, tuple[Value, str]] = {}
    for name, data in masks:
        try:
            mask = read_mask(data, jpeg=True)
        except RejectError as fault:
            grey.rejected.append(Rejected(key=name, reason=str(fault)))
        else:
            values = mask.values
            saved_as_rgb = values.ndim == 3
            if saved_as_rgb and (values == values[..., :1]).all():
                _count(grey, values[..., 0])  # which of the two it is, the others say
                _count(colours, values)
            else:
                first.setdefault(saved_as_rgb, name)
                _count(colours if saved_as_rgb else grey, values)
            if mask.palette is not None:
                _count(by_palette, mask.palette[values])
                for index in np.unique(values).tolist():
                    colour = tuple(mask.palette[index].tolist())
                    known, where = palettes.setdefault(index, (colour, name))
                    if known != colour and not by_palette.disagreement:
                        by_palette.disagreement = (
                            f"The palettes disagree: index {index} is {known} in {where} and {colour} in {name}; so "
                            "the class map goes by colours."
                        )
        progress(1)
    if len(first) == 2:
        raise PetsegError(
            f"{first[False]} has one code a pixel, but {first[True]} is in colours: give one kind at once."
        )
    chosen = by_palette if by_palette.disagreement else colours if True in first else grey
    chosen.rejected = grey.rejected
    return chosen


def mask_files(folder: Path) -> list[Path]:
    """Files below a folder that may be masks; not those below folders that are named like images.

    Raises:
        PetsegError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise PetsegError(f"no such folder: {folder}; give the one with the masks.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not ignored(path)
        and not IMAGE_FOLDERS & {part.lower() for part in path.relative_to(folder).parts[:-1]}
        and path.is_file()
    ]
    every = ([path for path in files if path.suffix.lower() in suffixes] for suffixes in (MASKS, JPEGS))
    found = next((some for some in every if some), [])
    if not found:
        raise PetsegError(f"{folder} holds no mask: they end in {', '.join(sorted(MASKS))}.")
    return found


def _count(scan: MaskScan, mask: np.ndarray) -> None:
    scan.files += 1
    if mask.ndim == 3:
        values, pixels = np.unique(packed_colours(mask), return_counts=True)
    else:
        pixels = np.bincount(mask.ravel(), minlength=256)
        values = np.flatnonzero(pixels)
        pixels = pixels[values]
    for value, n in zip(values.tolist(), pixels.tolist(), strict=True):
        key: Value = (value >> 16, value >> 8 & 255, value & 255) if mask.ndim == 3 else (value,)
        found = scan.values.setdefault(key, Found())
        found.pixels += n
        found.files += 1
    if mask.ndim == 2:
        if VOID in values:
            scan.void_beside |= {(value,) for value in values.tolist()} - {(VOID,)}
        between = (mask > 0) & (mask < VOID)
        if between.any():
            lower, higher = cv2.erode(mask, _NEIGHBOURS), cv2.dilate(mask, _NEIGHBOURS)
            slope = (lower < mask) & (higher > mask)
            scan.between += int(between.sum())
            scan.on_edges += int((between & (slope | (mask <= _NEAR) | (mask >= VOID - _NEAR))).sum())
