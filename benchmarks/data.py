"""What the benchmarks run on: one set of samples as original files, as shards, and as files of the shards' bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import petseg
from petseg.data.decode.images import Chroma
from petseg.data.decode.resize import resize_nearest
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
from petseg.data.sources import Listing, OverSource, Pair, Source
from petseg.data.sources.resolve import resolve_source
from petseg.data.sources.synthetic import SyntheticSource
from petseg.system import usable_cores

WORK = Path(__file__).parent / ".work"
"""Prepared data, kept between runs; safe to remove."""

SAMPLES, QUICK_SAMPLES = 500, 160
"""Drawn samples, and those of --quick; the pack benchmark takes as many, so that all use the same files."""
IMAGE_BOUNDS = (2.0, 6.0)
"""The loader contract's: mean absolute difference from the reference over a set, and over any image, of 255."""


@dataclass(frozen=True, slots=True)
class InTrain(OverSource):
    """A source whose pairs all are in `train`: benchmarks read one split."""

    def listing(self) -> Listing:
        """As the source's, all in `train`."""
        listing = self.inner.listing()
        return Listing(pairs=tuple(replace(pair, split="train") for pair in listing.pairs))


@dataclass(frozen=True, slots=True)
class InFiles(InTrain):
    """The same pairs, read from the files of the cell that keeps their bytes: nothing is drawn a second time."""

    files: Path

    def listing(self) -> Listing:
        """As the source's, without the pairs that were rejected on their way into the cell."""
        kept = {path.stem for path in (self.files / "masks").iterdir()}
        pairs = InTrain.listing(self).pairs
        return Listing(pairs=tuple(pair for pair in pairs if pair.key in kept))

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """The bytes as the cell keeps them."""
        return (
            (self.files / "images" / f"{pair.key}.jpg").read_bytes(),
            (self.files / "masks" / f"{pair.key}.png").read_bytes(),
        )

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """As `read`."""
        return self.read(pair)


def source_of(text: str, samples: int = SAMPLES) -> InTrain:
    """`synthetic` (drawn pets at the sizes of Oxford's photos) or whatever petseg-shard takes."""
    if text == "synthetic":
        return InTrain(SyntheticSource(samples, min_side=333, max_side=500))
    return InTrain(resolve_source(text))


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of storing the samples: `shards/`, and `files/images`, `files/masks` with the same bytes.

    Where they are packed, `pixels/` are shards of what those files decode to, as PPM and PGM.
    """

    folder: Path
    short_side: int
    """Pixels; 0 for original sizes and bytes."""

    @property
    def shards(self) -> Path:
        """The shard folder."""
        return self.folder / "shards"

    @property
    def label(self) -> str:
        """`originals` or `packed at 128`."""
        return f"packed at {self.short_side}" if self.short_side else "originals"

    @property
    def manifest(self) -> Manifest:
        """The shards' manifest."""
        return Manifest.load(self.shards)


def packing_code() -> str:
    """SHA-256 of petseg's code for data: a cell that another version packed is not taken for this one's."""
    files = sorted((Path(petseg.__file__).parent / "data").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def folder_for(name: str, source: Source, work: Path) -> tuple[Path, bool]:
    """(the folder of what is made of a source, whether it is there whole); an older or unfinished one is removed.

    What makes it writes a file `whole` at its end.
    """
    pairs = [(pair.key, pair.size, pair.split) for pair in source.listing().pairs]
    identity = json.dumps([source.name, pairs, packing_code()])
    folder = work / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    whole = (folder / "whole").is_file()
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
    return folder, whole


def prepare(source: InTrain, short_side: int, work: Path = WORK) -> Cell:
    """Make a cell, or take the one that is there already."""
    pairs = source.listing().pairs
    identity = json.dumps(
        [source.name, short_side, [(pair.key, pair.size) for pair in pairs], repr(source), packing_code()]
    )
    folder = work / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{short_side or 'originals'}"
    cell = Cell(folder, short_side)
    if (folder / "whole").is_file():
        return cell
    shutil.rmtree(folder, ignore_errors=True)
    if short_side:
        source = InFiles(source.inner, prepare(source, 0, work).folder / "files")
    options = PackOptions(split="official", short_side=short_side, samples_per_shard=64)
    pack(source, cell.shards, options, workers=usable_cores())
    write_files(cell.shards, folder / "files")
    if short_side:
        as_they_are = replace(options, short_side=0, encoding="ppm")
        pack(InFiles(source.inner, folder / "files"), folder / "pixels", as_they_are, workers=usable_cores())
    (folder / "whole").touch()
    return cell


def write_files(shards: Path, out: Path) -> None:
    """The train split's samples as `out`/images/KEY.jpg and `out`/masks/KEY.png, their bytes as in the shards."""
    for kind in ("images", "masks"):
        (out / kind).mkdir(parents=True)
    reader = ShardReader(shards, Manifest.load(shards), "train")
    for index in range(len(reader)):
        key, (image, mask) = reader.key(index), reader.read(index)
        (out / "images" / f"{key}.jpg").write_bytes(image)
        (out / "masks" / f"{key}.png").write_bytes(mask)
    reader.close()


@dataclass(frozen=True, slots=True)
class Reference:
    """Every sample as the loader contract has it: full decode, Pillow's antialiased BILINEAR, nearest in integers."""

    images: np.ndarray
    """u8[n, size, size, 3]."""
    codes: np.ndarray
    """u8[n, size, size]."""

    @classmethod
    def of(cls, cell: Cell, size: int, chroma: Chroma = "fancy") -> Reference:
        """The reference of all samples of a cell, at `size` px, under a decode policy."""
        reader = ShardReader(cell.shards, cell.manifest, "train", chroma=chroma)
        images, codes = [], []
        for index in range(len(reader)):
            image, mask = reader.decoded(index)
            images.append(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)))
            codes.append(resize_nearest(mask, size, size))
        reader.close()
        return cls(np.stack(images), np.stack(codes))

    def judge(self, images: np.ndarray, codes: np.ndarray) -> str:
        """In what a contender's samples differ from the contract's; empty where they keep it.

        Args:
            images: u8[m, size, size, 3], in any order.
            codes: u8[m, size, size].
        """
        if images.shape[1:] != self.images.shape[1:] or codes.shape[1:] != self.codes.shape[1:]:
            return f"its batches are {images.shape[1:]} and {codes.shape[1:]}"
        # Which sample each one is, by a thumbnail of a few pixels: contenders need not say.
        mine, theirs = (_thumbnails(each) for each in (self.images, images))
        which = torch.cdist(theirs, mine).argmin(1).numpy()
        if len(set(which.tolist())) < 0.99 * len(which):  # two drawn pets may look alike
            return f"only {len(set(which.tolist()))} of {len(which)} samples are distinct"
        difference = np.abs(images.astype(np.int16) - self.images[which]).mean(axis=(1, 2, 3))
        wrong = float((codes != self.codes[which]).mean())
        found = []
        if wrong:
            found.append(f"{100 * wrong:.2g}% of mask pixels differ")
        if difference.mean() > IMAGE_BOUNDS[0] or difference.max() > IMAGE_BOUNDS[1]:
            found.append(f"images differ by {difference.mean():.1f} of 255 in the mean, {difference.max():.1f} at most")
        return "; ".join(found)


def _thumbnails(images: np.ndarray) -> torch.Tensor:
    """f32[n, 8 * 8 * 3]."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 8)
    return small.flatten(1)
