"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

_IMAGE_WORDS = "image|img|im|photo|picture|rgb|sat|leftImg8bit"
_MASK_WORDS = (
    "mask|masks|msk|label|labels|seg|segmentation|annotation|trimap|gt|L|"
    "gtFine_labelIds|gtFine_labelTrainIds|labelIds|labelTrainIds"
)


def _affixes(words: str) -> re.Pattern[str]:
    # `img_1` and `img1`, but not `imgur_1`; at the end only what a separator parts: `x_L`, not `PIXEL`.
    return re.compile(rf"^(?:{words})(?:[_-]+|(?=\d))|[_-]+(?:{words})$", re.IGNORECASE)


def _inside(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=[_-])(?:{words})[_-]+(?=.)|[_-]+(?:{words})(?=[_-]?\d+$)", re.IGNORECASE)


_IMAGE_AFFIX, _MASK_AFFIX = _affixes(_IMAGE_WORDS), _affixes(_MASK_WORDS)
_IMAGE_INSIDE, _MASK_INSIDE = _inside(_IMAGE_WORDS), _inside(_MASK_WORDS)
_IMAGE_SUFFIX = re.compile(r"\.(?:jpe?g|png|tiff?|bmp)$", re.IGNORECASE)
"""Of a mask that is named after its image's file: `x.jpg.png`."""

_NUMBERED = re.compile(rf"[_-]+(?:{_MASK_WORDS})[_-]?\d+$", re.IGNORECASE)
"""Of several masks of one image: `x_mask_1`."""

NO_MASK, NO_IMAGE = "image without a mask", "mask without an image"
"""Reasons of files that have no partner."""

IMAGE_FOLDERS = frozenset(
    {"image", "images", "img", "imgs", "photo", "photos", "pictures", "jpegimages", "leftimg8bit"}
)
"""Names of folders (in small letters) that hold images."""

MASK_FOLDERS = frozenset({
    "mask", "masks", "label", "labels", "annotation", "annotations", "seg", "segmentation", "segmentations",
    "segmentationclass", "trimaps", "gt", "gtfine", "ground_truth", "groundtruth",
})  # fmt: skip
"""Names of folders (in small letters) that hold masks."""


PART = re.compile(r"[^\W\d_]+|\d+")
"""A part of a name: a run of letters or of digits."""

_NOT_CLASSES = re.compile(
    "segmentationobject|instances?|instance(train)?ids|panoptic|colou?rs?|overlays?|vis|visuali[sz]ations?|previews?",
    re.IGNORECASE,
)
"""Parts of names of images beside masks that hold something else: single objects, or colours for the eye."""


def says_no_classes(path: str) -> bool:
    """Whether names say that an image beside a mask holds single objects, or colours for the eye."""
    return any(_NOT_CLASSES.fullmatch(part) for part in PART.findall(path))


def says_mask(name: str) -> bool:
    """Whether a file's name, without suffix, says that it is a mask."""
    return (_MASK_AFFIX.search(name) or _NUMBERED.search(name)) is not None


def pair_names(images: Iterable[str], masks: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Pair names without suffix, which may hold folders (`city/a`).

    Equal names pair, small and capital letters alike. Of the others, those pair that are equal without what tools put
    before, behind or between them (`img_1` with `mask_1`, `a` with `a_mask`, `x_image` with `x_label`, `x` with `x_L`,
    `x_image_1` with `x_mask_1`), where that leaves one image. Masks that are left over then belong to the image that
    they would have paired with, as do numbered ones (`x_mask_1`) and those whose names are an image's and more
    (`x-fish`, `x_anno2`), so that an image may have several.

    Returns:
        (masks by image, why the others are left out by name).
    """
    found: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    of_images, of_masks = set(images), set(masks)
    every = set(of_images)
    for image_base, mask_base in _BASES:
        for ours, theirs in _grouped(of_images, image_base, of_masks, mask_base):
            of_images -= set(ours)
            of_masks -= set(theirs)
            if len(ours) == 1:
                found[ours[0]] = theirs
            else:
                both = [*ours, *theirs]
                left_out.update(dict.fromkeys(both, f"{', '.join(both)} could pair in more than one way"))
    for image_base, mask_base in _BASES:
        for ours, theirs in _grouped(every - left_out.keys(), image_base, of_masks, mask_base):
            if len(ours) == 1 and ours[0] in found:
                found[ours[0]] = sorted([*found[ours[0]], *theirs])
                of_masks -= set(theirs)
    for mask in sorted(of_masks):
        image = None if says_no_classes(mask) else extended(mask, every - left_out.keys())
        if image is not None:
            found[image] = sorted([*found.get(image, []), mask])
            of_images.discard(image)
            of_masks.discard(mask)
    left_out.update(dict.fromkeys(of_images, NO_MASK))
    left_out.update(dict.fromkeys(of_masks, NO_IMAGE))
    return found, left_out


def extended(name: str, names: Collection[str]) -> str | None:
    """The longest of some names that a name begins with, up to a separator: `city/x` of `city/x-fish`."""
    folder, slash, last = name.rpartition("/")
    ends = [match.start() for match in _SEPARATOR.finditer(last)]
    return next((base for end in reversed(ends) if (base := f"{folder}{slash}{last[:end]}") in names), None)


_SEPARATOR = re.compile(r"[-_. ]+")


def _grouped(
    images: set[str], image_base: Callable[[str], str], masks: set[str], mask_base: Callable[[str], str]
) -> list[tuple[list[str], list[str]]]:
    """Images and masks whose names have one base, in one folder."""
    bases: dict[str, tuple[list[str], list[str]]] = {}
    for number, (names, base) in enumerate(((images, image_base), (masks, mask_base))):
        for name in sorted(names):
            folder, slash, last = name.rpartition("/")
            bases.setdefault(f"{folder}{slash}{base(last)}", ([], []))[number].append(name)
    return [(ours, theirs) for ours, theirs in bases.values() if ours and theirs]


def _itself(name: str) -> str:
    return name


def _without(pattern: re.Pattern[str]) -> Callable[[str], str]:
    return lambda name: pattern.sub("", name) or name


_BARE_IMAGE, _BARE_MASK = _without(_IMAGE_AFFIX), _without(_MASK_AFFIX)

_BASES: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_itself, _itself),
    (str.casefold, str.casefold),
    (_itself, _without(_IMAGE_SUFFIX)),
    (_itself, _BARE_MASK),
    (_BARE_IMAGE, _BARE_MASK),
    (_without(_IMAGE_INSIDE), _without(_MASK_INSIDE)),
    (_itself, _without(_NUMBERED)),
    (_BARE_IMAGE, _without(_NUMBERED)),
)
"""What is compared of an image's name and of a mask's, in turn."""
