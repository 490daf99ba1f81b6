"""Any folder of images beside any folder of masks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from petseg.classes import ClassTable
from petseg.data.sources import Listing, Pair, Rejected
from petseg.data.sources.files import IMAGES, MASKS, ignored, unfit_key
from petseg.errors import PetsegError

_MASK_ENDINGS = re.compile(r"(_mask|_seg|_label|_labels|_trimap|_gtFine_labelIds|_segmentation)$")
"""What tools hang behind the image's name in the mask's."""

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Images and masks that pair up by their path below the two folders, without suffix.

    `city/a.jpg` pairs with `city/a.png`, or with `city/a_mask.png` and the like; its key is `city-a`.
    """

    images: Path
    masks: Path
    classes: ClassTable

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return f"folder:{self.images},{self.masks}"

    def listing(self) -> Listing:
        """Find the pairs.

        Raises:
            PetsegError: no such folder, or no pair in them.
        """
        images, doubled, passed = _find(self.images, IMAGES, masks=False)
        masks, doubled_masks, passed_masks = _find(self.masks, MASKS, masks=True)
        rejected = [*doubled, *doubled_masks]
        taken = {r.key for r in rejected}
        pairs: list[Pair] = []
        keys: dict[str, str] = {}
        for name in sorted({*images, *masks} - taken):
            if name not in masks or name not in images:
                what = "image without a mask" if name in images else "mask without an image"
                rejected.append(Rejected(key=name, reason=what))
                continue
            key = _UNFIT.sub("-", name)
            reason = unfit_key(key)
            if key in keys:
                reason = f"{keys[key]} has the same key, {key}"
            if reason:
                rejected.append(Rejected(key=name, reason=reason))
                continue
            keys[key] = name
            image, mask = images[name], masks[name]
            size = image.stat().st_size + mask.stat().st_size
            pairs.append(Pair(key=key, image=str(image), mask=str(mask), size=size))
        if not pairs:
            raise PetsegError(
                f"{self.name}: no pair of image and mask is left ({len(images)} images, {len(masks)} masks): files "
                "pair up by their name without suffix."
            )
        return Listing(
            pairs=tuple(sorted(pairs, key=lambda pair: pair.key)),
            rejected=tuple(sorted(rejected, key=lambda r: r.key)),
            ignored=passed + (passed_masks if self.masks != self.images else 0),
        )

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return Path(pair.image).read_bytes(), Path(pair.mask).read_bytes()


def _find(root: Path, suffixes: frozenset[str], *, masks: bool) -> tuple[dict[str, Path], list[Rejected], int]:
    """(files by their name below `root`, names that stand twice, files passed over by name)."""
    if not root.is_dir():
        raise PetsegError(f"no such folder: {root}; give folder:IMAGES,MASKS.")
    found: dict[str, Path] = {}
    doubled: dict[str, Rejected] = {}
    passed = 0
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        below = path.relative_to(root)
        if ignored(path) or any(part.startswith(".") for part in below.parts[:-1]):
            passed += 1
            continue
        if path.suffix.lower() not in suffixes:
            continue
        name = below.with_suffix("").as_posix()
        if masks:
            name = _MASK_ENDINGS.sub("", name)
        if name in found:
            doubled[name] = Rejected(key=name, reason=f"{found[name].name} and {path.name} have one name")
        found.setdefault(name, path)
    return found, list(doubled.values()), passed
