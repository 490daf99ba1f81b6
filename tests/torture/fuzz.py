"""Hostile bytes: every file that petseg reads, altered at random; each ends in a correct result or in one sentence.

A case is a kind and a number: whoever has both (and the seed) has its bytes. Cases run in a process of their own, so
that a death by signal and a hang are seen, and cost one case each.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 20.0
"""Seconds that a case may take."""

SHARES = {
    "image": 28, "mask": 22, "tar": 8, "index": 12, "manifest": 12, "class map": 6, "config": 4, "checkpoint": 5,
    "dali": 3,
}  # fmt: skip
"""How often each kind comes, in 100."""


@dataclass
class Tally:
    """What was tried, and how it ended."""

    cases: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"cases": self.cases, "refused": self.refused, "faults": self.faults}


def fuzz(folder: Path, rng: random.Random, enough: Callable[[Tally], bool]) -> Tally:
    """Try cases until `enough`.

    Args:
        folder: where everything is made.
        rng: gives the seed of the cases.
        enough: asked before each case.
    """
    tally, seed, number = Tally(), rng.randrange(2**31), 0
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    worker = _Worker(folder, seed)
    try:
        while not enough(tally):
            kind = kinds[number * 37 % len(kinds)]  # 37 and 100 have no common divisor: all kinds in turn
            tally.cases[kind] = tally.cases.get(kind, 0) + 1
            answer = worker.ask(kind, number)
            if answer == "refused":
                tally.refused[kind] = tally.refused.get(kind, 0) + 1
            elif answer != "fine":
                tally.faults.append(f"{kind} {number} of seed {seed}: {answer}")
                if not worker.alive:
                    worker.close()
                    worker = _Worker(folder, seed)
            number += 1
    finally:
        worker.close()
    return tally


class _Worker:
    """The process that the cases run in."""

    def __init__(self, folder: Path, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(folder, seed, theirs))
        self._process.start()
        theirs.close()
        self.alive = True
        assert self._pipe.recv() == "ready"

    def ask(self, kind: str, number: int) -> str:
        self._pipe.send((kind, number))
        try:
            if self._pipe.poll(LIMIT):
                answer: str = self._pipe.recv()
                return answer
            self.alive = False
            return f"no end after {LIMIT:.0f} s"
        except (EOFError, ConnectionError):
            self.alive = False
            self._process.join(10)
            return f"the process died (exit code {self._process.exitcode})"

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(folder: Path, seed: int, pipe: Connection) -> None:
    from petseg.errors import PetsegError

    cases = _Cases(folder)
    pipe.send("ready")
    while True:
        kind, number = pipe.recv()
        rng = random.Random(f"{seed} {kind} {number}")
        try:
            cases.run(kind, rng)
            answer = "fine"
        except PetsegError as error:
            words = str(error)
            answer = "refused" if words and "\n" not in words else f"no sentence: {words!r}"
        except AssertionError as error:
            answer = f"wrong: {error}"
        except Exception:
            answer = traceback.format_exc()
        pipe.send(answer)


class _Cases:
    """The sound files, and what is done with altered ones."""

    def __init__(self, folder: Path) -> None:
        from petseg.data.shards.manifest import Manifest
        from petseg.data.shards.options import PackOptions
        from petseg.data.shards.pack import pack
        from petseg.data.shards.reader import ShardReader
        from petseg.data.sources.synthetic import SyntheticSource

        self.folder = folder
        self.source = SyntheticSource(24, 5)
        self.shards = folder / "shards"
        if not (self.shards / "manifest.json").exists():
            options = PackOptions(split="random", short_side=32, samples_per_shard=6)
            pack(self.source, self.shards, options, workers=1)
        self.manifest = Manifest.load(self.shards)
        self.truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for split in self.manifest.splits:
            reader = ShardReader(self.shards, self.manifest, split)
            self.truth |= {reader.key(index): reader.decoded(index) for index in range(len(reader))}
            reader.close()
        self.images, self.masks = _encoded_pairs(self.source)
        self.checkpoint = _checkpoint(folder)
        self.parts: dict[str, Callable[[random.Random], None]] = {
            "image": self.image, "mask": self.mask, "tar": self.tar, "index": self.index, "manifest": self.of_manifest,
            "class map": self.class_map, "config": self.config, "checkpoint": self.of_checkpoint, "dali": self.dali,
        }  # fmt: skip

    def run(self, kind: str, rng: random.Random) -> None:
        self.parts[kind](rng)

    def image(self, rng: random.Random) -> None:
        self._normalise(alter(rng.choice(self.images), rng), rng.choice(self.masks), rng)

    def mask(self, rng: random.Random) -> None:
        self._normalise(rng.choice(self.images), alter(rng.choice(self.masks), rng), rng)

    def _normalise(self, image: bytes, mask: bytes, rng: random.Random) -> None:
        """What packing makes of a pair, a loader decodes to the same."""
        from petseg.data.decode.images import decode_image
        from petseg.data.decode.masks import decode_mask
        from petseg.data.shards.mask_files import RejectError
        from petseg.data.shards.normalise import normalise
        from petseg.data.shards.verify import check_sample
        from petseg.errors import PetsegError

        classes = self.source.classes
        try:
            sample = normalise(image, mask, classes=classes, short_side=rng.choice((0, 32)), quality=90)
        except RejectError as error:
            raise PetsegError(str(error)) from error
        check_sample(sample.image, sample.mask, {*classes.codes, *classes.ignored})
        assert (decode_image(sample.image) == sample.pixels).all(), "a loader sees other pixels than packing"
        counts = np.bincount(decode_mask(sample.mask).ravel(), minlength=256)
        assert (counts == sample.counts).all(), "a loader sees other codes than packing"

    def tar(self, rng: random.Random) -> None:
        with self._copy() as shards:
            tar = rng.choice(sorted(shards.glob("*.tar")))
            _write(tar, alter(tar.read_bytes(), rng), tar.read_bytes())
            if tar.read_bytes() != (self.shards / tar.name).read_bytes():
                self._refused_or_true(shards, may_be_true=False, name=tar.name)

    def index(self, rng: random.Random) -> None:
        with self._copy() as shards:
            index = rng.choice(sorted(shards.glob("*.idx")))
            _write(index, (alter_text if rng.random() < 0.6 else alter)(index.read_bytes(), rng), b"")
            self._refused_or_true(shards, may_be_true=True, name=index.name)

    def of_manifest(self, rng: random.Random) -> None:
        with self._copy() as shards:
            path = shards / "manifest.json"
            _write(path, (alter_text if rng.random() < 0.7 else alter)(path.read_bytes(), rng), b"")
            self._refused_or_true(shards, may_be_true=True, name="")

    def class_map(self, rng: random.Random) -> None:
        from petseg.classes import ClassTable

        path = self.folder / "classes.toml"
        text = (
            b'codes = [1, 2, 3]\nnames = ["pet", "background", "border"]\ncolours = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]\n'
            b"ignored = [255]\nforegrounds = [[1], [1, 3]]\n"
        )
        path.write_bytes((alter_text if rng.random() < 0.7 else alter)(text, rng))
        table = ClassTable.from_toml(path)
        assert ClassTable.from_dict(table.to_dict()) == table
        assert len(table.lookup()) == 256 and len(table.palette()) == len(table)

    def config(self, rng: random.Random) -> None:
        from petseg.config import TrainConfig, resolve

        path = self.folder / "config.toml"
        path.write_bytes((alter_text if rng.random() < 0.7 else alter)(TrainConfig(shards="x").to_toml().encode(), rng))
        config = resolve({}, path)
        again = self.folder / "again.toml"
        again.write_text(config.to_toml())
        assert resolve({}, again) == config

    def of_checkpoint(self, rng: random.Random) -> None:
        import torch

        from petseg.inference.trained import load_trained
        from petseg.run.checkpoint import load_training_state
        from petseg.run.folder import RunFolder
        from tests.torture.kill import differences

        whole = self.checkpoint.read_bytes()
        run = self.folder / "altered"
        run.mkdir(exist_ok=True)
        data = alter(whole, rng)
        if data == whole:
            return
        (run / "last.pt").write_bytes(data)
        trained = load_trained(run / "last.pt", torch.device("cpu"))
        state = load_training_state(RunFolder(run))
        expected = torch.load(self.checkpoint, weights_only=True)
        found = differences(expected["ema"], trained.network.state_dict())
        sections = ("model", "step", "loader", "progress", "ema")
        found += [name for name in sections if differences(expected[name], state[name])]
        assert not found, f"other weights or state than were saved: {found[:3]}"

    def dali(self, rng: random.Random) -> None:
        """Without hashes, as `--no-verify` asks for: whatever is decoded, nothing may hang or crash."""
        from petseg import build_loader

        with self._copy() as shards:
            tar = rng.choice(sorted(shards.glob("train*.tar")))
            whole = tar.read_bytes()
            data = alter(whole, rng)
            tar.write_bytes((data + bytes(len(whole)))[: len(whole)])
            loader = build_loader(
                "dali", shards=shards, split="train", batch_size=4, size=(32, 32), num_threads=1, verify=False
            )
            try:
                seen = sum(int((batch.indices >= 0).sum()) for batch in loader)
                assert seen == self.manifest.split("train").samples, "samples were lost in silence"
            finally:
                loader.close()

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.shards, copy)
        yield copy

    def _refused_or_true(self, shards: Path, *, may_be_true: bool, name: str) -> None:
        """Every split is read as it was packed, or refused with a sentence that names the file."""
        from petseg.data.shards.manifest import Manifest
        from petseg.data.shards.reader import ShardReader
        from petseg.data.shards.verify import verify
        from petseg.errors import PetsegError

        manifest = Manifest.load(shards)
        refusals = []
        for split in manifest.splits:
            try:
                reader = ShardReader(shards, manifest, split)
                keys = [reader.key(index) for index in range(len(reader))]
                for index, key in enumerate(keys):
                    image, codes = reader.decoded(index)
                    known = self.truth.get(key)
                    assert known is None or ((image == known[0]).all() and (codes == known[1]).all()), f"wrong: {key}"
                    assert known is not None or not may_be_true or not name, f"unknown key {key!r}"
                reader.close()
            except PetsegError as error:
                refusals.append(error)
        problems = verify(shards, manifest)
        assert all("\n" not in problem for problem in problems), problems
        if not may_be_true:
            assert refusals and problems, "an altered tar was taken"
        if refusals:
            assert not name or name.partition(".")[0] in str(refusals[0]), f"{refusals[0]} does not name {name}"
            raise refusals[0]


def alter(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three random changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not data:
            return bytes(rng.randrange(1, 9))
        at = rng.randrange(len(data))
        # Headers are where most can go wrong.
        at = min(at, rng.randrange(1, 600)) if rng.random() < 0.5 else at
        length = rng.choice((1, 2, 4, 16, 60, 512, 5000))
        part = data[at : at + length]
        data = rng.choice((
            lambda d, a, n, p: d[:a] + bytes([d[a] ^ (1 << rng.randrange(8))]) + d[a + 1 :],
            lambda d, a, n, p: d[:a] + rng.randbytes(len(p)) + d[a + n :],
            lambda d, a, n, p: d[:a] + bytes(len(p)) + d[a + n :],
            lambda d, a, n, p: d[:a] + b"\xff" * len(p) + d[a + n :],
            lambda d, a, n, p: d[:a] + d[a + n :],
            lambda d, a, n, p: d[:a] + p + d[a:],
            lambda d, a, n, p: d[:a],
            lambda d, a, n, p: d + rng.randbytes(n),
        ))(data, at, length, part)  # fmt: skip
    return data


_VALUES = (
    b"-1", b"0", b"1", b"7", b"255", b"256", b"65536", b"9223372036854775808", b"-9223372036854775809", b"1e400",
    b"0.5", b"nan", b"inf", b"null", b"true", b'""', b'"x"', b"[]", b"{}", b"[[]]", b'"\\u0000"', b'"../../x"', b"'",
)  # fmt: skip


def alter_text(data: bytes, rng: random.Random) -> bytes:
    """Text with one to three numbers, strings or lines replaced, removed or doubled."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tokens = list(re.finditer(rb'"[^"\n]*"|-?\d[\d.e+-]*|[\[\]{}=:,]|\n', data))
        if not tokens:
            return data
        token = rng.choice(tokens)
        new = rng.choice((rng.choice(_VALUES), rng.choice(_VALUES), b"", token[0] * 2, rng.choice(tokens)[0]))
        data = data[: token.start()] + new + data[token.end() :]
    return data


def _write(path: Path, data: bytes, same_size_as: bytes) -> None:
    """Half of the cases keep the size, which is looked at first."""
    keep = len(data) % 2 == 0 and same_size_as
    path.write_bytes((data + bytes(len(same_size_as)))[: len(same_size_as)] if keep else data)


def _encoded_pairs(source: Any) -> tuple[list[bytes], list[bytes]]:
    """Images and masks of one size in many formats."""
    import io

    from PIL import Image

    pair = source.listing().pairs[0]
    image, mask = (Image.open(io.BytesIO(data)) for data in source.read(pair))
    image, mask = image.convert("RGB").resize((72, 56)), mask.resize((72, 56), Image.Resampling.NEAREST)

    def encoded(pixels: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        pixels.save(buffer, kind, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True), encoded(image, "JPEG", subsampling=0),
        encoded(image, "JPEG", exif=exif), encoded(image.convert("L"), "JPEG"), encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "PNG"), encoded(image.convert("RGBA"), "PNG"), encoded(image.convert("P"), "GIF"),
        encoded(image, "BMP"), encoded(image, "WEBP"), encoded(image, "TIFF"),
        encoded(image, "TIFF", compression="tiff_adobe_deflate"), encoded(image, "TIFF", compression="jpeg"),
        encoded(image, "PPM"),
    ]  # fmt: skip
    palette = mask.convert("L").copy()
    palette.putpalette(list(range(256)) * 3)
    masks = [
        encoded(mask, "PNG"), encoded(palette, "PNG"), encoded(mask.convert("RGB"), "PNG"), encoded(mask, "BMP"),
        encoded(mask, "TIFF"), encoded(mask, "GIF"), encoded(mask.convert("LA"), "PNG"),
        encoded(mask, "WEBP", lossless=True),
        encoded(Image.fromarray(np.asarray(mask).astype(np.uint16)), "PNG"),
    ]  # fmt: skip
    return images, masks


def _checkpoint(folder: Path) -> Path:
    """The last checkpoint of a small run."""
    run = folder / "run"
    if not (run / "summary.json").exists():
        import petseg

        options = {
            "shards": str(folder / "shards"), "run_dir": str(run), "size": "32", "width": 2, "depth": 2, "epochs": 1,
            "batch_size": 4, "device": "cpu", "amp": "off", "compile": "off", "gallery": 0, "num_threads": 1,
        }  # fmt: skip
        petseg.train(options)
        assert json.loads((run / "summary.json").read_text())
    return run / "last.pt"
