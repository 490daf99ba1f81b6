"""Any folder of images beside any folder of masks, or one that holds both."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from petseg.classes import ClassTable
from petseg.data.sources import TRAINVAL, LeftOver, Listing, Pair, Rejected
from petseg.data.sources.files import (
    IMAGES,
    JPEGS,
    MASKS,
    File,
    FilePath,
    below,
    fit_key,
    heads,
    named_split,
    read_files,
    stem,
    unfit_key,
)
from petseg.data.sources.pairing import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    NO_IMAGE,
    NO_MASK,
    extended,
    pair_names,
    says_mask,
    says_no_classes,
)
from petseg.data.sources.pairs import Pairs
from petseg.data.sources.pattern import PairPattern, match_all
from petseg.data.sources.series import Series, choices, proposals, rivals_of, series_of
from petseg.data.sources.stored import StorePath
from petseg.errors import PetsegError

_JPEG_MASK = "mask that is a JPEG, which does not keep codes (threshold = 128 in a class map of two classes takes it)"
_NAME = "its name"
_NO_CLASSES = "single objects, or colours for the eye"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Images and masks that pair up by their path below the two folders, without suffix (see `pair_names`).

    `city/a.jpg` pairs with `city/a.png`, or with `city/a_mask.png` and the like; its key is `city-a`. Where both
    folders are the same, files below a folder named like `masks` are masks, those below one named like `images` are
    images (and `train/images/a.jpg` pairs with `train/masks/a.png`); side by side, a mask is what is named like one, or
    the PNG of two files of one name, or a PNG whose name is that of a file of another kind and more. A folder with one
    image and all of its masks, one object each, is one sample.

    Folders that are named like splits are the splits, where there are `train` and `val` or `test` (a folder `train`
    beside `car` and `bus` is a vehicle); pairs in none of them are left out then.

    Where other images could be the masks as well as those that the names say, the listing refuses and names them.
    """

    images: FilePath
    masks: FilePath
    classes: ClassTable
    patterns: tuple[str, ...] = ()
    """Of `--pair`; both folders are the same then."""
    merge_masks: bool = False
    """Several masks of one image are united."""

    @property
    def name(self) -> str:
        """As it was named on the command line."""
        return f"folder:{self.images}" + ("" if self.masks == self.images else f",{self.masks}")

    def listing(self) -> Listing:
        """Find the pairs.

        Raises:
            PetsegError: no such folder, no pair in them, several masks for an image, or several series of masks.
        """
        root = self._root
        found = self._by_patterns() if self.patterns else self._by_names()
        if not found.masks:
            raise PetsegError(self._nothing(found))
        self._refuse_doubt(found)
        pairs: list[Pair] = []
        keys: dict[str, str] = {}
        for name, (image, *masks) in sorted(found.masks.items()):
            key = fit_key(name)
            reason = f"{keys[key]} has the same key, {key}" if key in keys else unfit_key(key)
            if reason:
                found.rejected.append(Rejected(key=name, reason=reason, kind=_NAME))
                continue
            keys[key] = name
            first, *more = (str(root / mask) for mask in masks)
            pairs.append(
                Pair(
                    key=key,
                    image=str(root / image),
                    mask=first,
                    more_masks=tuple(more),
                    size=sum(found.every[path].size for path in (image, *masks)),
                    tag=_tag([found.every[path] for path in (image, *masks)]),
                    split=next((split for part in image.split("/")[:-1] if (split := named_split(part))), None),
                )
            )
        pairs = by_splits(sorted(pairs, key=lambda pair: pair.key))
        has_splits = any(pair.split for pair in pairs)
        return Listing(
            pairs=Pairs.of(pairs),
            unlisted=tuple(pair.key for pair in pairs if pair.split is None) if has_splits else (),
            rejected=tuple(sorted(found.rejected, key=lambda r: r.key)),
            left_over=left_over(found.left_over),
            rule="by --pair" if self.patterns else "by name",
            split_by="folders",
            ignored=found.passed,
        )

    def read(self, pair: Pair) -> tuple[bytes, ...]:
        """See `Source`."""
        return read_files(pair)

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return heads(pair.image, pair.mask)

    @property
    def _root(self) -> FilePath:
        """The folder that all paths are relative to."""
        images, masks = self.images, self.masks
        if isinstance(images, StorePath) or isinstance(masks, StorePath):
            if not (isinstance(images, StorePath) and isinstance(masks, StorePath) and images.store == masks.store):
                raise PetsegError(f"{self.name}: images and masks have to lie in one bucket, or both on the disk.")
            return StorePath(images.store, os.path.commonpath([f"/{images.path}", f"/{masks.path}"])[1:])
        if images.is_absolute() != masks.is_absolute():
            images, masks = images.absolute(), masks.absolute()
        return Path(os.path.commonpath([images, masks]))

    def _within(self, folder: FilePath) -> Path:
        root = self._root
        if isinstance(folder, StorePath):
            return Path(os.path.relpath(f"/{folder.path}", f"/{root.path if isinstance(root, StorePath) else ''}"))
        return Path(os.path.relpath(folder, str(root)))

    @property
    def _mask_suffixes(self) -> frozenset[str]:
        return MASKS if self.classes.reading.threshold is None else MASKS | JPEGS

    def _files(self, folder: FilePath) -> tuple[dict[str, File], int]:
        """(by their paths relative to `_root`, files passed over by name)."""
        if isinstance(folder, Path) and not folder.is_dir():
            raise PetsegError(f"no such folder: {folder}; give folder:IMAGES,MASKS.")
        files, passed = below(folder)
        if not (files or passed) and isinstance(folder, StorePath):
            raise PetsegError(f"{folder}: there are no objects below this address; give folder:IMAGES,MASKS.")
        within = self._within(folder)
        return {(within / path).as_posix(): file for path, file in files.items()}, passed

    def _by_patterns(self) -> _Found:
        files, passed = self._files(self.images)
        matched = match_all([PairPattern(text) for text in self.patterns], list(files))
        found = _Found(passed=passed, counted=(len(matched.images_alone), len(matched.masks_alone)), every=files)
        found.masks = {matched.names[image]: [image, *masks] for image, masks in matched.masks.items()}
        for paths, reason in ((matched.images_alone, NO_MASK), (matched.masks_alone, NO_IMAGE)):
            found.rejected += [Rejected(key=stem(path), reason=reason) for path in paths]
        return found

    def _by_names(self) -> _Found:
        images, masks, found = self._sorted_files()
        for names in (images, masks):
            found.rejected += [Rejected(key=name, reason=reason, kind=_NAME) for name, reason in names.doubled.items()]
        doubled = images.doubled.keys() | masks.doubled.keys()
        for names in (images, masks):
            names.files = {name: path for name, path in names.files.items() if name not in doubled}
        found.counted = len(images.files), len(masks.files)
        masks_of, left_out = pair_names(images.files, masks.files)
        masks_of |= _one_image_a_folder(images.files, masks.files, left_out)
        found.masks = {
            name: [images.files[name], *(masks.files[mask] for mask in its)] for name, its in masks_of.items()
        }
        # A folder of masks says which images are meant; side by side, one that lacks its mask lost it.
        apart = any(_folder(image) != _folder(mask) for image, mask, *_ in found.masks.values())
        for name, reason in left_out.items():
            image, mask = images.files.get(name), masks.files.get(name)
            if reason not in {NO_MASK, NO_IMAGE}:
                found.rejected.append(Rejected(key=name, reason=reason))
            elif (path := image if reason == NO_MASK else mask) is not None:
                found.unused.append(path)
                if says_no_classes(path):
                    found.left_over.append((path, _NO_CLASSES))
                elif reason == NO_MASK and apart:
                    found.left_over.append((path, NO_MASK))
                else:
                    found.rejected.append(Rejected(key=name, reason=reason))
        return found

    def _sorted_files(self) -> tuple[_Names, _Names, _Found]:
        """Images and masks by name; what is neither is left over."""
        files, passed = self._files(self.images)
        images, masks, found = _Names(), _Names(), _Found(passed=passed, every=files)
        if self.masks == self.images:
            stems = {stem(path) for path in files if PurePosixPath(path).suffix.lower() != ".png"}
            kinds = [(path, _is_mask(path, stems), _without_kind(path)) for path in files]
        else:
            of_masks, passed_masks = self._files(self.masks)
            found.passed += passed_masks
            found.every = dict(sorted({**files, **of_masks}.items()))
            inner, outer = set(of_masks), set(files)
            here, there = (self._within(folder) for folder in (self.images, self.masks))
            # One folder may lie in the other: then a file of the inner one is none of the outer one's.
            within = there.is_relative_to(here)
            kinds = [
                (path, False, PurePosixPath(stem(path)).relative_to(here).as_posix())
                for path in files
                if not (within and path in inner)
            ]
            kinds += [
                (path, True, PurePosixPath(stem(path)).relative_to(there).as_posix())
                for path in of_masks
                if within or path not in outer
            ]
        for path, is_mask, name in kinds:
            suffix = PurePosixPath(path).suffix.lower()
            if suffix in (self._mask_suffixes if is_mask else IMAGES):
                (masks if is_mask else images).add(name, path)
            elif is_mask and suffix in JPEGS:
                found.left_over.append((path, _JPEG_MASK))
        return images, masks, found

    def _refuse_doubt(self, found: _Found) -> None:
        """Refuse several masks for one image, unless they are to be united, and several series of masks.

        Raises:
            PetsegError: so it is.
        """
        several = {image: masks for image, *masks in found.masks.values() if len(masks) > 1}
        if several and not self.merge_masks:
            image, masks = min(several.items())
            listed = ", ".join(masks[:3]) + (" ..." if len(masks) > 3 else "")
            also = f", and {len(several) - 1:,} more images have several" if len(several) > 1 else ""
            ways = (
                "" if self.patterns else choices(series_of(several, (mask for its in several.values() for mask in its)))
            )
            raise PetsegError(
                f"{self.name}: {image} has {len(masks)} masks ({listed}){also}. If each shows one object or one class, "
                f"--merge-masks unites them; if they are versions of one mask, choose one by --pair{ways or '.'}"
            )
        if self.patterns:
            return
        mask_of = {image: masks[0] for image, *masks in found.masks.values()}
        rivals = rivals_of(self._root, mask_of, found.unused)
        if rivals:
            image, other = rivals[0].partners[0]
            used = series_of(mask_of, mask_of.values())
            raise PetsegError(
                f"{self.name}: the mask of {image} could be {mask_of[image]}, as its name says, or {other}, and so for "
                f"{len(rivals[0].partners) - 1:,} more. Look at both, and choose by --pair:{choices([*used, *rivals])}"
            )

    def _nothing(self, found: _Found) -> str:
        counted = f"{found.counted[0]} images, {found.counted[1]} masks"
        fit = proposals(self._root, found.every)
        if self.patterns:
            how = ", ".join(f"--pair '{pattern}'" for pattern in self.patterns)
            return (
                f"{self.name}: no pair of image and mask is left by {how} ({counted} without a partner){_fitting(fit)}"
            )
        said = f"{self.name}: no pair of image and mask is left ({counted})"
        if fit:
            return f"{said}{_fitting(fit)}"
        if all(found.counted):
            image, mask = (
                next((each.key for each in found.rejected if each.reason == reason), "?")
                for reason in (NO_MASK, NO_IMAGE)
            )
            return (
                f"{said}: such as {image} and {mask}, whose names do not fit together; give one folder that holds "
                "both, and --pair 'IMAGES/*.jpg=MASKS/*.png'."
            )
        return (
            f"{said}: images end in {_either(IMAGES)}, masks in {_either(MASKS)} (no JPEG, whose compression changes "
            "codes, unless a class map of two classes has threshold = 128)."
        )


@dataclass(slots=True)
class _Found:
    """The files of a folder, sorted into images and masks; paths are relative to the source's root."""

    passed: int = 0
    counted: tuple[int, int] = (0, 0)
    """Images and masks, for the sentence where none pair."""
    every: Mapping[str, File] = field(default_factory=dict)
    """All files."""
    masks: dict[str, list[str]] = field(default_factory=dict)
    """By the pair's name: its image, then its masks."""
    rejected: list[Rejected] = field(default_factory=list)
    left_over: list[tuple[str, str]] = field(default_factory=list)
    """(path, why) each."""
    unused: list[str] = field(default_factory=list)


class _Names:
    """Files by name, and the names that stand twice."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.doubled: dict[str, str] = {}
        """Why they are left out, by name."""

    def add(self, name: str, path: str) -> None:
        """Take a file."""
        if name in self.files or name in self.doubled:
            first = PurePosixPath(self.files.pop(name, "?")).name
            self.doubled.setdefault(name, f"{first} and {PurePosixPath(path).name} have one name")
        else:
            self.files[name] = path


def _tag(files: Sequence[File]) -> str:
    tags = [file.tag for file in files]
    return " ".join(tags) if all(tags) else ""


def left_over(files: Iterable[tuple[str, str]]) -> tuple[LeftOver, ...]:
    """Leftovers by folder and reason, of (path, why) each."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, why in sorted(files):
        found.setdefault((_folder(path), why), []).append(PurePosixPath(path).name)
    return tuple(
        LeftOver(where=where, files=len(names), why=why, example=names[0]) for (where, why), names in found.items()
    )


def by_splits(pairs: list[Pair]) -> list[Pair]:
    """Pairs with the splits that count: those of folders, if there are `train` and another.

    Without a `val`, what is called train is an official list's training part, of which a tenth becomes `val`.
    """
    splits = {pair.split for pair in pairs}
    if not (splits & {"train", TRAINVAL} and splits & {"val", "test"}):
        return [replace(pair, split=None) for pair in pairs]
    return with_val(pairs)


def with_val(pairs: list[Pair]) -> list[Pair]:
    """Pairs of which a tenth of train becomes `val` where there is a `test` and no `val`."""
    splits = {pair.split for pair in pairs}
    if "test" not in splits or "val" in splits:
        return pairs
    return [replace(pair, split=TRAINVAL) if pair.split == "train" else pair for pair in pairs]


def holds_pairs(root: Path) -> bool:
    """Whether a folder has, at most two below it, folders that are named like images and masks."""
    names: set[str] = set()
    outer = _folders(root)
    for folder in (root, *outer, *(inner for each in outer for inner in _folders(each))):
        names |= {path.name.lower() for path in _folders(folder)}
        if names & IMAGE_FOLDERS and names & MASK_FOLDERS:
            return True
    return False


def what_would_fit(root: Path, classes: ClassTable) -> str:
    """Advice for a folder that no rule fits: the end of a sentence."""
    try:
        listing = FolderSource(root, root, classes).listing()
    except PetsegError:
        listing = Listing(pairs=())
    if listing.pairs and len(listing.pairs) >= sum(each.reason == NO_MASK for each in listing.rejected):
        return f"; folder:{root} pairs {len(listing.pairs):,} of its files by name, side by side."
    return _fitting(proposals(root, below(root)[0])) or "; for other layouts give folder:IMAGES,MASKS, or --pair."


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _one_image_a_folder(
    images: dict[str, str], masks: dict[str, str], left_out: dict[str, str]
) -> dict[str, list[str]]:
    """Masks by image where `sample/images/` holds one image and `sample/masks/` its masks; they leave `left_out`."""
    of_folder: dict[str, tuple[list[str], list[str]]] = {}
    for number, (files, kinds, reason) in enumerate(
        ((images, IMAGE_FOLDERS, NO_MASK), (masks, MASK_FOLDERS, NO_IMAGE))
    ):
        for name, path in files.items():
            kind = PurePosixPath(path).parent
            if left_out.get(name) == reason and kind.name.lower() in kinds and kind.parent.name:
                of_folder.setdefault(str(kind.parent), ([], []))[number].append(name)
    found = {ours[0]: sorted(theirs) for ours, theirs in of_folder.values() if len(ours) == 1 and theirs}
    for image, its in found.items():
        for name in (image, *its):
            left_out.pop(name, None)
    return found


def _fitting(series: Sequence[Series]) -> str:
    """The end of a sentence about a folder that no rule pairs; empty without series."""
    if not series:
        return ""
    return f"; these fit together, of which one or several are right:{choices(series)}"


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _either(suffixes: frozenset[str]) -> str:
    """`.bmp, .gif or .png`."""
    *others, last = sorted(suffixes)
    return f"{', '.join(others)} or {last}"


def _kind_at(path: str) -> int | None:
    """Which folder of a path says what its file is, the first that does."""
    folders = path.split("/")[:-1]
    return next((at for at, name in enumerate(folders) if name.lower() in MASK_FOLDERS | IMAGE_FOLDERS), None)


def _is_mask(path: str, others: Collection[str]) -> bool:
    """Whether a file is a mask, in a folder that holds images too; `others`: stems of files that are not PNG."""
    at = _kind_at(path)
    if at is not None:
        return path.split("/")[at].lower() in MASK_FOLDERS
    where = PurePosixPath(path)
    beside = stem(path) in others or extended(stem(path), others) is not None
    return says_mask(where.stem) or (where.suffix.lower() == ".png" and beside)


def _without_kind(path: str) -> str:
    """A file's name without suffix and without the first folder that says what it is."""
    parts, at = stem(path).split("/"), _kind_at(path)
    return "/".join(parts if at is None else parts[:at] + parts[at + 1 :])
