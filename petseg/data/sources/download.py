"""Oxford-IIIT Pet from its publisher, through torchvision, checked by MD5."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from petseg.data.sources.oxford import looks_like_oxford
from petseg.errors import PetsegError

FOLDER = "oxford-iiit-pet"
"""What torchvision calls it."""


def download_oxford(folder: Path, dataset: type[Any] | None = None) -> Path:
    """The data set's folder below `folder`, fetched if it is not there yet.

    It is fetched and unpacked beside its final place and moved there when it is whole; archives that were fetched in
    full before an interruption are checked and used again.

    Args:
        folder: where to keep the data set (about 0.8 GB, twice that while it is unpacked).
        dataset: torchvision's class, or one with its interface.

    Returns:
        A folder in Oxford's layout.

    Raises:
        PetsegError: it cannot be fetched, or there is no room for it.
    """
    final = folder / FOLDER
    if looks_like_oxford(final):
        return final
    if dataset is None:
        from torchvision.datasets import OxfordIIITPet

        dataset = OxfordIIITPet
    partial = folder / f".{FOLDER}.partial"
    # torchvision takes the two folders as proof that all is there: half-unpacked ones must not survive.
    for name in ("images", "annotations"):
        shutil.rmtree(partial / FOLDER / name, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        dataset(str(partial), target_types="segmentation", download=True)
        (partial / FOLDER).replace(final)
    except (OSError, RuntimeError, EOFError) as error:
        raise PetsegError(
            f"Oxford-IIIT Pet could not be fetched into {folder} ({error}): check the network and the disk, then run "
            "the same command again."
        ) from error
    for archive in final.glob("*.tar.gz"):
        archive.unlink()
    shutil.rmtree(partial, ignore_errors=True)
    return final
