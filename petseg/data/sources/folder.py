"""Any folder of images beside any folder of masks, or one that holds both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from petseg.classes import ClassTable
from petseg.data.sources import TRAINVAL, Listing, Pair, Rejected
from petseg.data.sources.files import IMAGES, JPEGS, MASKS, fit_key, heads, ignored, named_split, unfit_key
from petseg.data.sources.pairing import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    PairPattern,
    pair_names,
    says_mask,
)
from petseg.errors import PetsegError


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Images and masks that pair up by their path below the two folders, without suffix (see `pair_names`).

    `city/a.jpg` pairs with `city/a.png`, or with `city/a_mask.png` and the like; its key is `city-a`. Where both
    folders are the same, files below a folder named like `masks` are masks, those below one named like `images` are
    images (and `train/images/a.jpg` pairs with `train/masks/a.png`); side by side, a mask is what is named like one, or
    the PNG of two files of one name.

    Folders that are named like splits are the splits, where there are `train` and `val` or `test` (a folder `train`
    beside `car` and `bus` is a vehicle); pairs in none of them are left out then.
    """

    images: Path
    masks: Path
    classes: ClassTable
    pattern: str | None = None
    """`--pair`; both folders are the same then."""

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return f"folder:{self.images}" + ("" if self.masks == self.images else f",{self.masks}")

    def listing(self) -> Listing:
        """Find the pairs.

        Raises:
            PetsegError: no such folder, or no pair in them.
        """
        found_images, found_masks, passed = self._files()
        rejected = [*found_images.doubled, *found_masks.doubled]
        doubled = {each.key for each in rejected}
        images, masks = (
            {name: path for name, path in found.files.items() if name not in doubled}
            for found in (found_images, found_masks)
        )
        if self.pattern is None:
            mask_of, left_out = pair_names(images, masks)
            rejected += [Rejected(key=name, reason=reason) for name, reason in left_out.items()]
        else:
            mask_of = {name: name for name in images if name in masks}
            rejected += [
                Rejected(key=name, reason="image without a mask (by --pair)") for name in images if name not in masks
            ]
        pairs: list[Pair] = []
        keys: dict[str, str] = {}
        for name in sorted(mask_of):
            key = fit_key(name)
            reason = f"{keys[key]} has the same key, {key}" if key in keys else unfit_key(key)
            if reason:
                rejected.append(Rejected(key=name, reason=reason))
                continue
            keys[key] = name
            image, mask = images[name], masks[mask_of[name]]
            size = image.stat().st_size + mask.stat().st_size
            folders = name.split("/")[:-1]
            split = next((found for folder in folders if (found := named_split(folder))), None)
            pairs.append(Pair(key=key, image=str(image), mask=str(mask), size=size, split=split))
        if not pairs:
            raise PetsegError(self._nothing(images, masks))
        pairs = by_splits(sorted(pairs, key=lambda pair: pair.key))
        has_splits = any(pair.split for pair in pairs)
        return Listing(
            pairs=tuple(pairs),
            unlisted=tuple(pair.key for pair in pairs if pair.split is None) if has_splits else (),
            rejected=tuple(sorted(rejected, key=lambda r: r.key)),
            split_by="folders",
            ignored=passed,
        )

    @property
    def _mask_suffixes(self) -> frozenset[str]:
        return MASKS if self.classes.reading.threshold is None else MASKS | JPEGS

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return Path(pair.image).read_bytes(), Path(pair.mask).read_bytes()

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return heads(pair.image, pair.mask)

    def _files(self) -> tuple[_Names, _Names, int]:
        """(images, masks, files passed over by name)."""
        found, passed = _below(self.images)
        if self.pattern is not None:
            return *self._by_pattern(found, PairPattern(self.pattern)), passed
        if self.masks == self.images:
            return *self._in_one(found), passed
        found_masks, passed_masks = _below(self.masks)
        images, masks = _Names(), _Names()
        # One folder may lie in the other: then a file of the inner one is none of the outer one's.
        inner, outer = set(found_masks), set(found)
        for path in found:
            if not (self.masks.is_relative_to(self.images) and path in inner):
                images.add(path.relative_to(self.images).with_suffix("").as_posix(), path, IMAGES)
        for path in found_masks:
            if not (self.images.is_relative_to(self.masks) and path in outer):
                masks.add(path.relative_to(self.masks).with_suffix("").as_posix(), path, self._mask_suffixes)
        return images, masks, passed + passed_masks

    def _by_pattern(self, found: list[Path], pattern: PairPattern) -> tuple[_Names, _Names]:
        images, masks = _Names(), _Names()
        for path in found:
            below = path.relative_to(self.images)
            mask = pattern.mask_of(below)
            if mask is not None:
                name = below.with_suffix("").as_posix()
                images.add(name, path)
                if (self.images / mask).is_file():
                    masks.files[name] = self.images / mask
        return images, masks

    def _in_one(self, found: list[Path]) -> tuple[_Names, _Names]:
        images, masks = _Names(), _Names()
        stems = {path.with_suffix("") for path in found if path.suffix.lower() != ".png"}
        for path in found:
            below = path.relative_to(self.images)
            if _is_mask(below, stands_twice=path.with_suffix("") in stems):
                masks.add(_without_kind(below), path, self._mask_suffixes)
            else:
                images.add(_without_kind(below), path, IMAGES)
        return images, masks

    def _nothing(self, images: dict[str, Path], masks: dict[str, Path]) -> str:
        counted = f"{len(images)} images, {len(masks)} masks"
        if self.pattern is not None:
            return f"{self.name}: no pair of image and mask is left by --pair '{self.pattern}' ({counted})."
        if images and masks:
            image, mask = (min(names.values()).name for names in (images, masks))
            why = (
                f"such as {image} and {mask}, whose names do not fit together; give one folder "
                "that holds both, and --pair 'IMAGES/*.jpg=MASKS/*.png'"
            )
        else:
            why = (
                f"images end in {_either(IMAGES)}, masks in {_either(MASKS)} (no JPEG, whose "
                "compression changes codes, unless a class map of two classes has threshold = 128)"
            )
        return f"{self.name}: no pair of image and mask is left ({counted}): {why}."


def _either(suffixes: frozenset[str]) -> str:
    """`.bmp, .gif or .png`."""
    *others, last = sorted(suffixes)
    return f"{', '.join(others)} or {last}"


class _Names:
    """Files by name, and the names that stand twice."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self._doubled: dict[str, str] = {}

    def add(self, name: str, path: Path, suffixes: frozenset[str] | None = None) -> None:
        """Take a file that has one of the suffixes, if any are asked for."""
        if suffixes is not None and path.suffix.lower() not in suffixes:
            return
        if name in self.files or name in self._doubled:
            first = self.files.pop(name, None)
            self._doubled.setdefault(name, f"{first.name if first else '?'} and {path.name} have one name")
        else:
            self.files[name] = path

    @property
    def doubled(self) -> list[Rejected]:
        return [Rejected(key=name, reason=reason) for name, reason in self._doubled.items()]


def by_splits(pairs: list[Pair]) -> list[Pair]:
    """Pairs with the splits that count: those of folders, if there are `train` and another.

    Without a `val`, what is called train is an official list's training part, of which a tenth becomes `val`.
    """
    splits = {pair.split for pair in pairs} - {None}
    if not (splits & {"train", TRAINVAL} and splits & {"val", "test"}):
        return [replace(pair, split=None) for pair in pairs]
    if "val" not in splits:
        return [replace(pair, split=TRAINVAL) if pair.split == "train" else pair for pair in pairs]
    return pairs


def holds_pairs(root: Path) -> bool:
    """Whether a folder has, directly or in split folders, folders that are named like images and masks."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    folders += [path for folder in folders if named_split(folder.name) for path in folder.iterdir() if path.is_dir()]
    names = {path.name.lower() for path in folders}
    return bool(names & IMAGE_FOLDERS and names & MASK_FOLDERS)


def _is_mask(below: Path, *, stands_twice: bool) -> bool:
    """Whether a file is a mask, in a folder that holds images too."""
    for folder in below.parts[:-1]:
        if folder.lower() in MASK_FOLDERS | IMAGE_FOLDERS:
            return folder.lower() in MASK_FOLDERS
    return says_mask(below.stem) or (below.suffix.lower() == ".png" and stands_twice)


def _without_kind(below: Path) -> str:
    """A file's name without suffix and without the first folder that says what it is."""
    parts = list(below.with_suffix("").parts)
    for at, folder in enumerate(parts[:-1]):
        if folder.lower() in MASK_FOLDERS | IMAGE_FOLDERS:
            del parts[at]
            break
    return "/".join(parts)


def _below(root: Path) -> tuple[list[Path], int]:
    """(files, files passed over by name)."""
    if not root.is_dir():
        raise PetsegError(f"no such folder: {root}; give folder:IMAGES,MASKS.")
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    taken = [
        path
        for path in files
        if not ignored(path) and not any(part.startswith(".") for part in path.relative_to(root).parts[:-1])
    ]
    return taken, len(files) - len(taken)
