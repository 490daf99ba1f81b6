"""Oxford-IIIT Pet as published: `images/`, `annotations/trimaps/` and the lists trainval.txt and test.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from petseg.classes import OXFORD, ClassTable
from petseg.data.sources import TRAINVAL, Listing, Pair, Rejected
from petseg.data.sources.files import IMAGES, MASKS, heads, ignored, read_files, unfit_key
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError

LISTS = {"trainval.txt": TRAINVAL, "test.txt": "test"}


def looks_like_oxford(root: Path) -> bool:
    """Whether a folder has Oxford's layout."""
    return (root / "images").is_dir() and (root / "annotations" / "trimaps").is_dir()


@dataclass(frozen=True, slots=True)
class OxfordSource:
    """A folder in Oxford's layout; the lists may be missing, then no pair has an official split."""

    root: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def classes(self) -> ClassTable:
        """Oxford's: 1 pet, 2 background, 3 border."""
        return OXFORD

    def listing(self) -> Listing:
        """Find the pairs.

        Raises:
            PetsegError: no pair, a damaged list, or a name on both lists.
        """
        images, passed_images, doubled = _by_stem(self.root / "images", IMAGES)
        masks, passed_masks, doubled_masks = _by_stem(self.root / "annotations" / "trimaps", MASKS)
        split_of = self._lists()
        rejected = [*doubled, *doubled_masks]
        taken = {r.key for r in rejected}
        pairs: list[Pair] = []
        unlisted: list[str] = []
        for key in sorted({*images, *masks, *split_of}):
            if key in taken:
                continue
            reason = unfit_key(key)
            if key not in images:
                reason = "it is on a list but has no image" if key in split_of else "mask without an image"
            elif key not in masks:
                reason = "it is on a list but has no mask" if key in split_of else "image without a mask"
            if reason:
                rejected.append(Rejected(key=key, reason=reason))
                continue
            image, mask = images[key], masks[key]
            size = image.stat().st_size + mask.stat().st_size
            pairs.append(Pair(key=key, image=str(image), mask=str(mask), size=size, split=split_of.get(key)))
            if split_of and key not in split_of:
                unlisted.append(key)
        if not pairs:
            raise PetsegError(
                f"{self.root}: no pair of image and mask is left ({len(images)} images, {len(masks)} masks, "
                f"{len(rejected)} without a partner): files pair up by name, images/NAME.jpg with "
                "annotations/trimaps/NAME.png."
            )
        return Listing(
            pairs=Pairs.of(pairs),
            rejected=tuple(sorted(rejected, key=lambda r: r.key)),
            rule="by name, in Oxford-IIIT Pet's folders",
            unlisted=tuple(unlisted),
            ignored=passed_images + passed_masks,
        )

    def read(self, pair: Pair) -> tuple[bytes, ...]:
        """See `Source`."""
        return read_files(pair)

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`."""
        return heads(pair.image, pair.mask)

    def _lists(self) -> dict[str, str]:
        """Official split by key; empty without lists."""
        found: dict[str, str] = {}
        for name, split in LISTS.items():
            path = self.root / "annotations" / name
            if not path.is_file():
                continue
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise PetsegError(f"{path} cannot be read ({error}): fetch it again.") from error
            for line in lines:
                key = line.split()[0] if line.strip() and not line.startswith("#") else None
                if key is None:
                    continue
                if found.get(key, split) != split:
                    raise PetsegError(f"{path}: {key} is on both lists: take it off one of them.")
                found[key] = split
        return found


def _by_stem(folder: Path, suffixes: frozenset[str]) -> tuple[dict[str, Path], int, list[Rejected]]:
    """(files by stem, how many were passed over by name, stems that stand twice)."""
    found: dict[str, Path] = {}
    passed = 0
    doubled: dict[str, Rejected] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PetsegError(f"{folder} cannot be read ({error.strerror}).") from error
    for path in entries:
        if not path.is_file():
            continue
        if ignored(path):
            passed += 1
        elif path.suffix.lower() in suffixes:
            if path.stem in found:
                doubled[path.stem] = Rejected(
                    key=path.stem, reason=f"{found[path.stem].name} and {path.name} have one name", kind="its name"
                )
            else:
                found[path.stem] = path
    return found, passed, list(doubled.values())
