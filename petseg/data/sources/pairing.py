"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from petseg.errors import PetsegError

_IMAGE_WORDS = "image|img|im|photo|picture|rgb|sat|leftImg8bit"
_MASK_WORDS = (
    "mask|masks|msk|label|labels|seg|segmentation|annotation|trimap|gt|L|"
    "gtFine_labelIds|gtFine_labelTrainIds|labelIds|labelTrainIds"
)


def _affixes(words: str) -> re.Pattern[str]:
    # `img_1` and `img1`, but not `imgur_1`; at the end only what a separator parts: `x_L`, not `PIXEL`.
    return re.compile(rf"^(?:{words})(?:[_-]+|(?=\d))|[_-]+(?:{words})$", re.IGNORECASE)


_IMAGE_AFFIX, _MASK_AFFIX = _affixes(_IMAGE_WORDS), _affixes(_MASK_WORDS)

IMAGE_FOLDERS = frozenset(
    {"image", "images", "img", "imgs", "photo", "photos", "pictures", "jpegimages", "leftimg8bit"}
)
"""Names of folders (in small letters) that hold images."""

MASK_FOLDERS = frozenset({
    "mask", "masks", "label", "labels", "annotation", "annotations", "seg", "segmentation", "segmentations",
    "segmentationclass", "trimaps", "gt", "gtfine", "ground_truth", "groundtruth",
})  # fmt: skip
"""Names of folders (in small letters) that hold masks."""


def says_mask(name: str) -> bool:
    """Whether a file's name, without suffix, says that it is a mask."""
    return _MASK_AFFIX.search(name) is not None


def pair_names(images: Iterable[str], masks: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Pair names without suffix, which may hold folders (`city/a`).

    Equal names pair. Of the others, those pair that are equal without what tools put before or behind them (`img_1`
    with `mask_1`, `a` with `a_mask`, `x_image` with `x_label`, `x` with `x_L`), where that leaves one of each.

    Returns:
        (mask by image, why the others are left out by name).
    """
    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    of_images, of_masks = set(images), set(masks)
    for image_base, mask_base in ((_itself, _itself), (_itself, _bare_mask), (_bare_image, _bare_mask)):
        bases: dict[str, tuple[list[str], list[str]]] = {}
        for number, (names, base) in enumerate(((of_images, image_base), (of_masks, mask_base))):
            for name in sorted(names):
                folder, slash, last = name.rpartition("/")
                bases.setdefault(f"{folder}{slash}{base(last)}", ([], []))[number].append(name)
        for ours, theirs in bases.values():
            if ours and theirs:
                of_images -= set(ours)
                of_masks -= set(theirs)
            if len(ours) == len(theirs) == 1:
                found[ours[0]] = theirs[0]
            elif ours and theirs:
                every = [*ours, *theirs]
                left_out.update(dict.fromkeys(every, f"{', '.join(every)} could pair in more than one way"))
    left_out.update(dict.fromkeys(of_images, "image without a mask"))
    left_out.update(dict.fromkeys(of_masks, "mask without an image"))
    return found, left_out


def _itself(name: str) -> str:
    return name


def _bare_image(name: str) -> str:
    return _IMAGE_AFFIX.sub("", name) or name


def _bare_mask(name: str) -> str:
    return _MASK_AFFIX.sub("", name) or name


class PairPattern:
    """`images/*.jpg=masks/*_gt.png`: where images are, and each one's mask, both below one folder.

    `*` stands for anything within a name, `**/` for any folders, `?` for one character; what they stand for in the
    image's path stands in the mask's, in order.
    """

    def __init__(self, text: str) -> None:
        images, equals, masks = text.partition("=")
        if not (images and equals and masks):
            raise PetsegError(f"--pair '{text}': give IMAGES=MASKS, such as 'images/*.jpg=masks/*_gt.png'.")
        parts = _WILDCARD.split(images)
        wildcards = _WILDCARD.findall(images)
        self._mask_parts = _WILDCARD.split(masks)
        if not wildcards or wildcards != _WILDCARD.findall(masks):
            raise PetsegError(f"--pair '{text}': the wildcards of both sides must be the same, and one at least.")
        pattern = re.escape(parts[0])
        for wildcard, part in zip(wildcards, parts[1:], strict=True):
            pattern += _EXPRESSIONS[wildcard] + re.escape(part)
        self._expression = re.compile(pattern)

    def mask_of(self, image: Path) -> Path | None:
        """The path of an image's mask, both relative to the folder; None if it is no image by the pattern."""
        match = self._expression.fullmatch(image.as_posix())
        if match is None:
            return None
        path = self._mask_parts[0]
        for value, part in zip(match.groups(), self._mask_parts[1:], strict=True):
            path += value + part
        return Path(path)


_WILDCARD = re.compile(r"\*\*/|\*|\?")
_EXPRESSIONS = {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}
