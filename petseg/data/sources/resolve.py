"""The source that a command line names."""

from __future__ import annotations

from pathlib import Path

from petseg.classes import OXFORD, ClassTable
from petseg.data.sources import Source
from petseg.data.sources.download import FOLDER, download_oxford
from petseg.data.sources.folder import FolderSource
from petseg.data.sources.oxford import OxfordSource, looks_like_oxford
from petseg.data.sources.synthetic import SyntheticSource
from petseg.data.sources.tars import TarsSource
from petseg.errors import PetsegError

FORMS = "a folder in the Oxford layout, oxford, folder:IMAGES,MASKS, tars:GLOB or synthetic[:N]"


def resolve_source(
    text: str, *, classes: ClassTable | None = None, seed: int = 0, download_dir: Path | None = None
) -> Source:
    """The source that SOURCE means.

    Args:
        text: a folder in the Oxford layout, `oxford`, `folder:IMAGES,MASKS`, `tars:GLOB` or `synthetic[:N]`.
        classes: class map for `folder` and `tars`; None for Oxford's codes.
        seed: of what is drawn.
        download_dir: where `oxford` is downloaded to.

    Raises:
        PetsegError: none of these, no such folder, an empty one, or a class map where there is no choice.
    """
    scheme, colon, rest = text.partition(":")
    if classes is not None and not (colon and scheme in {"folder", "tars"}):
        raise PetsegError(f"--classes: {text} has Oxford's classes; leave it out, or name folder:IMAGES,MASKS.")
    if scheme == "synthetic":
        if colon and not (rest.isascii() and rest.isdecimal() and len(rest) < 10):
            raise PetsegError(f"'{text}': give a number of pictures, such as synthetic:1600.")
        return SyntheticSource(int(rest), seed) if colon else SyntheticSource(seed=seed)
    if colon and scheme == "folder":
        images, comma, masks = rest.partition(",")
        if not (images and comma and masks):
            raise PetsegError(f"'{text}': give two folders with a comma between them, folder:IMAGES,MASKS.")
        return FolderSource(Path(images), Path(masks), classes or OXFORD)
    if colon and scheme == "tars":
        return TarsSource(rest, classes or OXFORD)
    if text == "oxford":
        return OxfordSource(download_oxford(download_dir or Path("downloads")))
    return _folder(Path(text))


def _folder(root: Path) -> Source:
    if not root.exists():
        raise PetsegError(f"no such folder: {root}; SOURCE is {FORMS}.")
    if not root.is_dir():
        raise PetsegError(f"{root} is a file; SOURCE is {FORMS}.")
    for candidate in (root, root / FOLDER):
        if looks_like_oxford(candidate):
            return OxfordSource(candidate)
    if not any(root.iterdir()):
        raise PetsegError(f"{root} is empty; SOURCE is {FORMS}.")
    raise PetsegError(
        f"{root} is not in the Oxford layout (images/ and annotations/trimaps/): for other layouts give "
        "folder:IMAGES,MASKS."
    )
