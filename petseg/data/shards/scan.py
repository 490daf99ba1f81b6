"""What masks hold, and the class map to start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from petseg.data.shards.normalise import RejectError, packed_colours, read_mask
from petseg.data.sources import Rejected
from petseg.data.sources.files import MASKS, ignored
from petseg.data.sources.pairing import IMAGE_FOLDERS
from petseg.errors import PetsegError

VOID = 255
"""The code that VOC, ADE20K, Cityscapes and their tools give to pixels that count for nothing."""

_MOST = 255

Value = tuple[int, ...]
"""A code, (code,), or a colour, (red, green, blue)."""


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

    @property
    def in_colours(self) -> bool:
        """Whether `values` are colours."""
        return any(len(value) == 3 for value in self.values)

    def void(self) -> int | None:
        """The code that is taken for void: `VOID`, if there are two others at least."""
        return VOID if (VOID,) in self.values and len(self.values) > 2 else None

    def class_map(self) -> dict[str, list[object]]:
        """A class map (`ClassTable.from_dict`) that takes every value for a class, but `void`; black or 0 comes first.

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
        if not 2 <= len(every) <= _MOST + 1:
            raise PetsegError(
                f"the masks hold {len(every)} different {'colours' if self.in_colours else 'codes'}, and a class map "
                f"has 2 to {_MOST}: edges that were smoothed have to be saved anew without interpolation, and "
                "photographs are no masks."
            )
        chosen = [value for value in every if value != (self.void(),)]
        codes = list(range(len(chosen))) if self.in_colours else [value[0] for value in chosen]
        two = len(chosen) == 2 and not any(chosen[0])
        names = ["background", "foreground"] if two else [f"class {code}" for code in codes]
        if not any(chosen[0]):
            names[0] = "background"
        made: dict[str, list[object]] = {"codes": [*codes], "names": [*names]}
        if self.in_colours:
            made["colours"] = [list(value) for value in chosen]
        if self.void() is not None:
            made["ignored"] = [VOID]
        return made

    def to_toml(self) -> str:
        """`class_map` as TOML, one line a key."""
        # TOML writes numbers, strings and arrays of them as JSON does.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.class_map().items())


def scan_masks(masks: Iterable[tuple[str, bytes]], progress: Callable[[int], None] = lambda _: None) -> MaskScan:
    """Count what masks hold.

    Args:
        masks: (name, file) each.
        progress: called with 1 after each.

    Raises:
        PetsegError: some are in colours and others have one code a pixel.
    """
    grey, colours = MaskScan(), MaskScan()
    first: dict[bool, str] = {}
    for name, data in masks:
        try:
            mask = read_mask(data)
        except RejectError as fault:
            grey.rejected.append(Rejected(key=name, reason=str(fault)))
        else:
            saved_as_rgb = mask.ndim == 3
            if saved_as_rgb and (mask == mask[..., :1]).all():
                _count(grey, mask[..., 0])  # which of the two it is, the others say
                _count(colours, mask)
            else:
                first.setdefault(saved_as_rgb, name)
                _count(colours if saved_as_rgb else grey, mask)
        progress(1)
    if len(first) == 2:
        raise PetsegError(
            f"{first[False]} has one code a pixel, but {first[True]} is in colours: give one kind at once."
        )
    chosen = colours if True in first else grey
    chosen.rejected = grey.rejected
    return chosen


def mask_files(folder: Path) -> list[Path]:
    """Files below a folder that may be masks; not those below folders that are named like images.

    Raises:
        PetsegError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise PetsegError(f"no such folder: {folder}; give the one with the masks.")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in MASKS
        and not ignored(path)
        and not IMAGE_FOLDERS & {part.lower() for part in path.relative_to(folder).parts[:-1]}
        and path.is_file()
    ]
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
        key = (value >> 16, value >> 8 & 255, value & 255) if mask.ndim == 3 else (value,)
        found = scan.values.setdefault(key, Found())
        found.pixels += n
        found.files += 1
