"""The source that a command line names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from petseg.classes import OXFORD, ClassTable
from petseg.data.objects import is_remote
from petseg.data.sources import Source
from petseg.data.sources.download import FOLDER, download_oxford
from petseg.data.sources.files import FilePath, path_of
from petseg.data.sources.folder import FolderSource, holds_pairs, what_would_fit
from petseg.data.sources.lists import ListedSource, lists_beside
from petseg.data.sources.oxford import OxfordSource, looks_like_oxford
from petseg.data.sources.pattern import PairPattern
from petseg.data.sources.synthetic import SyntheticSource
from petseg.data.sources.tars import TarsSource
from petseg.errors import PetsegError

FORMS = "a folder of images and masks, oxford, folder:IMAGES,MASKS, tars:GLOB or synthetic[:N]"


def resolve_source(
    text: str,
    *,
    classes: ClassTable | None = None,
    pair: Sequence[str] = (),
    merge_masks: bool = False,
    lists: Mapping[str, FilePath] | None = None,
    find_lists: bool = True,
    seed: int = 0,
    download_dir: Path | None = None,
) -> Source:
    """The source that SOURCE means.

    Args:
        text: a folder (in the Oxford layout, or with folders named like images and masks, or whatever `pair` says),
            `oxford`, `folder:IMAGES,MASKS`, `folder:BOTH` (also of `s3://` and the like), `tars:GLOB` or
            `synthetic[:N]`; `~` is the home folder.
        classes: class map for folders and tars; None for Oxford's codes.
        pair: how files below a folder pair up (`PairPattern`); the first that fits an image counts.
        merge_masks: unite several masks of one image.
        lists: for splits, files with one key a line (`ListedSource`).
        find_lists: without `lists`, take those of VOC's layout where they stand beside the folders.
        seed: of what is drawn.
        download_dir: where `oxford` is downloaded to.

    Raises:
        PetsegError: none of these, no such folder, an empty one, or an option where there is no choice.
    """
    for pattern in pair:
        PairPattern(pattern)  # what is wrong with it is said at once
    source = _resolve(text, classes, tuple(pair), seed, download_dir)
    if classes is not None and source.classes is not classes:
        raise PetsegError(f"--classes: {text} has Oxford's classes; leave it out, or name folder:IMAGES,MASKS.")
    if not isinstance(source, FolderSource):
        if pair:
            raise PetsegError(f"--pair: {text} has no choice of pairs; leave it out, or name one folder.")
        if merge_masks:
            raise PetsegError(f"--merge-masks: {text} has one mask an image; leave it out, or name a folder.")
    elif pair and not source.patterns:
        raise PetsegError(f"--pair: {text} names the masks' folder; leave it out, or name one folder.")
    elif merge_masks:
        source = replace(source, merge_masks=True)
    if lists:
        return ListedSource(source, tuple(lists.items()))
    if find_lists and isinstance(source, FolderSource) and (beside := lists_beside(source.images, source.masks)):
        return ListedSource(source, beside, found=True)
    return source


def _resolve(
    text: str, classes: ClassTable | None, pair: tuple[str, ...], seed: int, download_dir: Path | None
) -> Source:
    scheme, colon, rest = text.partition(":")
    if scheme == "synthetic":
        if colon and not (rest.isascii() and rest.isdecimal() and len(rest) < 10):
            raise PetsegError(f"'{text}': give a number of images, such as synthetic:1600.")
        return SyntheticSource(int(rest), seed) if colon else SyntheticSource(seed=seed)
    if colon and scheme == "folder":
        images, comma, masks = rest.partition(",")
        if not images or (comma and not masks):
            raise PetsegError(f"'{text}': give one folder, or two with a comma between them, folder:IMAGES,MASKS.")
        root = path_of(images)
        if comma:
            return FolderSource(root, path_of(masks), classes or OXFORD)
        return FolderSource(root, root, classes or OXFORD, pair)
    if colon and scheme == "tars":
        if is_remote(rest):
            raise PetsegError(f"{text}: tars are repacked from a disk only: fetch them first.")
        return TarsSource(str(path_of(rest)), classes or OXFORD)
    if text == "oxford":
        return OxfordSource(download_oxford(download_dir or Path("downloads")))
    if is_remote(text):
        raise PetsegError(
            f"{text}: name what is in a store as folder:IMAGES,MASKS, or as folder:{text} where one folder holds both."
        )
    return _folder(Path(text).expanduser(), classes, pair)


def _folder(root: Path, classes: ClassTable | None, pair: tuple[str, ...]) -> Source:
    if not root.exists():
        raise PetsegError(f"no such folder: {root}; SOURCE is {FORMS}.")
    if not root.is_dir():
        raise PetsegError(f"{root} is a file; SOURCE is {FORMS}.")
    if pair:
        return FolderSource(root, root, classes or OXFORD, pair)
    for candidate in (root, root / FOLDER):
        if looks_like_oxford(candidate):
            return OxfordSource(candidate)
    if not any(root.iterdir()):
        raise PetsegError(f"{root} is empty; SOURCE is {FORMS}.")
    if holds_pairs(root):
        return FolderSource(root, root, classes or OXFORD)
    raise PetsegError(
        f"{root} is not in the Oxford layout (images/ and annotations/trimaps/) and has no folders named images and "
        f"masks{what_would_fit(root, classes or OXFORD)}"
    )
