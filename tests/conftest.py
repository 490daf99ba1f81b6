"""Options, skips and data that all tests share."""

import gc
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.data.loaders.crew import Processes
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources.oxford import OxfordSource
from petseg.data.sources.synthetic import SyntheticSource
from petseg.system import usable_cores
from petseg.training.reporter import Reporter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")
    parser.addoption(
        "--pets", type=Path, help="folder with Oxford-IIIT Pet or a part of it, for the tests that learn it"
    )


def pytest_collection_finish() -> None:
    """Leave the modules and tests that are there by now out of every garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; ask for it with --slow"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What petseg remembers of files stays out of the user's own cache folder, in started processes too.

    Nor does it matter whether the tests were started by `uv run`, which hints on screen repeat.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # Sums are compared bit by bit, so nothing may follow the load.
        patch.setenv("OMP_NUM_THREADS", str(usable_cores()))
        yield


@pytest.fixture(scope="session", autouse=True)
def decoding_processes():
    """Loaders share their processes: these are started once, and not for every test."""
    processes = Processes.shared(2)
    yield
    processes.close()


def write_oxford(root: Path, n: int = 24, *, seed: int = 5) -> Path:
    """Drawn pets as Oxford publishes its own: odd sizes, lists, and the files that nobody wants."""
    source = SyntheticSource(n, seed)
    rng = np.random.default_rng(seed)
    images, trimaps = root / "images", root / "annotations" / "trimaps"
    images.mkdir(parents=True)
    trimaps.mkdir(parents=True)
    lines = []
    for number, pair in enumerate(source.listing().pairs, start=1):
        image, mask = (Image.open(io.BytesIO(data)) for data in source.read(pair))
        size = tuple(int(side) for side in rng.integers(143, 421, 2))
        key = f"Drawn_{number}"
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(images / f"{key}.jpg", quality=90)
        mask.resize(size, Image.Resampling.NEAREST).save(trimaps / f"{key}.png")
        lines.append(f"{key} 1 1 1")
    annotations = root / "annotations"
    (annotations / "trainval.txt").write_text("\n".join(lines[: 2 * n // 3]) + "\n")
    (annotations / "test.txt").write_text("\n".join(lines[2 * n // 3 :]) + "\n")
    (images / "Drawn_1.mat").write_bytes(b"MATLAB")
    (trimaps / "._Drawn_1.png").write_bytes(b"\0\5\26\7")
    return root


@pytest.fixture(scope="session")
def oxford(tmp_path_factory) -> Path:
    """A folder in Oxford's layout: 24 pairs between 143 and 420 px. Not to be changed: see `oxford_copy`."""
    return write_oxford(tmp_path_factory.mktemp("oxford"))


@pytest.fixture
def oxford_copy(oxford, tmp_path) -> Path:
    """A copy of `oxford` of the test's own."""
    return shutil.copytree(oxford, tmp_path / "oxford")


@pytest.fixture(scope="session")
def originals(oxford, tmp_path_factory) -> Path:
    """Shards of `oxford` with the original bytes: train 14, val 2, test 8, in shards of at most 5."""
    out = tmp_path_factory.mktemp("shards") / "originals"
    options = PackOptions(split="official", short_side=0, samples_per_shard=5)
    pack(OxfordSource(oxford), out, options, workers=1)
    return out


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """Shards of 60 drawn pets at a short side of 64: train 42, val 12, test 6 (with this seed), in shards of 12."""
    out = tmp_path_factory.mktemp("shards") / "packed"
    options = PackOptions(split="random", seed=86, short_side=64, samples_per_shard=12)
    pack(SyntheticSource(60, 3), out, options, workers=1)
    return out


@pytest.fixture(scope="session")
def pixels(tmp_path_factory) -> Path:
    """The samples of `packed`, as PPM and PGM."""
    out = tmp_path_factory.mktemp("shards") / "pixels"
    options = PackOptions(split="random", seed=86, short_side=64, samples_per_shard=12, encoding="ppm")
    pack(SyntheticSource(60, 3), out, options, workers=1)
    return out


@pytest.fixture
def packed_copy(packed, tmp_path) -> Path:
    """A copy of `packed` of the test's own."""
    return shutil.copytree(packed, tmp_path / "packed")


class Listener(Reporter):
    """Remembers, and calls `on_step` with the number of each step."""

    def __init__(self, on_step=None):
        self.notes: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.steps = 0
        self.on_step = on_step

    def note(self, text):
        self.notes.append(text)

    def step(self, *_):
        self.steps += 1
        if self.on_step:
            self.on_step(self.steps)

    def epoch_ended(self, record):
        self.records.append(record)


@pytest.fixture
def train_with(packed, tmp_path):
    """Makes what runs `fit` on the packed pets, from options that can be given anew; see `run`."""

    def make(options):
        from petseg.config import resolve
        from petseg.device import World, resolve_device
        from petseg.run.folder import RunFolder
        from petseg.training.fit import fit

        def run(name="run", *, resume=False, on_step=None, **given):
            """(result, listener) of a run in the folder `name`, or of its going on."""
            folder = RunFolder(tmp_path / name)
            asked = given if resume else {**options, "shards": str(packed), **given}
            config = resolve(asked, folder.config if resume else None)
            listener = Listener(on_step)
            world = World(rank=0, size=1, device=resolve_device(options["device"]))
            return fit(config, folder, world, listener, resume=resume), listener

        return run

    return make


@pytest.fixture(scope="session")
def environment(own_cache) -> dict[str, str]:
    """For processes that tests start: no colours, no width of a terminal."""
    return {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
