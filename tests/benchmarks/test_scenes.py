"""The benchmark on streets: its folder, its rows, and both contenders for a moment."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import scenes
from benchmarks.harness import ContenderError, Row
from benchmarks.learn import Point
from benchmarks.report import conclusion
from petseg import Manifest


@pytest.fixture
def streets(tmp_path):
    """A folder as SegNet's tutorial has it: stripes of its classes below the sky, and void between."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for part in ("", "annot"):
            (tmp_path / f"{split}{part}").mkdir()
        for number in range(count):
            mask = np.full((90, 120), 0, np.uint8)
            mask[45 + number :] = np.arange(120) // 11
            mask[44 + number : 46 + number] = 11
            image = rng.integers(0, 80, (90, 120, 3), dtype=np.uint8) + mask[..., None] * np.uint8(12)
            Image.fromarray(image).save(tmp_path / split / f"s{split}{number}.jpg")
            Image.fromarray(mask).save(tmp_path / f"{split}annot" / f"s{split}{number}.png")
    return tmp_path


@pytest.fixture
def data(streets, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "WORK", tmp_path / "work")
    return scenes.prepare(scenes.source_of(str(streets)))


def test_its_images_keep_their_size_and_their_splits(data, streets):
    manifest = Manifest.load(data / "shards")
    assert {name: manifest.samples(name) for name in manifest.splits} == {"train": 10, "val": 3}
    assert manifest.max_height == 90 and manifest.classes.names == scenes.NAMES and 11 in manifest.pixel_counts
    assert len(list((data / "files" / "images").iterdir())) == 10
    assert scenes.prepare(scenes.source_of(str(streets))) == data, "it is kept"


def test_rows_hold_the_best_of_each_curve(tmp_path, monkeypatch):
    facts = {"epochs": 3, "iou": {"sky": 0.5}}
    curves = {
        scenes.PETSEG.name: [Point(60.0, 0.5, facts)],
        scenes.SMP.name: [Point(30.0, 0.4, facts), Point(60.0, 0.3, facts)],
    }
    monkeypatch.setattr(scenes, "run_entry", lambda entry, data, seed, seconds: curves[entry.name])
    (rows,) = scenes.run_all(tmp_path, [scenes.PETSEG, scenes.SMP], seeds=[0], minutes=1.0, progress=lambda name: None)
    assert [row.samples for row in rows] == [[0.5], [0.4]] and "sky 0.50" in rows[0].facts["detail"]
    assert scenes.ratios(rows) == {"mean_iou": 0.5, "above_smp": pytest.approx(0.1)}
    words = "petseg --recipe scenes reaches 0.500; the best of the others (smp Unet-resnet18, plain loop) 0.400."
    assert conclusion([row.to_dict() for row in rows]) == words

    def fail(*_):
        raise ContenderError("no smp")

    monkeypatch.setattr(scenes, "run_entry", fail)
    (rows,) = scenes.run_all(tmp_path, [scenes.SMP], seeds=[0], minutes=1.0, progress=lambda name: None)
    assert isinstance(rows[0], Row) and rows[0].note == "failed: no smp"
    assert scenes.ratios(rows) == {"mean_iou": None, "above_smp": None}


@pytest.mark.slow
def test_both_contenders_learn_for_a_moment(data):
    (rows,) = scenes.run_all(data, [scenes.PETSEG, scenes.SMP], seeds=[0], minutes=0.4, progress=lambda name: None)
    assert not any(row.note for row in rows)
    assert all(0 <= row.samples[0] <= 1 for row in rows)
