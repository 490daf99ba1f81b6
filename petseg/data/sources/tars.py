"""WebDataset tars made elsewhere, to be repacked."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from petseg.classes import ClassTable
from petseg.data.sources import Listing, Pair, Rejected
from petseg.data.sources.files import HEADER_BYTES, IMAGES, MASKS, fit_key, named_split, refuse_unfinished, unfit_key
from petseg.data.tar import Component, scan_tar
from petseg.errors import PetsegError
from petseg.system import open_file, read_at

_MASK_WORDS = ("mask", "seg", "label", "trimap", "gt")


@dataclass(frozen=True, slots=True)
class TarsSource:
    """Uncompressed tars whose samples are adjacent members with one name up to the first dot.

    The mask is the member whose extension says so (`mask.png`, `seg.png`, `label.png`), or else the only PNG beside a
    picture of another kind. Nothing is unpickled, and no command is run.
    """

    pattern: str
    classes: ClassTable

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return f"tars:{self.pattern}"

    def listing(self) -> Listing:
        """Find the pairs by the tars' headers.

        Raises:
            PetsegError: no tar there, one that is damaged, or no pair in them.
        """
        paths = [Path(path) for path in sorted(glob.glob(self.pattern))]  # noqa: PTH207 - absolute patterns
        if not paths:
            raise PetsegError(f"{self.name}: no such file; quote the pattern, such as 'tars:data/*.tar'.")
        for folder in {path.parent for path in paths}:
            refuse_unfinished(folder)
        splits = {path: named_split(path.name) for path in paths}
        if None in splits.values():
            splits = dict.fromkeys(paths)
        pairs: dict[str, Pair] = {}
        rejected: list[Rejected] = []
        for path in paths:
            for name, components in scan_tar(path, advice="fetch it again, or unpack it"):
                key = fit_key(name)
                chosen = _choose({c.extension.lower(): c for c in components})
                reason = unfit_key(key)
                if isinstance(chosen, str):
                    reason = chosen
                elif key in pairs:
                    reason = f"its key stands twice (also in {pairs[key].image.rpartition(':')[0]})"
                if reason or isinstance(chosen, str):
                    rejected.append(Rejected(key=f"{path.name}:{name}", reason=str(reason)))
                    continue
                image, mask = chosen
                pairs[key] = Pair(
                    key=key,
                    image=f"{path}:{image.offset}+{image.size}",
                    mask=f"{path}:{mask.offset}+{mask.size}",
                    size=image.size + mask.size,
                    split=splits[path],
                )
        if not pairs:
            why = f"; the first sample was left out: {rejected[0].reason}" if rejected else ""
            raise PetsegError(f"{self.name}: no pair of image and mask is left{why}.")
        return Listing(
            pairs=tuple(pairs[key] for key in sorted(pairs)),
            rejected=tuple(sorted(rejected, key=lambda r: r.key)),
            rule="by name, within tars",
        )

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return _read(pair.image), _read(pair.mask)

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return _read(pair.image, HEADER_BYTES), _read(pair.mask, HEADER_BYTES)


def _read(where: str, most: int | None = None) -> bytes:
    path, _, span = where.rpartition(":")
    offset, size = map(int, span.split("+"))
    file = open_file(path)
    try:
        return read_at(file, size if most is None else min(size, most), offset)
    finally:
        os.close(file)


def _choose(members: dict[str, Component]) -> tuple[Component, Component] | str:
    """Image and mask of a sample, or why there is none."""
    pictures = {e: m for e, m in members.items() if f".{e.rpartition('.')[2]}" in IMAGES}
    named = [e for e in pictures if any(word in e for word in _MASK_WORDS) and f".{e.rpartition('.')[2]}" in MASKS]
    masks = named or [e for e in pictures if f".{e.rpartition('.')[2]}" == ".png" and len(pictures) > 1]
    images = [e for e in pictures if e not in masks]
    if len(masks) == 1 and len(images) == 1:
        return pictures[images[0]], pictures[masks[0]]
    what = ", ".join(sorted(members)) or "nothing"
    return f"its members ({what}) are not one image and one mask"
