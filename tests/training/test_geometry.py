"""Runs on padded images and crops, and what `--fit auto` comes to."""

import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import petseg
from petseg import Manifest
from petseg.classes import ClassTable
from petseg.config import RECIPES, TrainConfig, resolve
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.sources.folder import FolderSource
from petseg.device import World
from petseg.errors import PetsegError
from petseg.inference.evaluate import Tally
from petseg.inference.segment import Segmenter
from petseg.inference.trained import load_trained
from petseg.inference.whole_images import WholeImages
from petseg.model.losses import Objective
from petseg.run.checkpoint import load_checkpoint
from petseg.run.folder import RESOLVED
from petseg.training import auto
from petseg.training.geometry import settle_fit, squashed

CPU = torch.device("cpu")


def drawn(root, shapes, paint, n=24):
    """A packed folder of images of several shapes, whose masks `paint(height, width, rng)` makes."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(n):
        height, width = shapes[number % len(shapes)]
        mask = paint(height, width, rng)
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8) + mask[..., None] * np.uint8(90)
        Image.fromarray(image).save(root / f"images/p{number:02}.png")
        Image.fromarray(mask).save(root / f"masks/p{number:02}.png")
    classes = ClassTable.from_dict({"codes": [0, 1], "names": ["ground", "thing"]})
    source = FolderSource(root / "images", root / "masks", classes=classes)
    pack(source, root / "shards", PackOptions(short_side=0, split="random"), workers=1)
    return root / "shards"


def blob(height, width, _rng):
    rows, columns = np.indices((height, width))
    return (np.hypot(rows / height - 0.5, columns / width - 0.5) < 0.3).astype(np.uint8)


def dust(height, width, rng):
    mask = np.zeros((height, width), np.uint8)
    for top, left in zip(rng.integers(0, height - 4, 40), rng.integers(0, width - 4, 40), strict=True):
        mask[top : top + 3, left : left + 3] = 1
    return mask


@pytest.fixture(scope="module")
def dusty(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("dusty"), [(300, 400)], dust)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("shapes"), [(80, 240), (80, 80), (240, 80)], blob)


def settled(shards, **options):
    return settle_fit(TrainConfig(shards=str(shards), **options), Manifest.load(shards))


def test_auto_squashes_pets_and_every_recipe_that_is_for_them(packed):
    for size in ("64", "100", "128", "256", "97x133"):
        config, note = settled(packed, size=size)
        assert (config.fit, note) == ("squash", "")
    for recipe in ("oxford", "seed", "demo"):
        assert RECIPES[recipe]["fit"] == "squash"
        assert TrainConfig(recipe=recipe).fit == "squash"


def test_auto_crops_where_squashing_loses_small_things_and_pads_where_shapes_differ(dusty, shapes):
    config, note = settled(dusty, size="96")
    assert config.fit == "crop" and "--fit crop" in note and "--fit squash" in note
    assert settled(dusty, size="32")[0].fit == "squash", "a crop of 32 pixels shows too little"
    assert settled(dusty, size="96", fit="squash") == (TrainConfig(shards=str(dusty), size="96", fit="squash"), "")
    config, note = settled(shapes, size="64")
    assert config.fit == "pad" and "0.33 to 3 times as wide as high" in note


def test_what_squashing_loses_is_the_best_that_a_network_could_do():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, ::2] = 1
    classes = ClassTable.from_dict({"codes": [0, 1], "ignored": [9]})
    assert (squashed(mask, (64, 64), classes) == [[2048, 0], [0, 2048]]).all()
    lost = squashed(mask, (64, 32), classes)
    assert lost.sum() == 64 * 64 and np.trace(lost) == 64 * 32
    mask[:32] = 9
    assert squashed(mask, (64, 64), classes).sum() == 32 * 64


@pytest.mark.parametrize("loader", ["dali", "webdataset"])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_run_scores_whole_images_as_predict_segments_them(train, shapes, tmp_path, loader, fit):
    options = {"shards": str(shapes), "fit": fit, "epochs": 2, "size": "40", "loader": loader, "scale": (0.5, 1.5)}
    result, listener = train(**options)
    run = result.run.path
    summary = result.summary
    assert summary["samples"] == Manifest.load(shapes).split("test").samples and summary["scored_at"] == "own size"
    assert load_checkpoint(run / "best.pt")["config"]["fit"] == fit
    assert load_checkpoint(run / "last.pt")["loader"]["fit"].startswith(fit)
    # By hand: what `predict` writes, against the masks.
    pets = petseg.load(run, "cpu")
    counts = np.zeros((2, 2), np.int64)
    reader = WholeImages(shapes, Manifest.load(shapes), "test", World(rank=0, size=1, device=CPU))
    for _, image, codes in reader.decoded(reader.indices):
        np.add.at(counts, (codes.ravel(), pets.predict(image).ravel()), 1)
    reader.close()
    assert summary["confusion"] == counts.tolist()
    again = petseg.evaluate(run, "test")
    assert again["confusion"] == summary["confusion"] and again["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert [record["val"]["samples"] for record in listener.records] == [Manifest.load(shapes).split("val").samples] * 2
    page = petseg.write_report(run, device="cpu").read_text()
    assert page.count("data:image/webp") >= 8


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_cache_changes_nothing(train, shapes, fit):
    options = {"shards": str(shapes), "size": "40", "epochs": 3, "fit": fit}
    results = [train(cache, **options, cache=cache)[0] for cache in ("none", "host")]
    assert results[0].summary["confusion"] == results[1].summary["confusion"]


def test_crops_say_what_they_keep(train, shapes, tmp_path, monkeypatch):
    options = {"shards": str(shapes), "size": "40", "epochs": 1, "fit": "crop"}
    run = train("auto", **options)[0].run
    assert resolve({}, run.path / RESOLVED).cache == "host"
    _, listener = train("asked", **options, cache="host")
    assert any("for whole images of train" in note for note in listener.notes)
    _, listener = train("dali", **options, loader="dali")
    assert any("--cache none: whole images" in note and "--loader webdataset" in note for note in listener.notes)
    monkeypatch.setitem(auto.CACHE_SHARE, "cpu", 0)
    _, listener = train("large", **options)
    assert any("a sixteenth of the free memory; --cache host keeps" in note for note in listener.notes)
    with pytest.raises(PetsegError, match="--cache: for crops, whole images are kept by"):
        train("crop", **options, cache="host", loader="dali")
    assert not (tmp_path / "crop").exists()


def test_a_crop_run_resumes_to_the_same_bits(train, dusty, tmp_path):
    options = {"shards": str(dusty), "fit": "crop", "size": "32", "save_every_steps": 1, "epochs": 3}
    whole, _ = train("whole", **options)
    first, _ = train("parts", **options, on_step=lambda step: step == 3 and signal.raise_signal(signal.SIGINT))
    assert first.summary is None
    rest, _ = train("parts", resume=True)
    for name in ("last.pt", "best.pt"):
        one, other = (load_checkpoint(each.run.path / name) for each in (whole, rest))
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    assert rest.summary["confusion"] == whole.summary["confusion"]
    with pytest.raises(PetsegError, match="--fit pad"):
        train("parts", resume=True, epochs=5, fit="pad")
    with pytest.raises(PetsegError, match="--scale"):
        train("parts", resume=True, epochs=5, scale=(0.5, 1.0))


def test_ranks_share_whole_images_exactly_once(dusty):
    manifest = Manifest.load(dusty)
    seen = []
    for rank in range(3):
        images = WholeImages(dusty, manifest, "train", World(rank=rank, size=3, device=CPU))
        seen += [index for index, _, _ in images.decoded(images.indices)]
        some = images.some(5)
        assert len(some) == 5 and (np.diff(some) > 0).all() and (some == images.some(5)).all()
        images.close()
    assert sorted(seen) == list(range(manifest.split("train").samples))


def test_val_is_a_fixed_part_where_all_of_it_would_take_too_long(train, dusty, monkeypatch, tmp_path):
    monkeypatch.setattr("petseg.training.scoring.LEAST_VAL_IMAGES", 1)
    monkeypatch.setattr("petseg.training.scoring.VAL_SHARE", 1e-9)
    result, listener = train(shards=str(dusty), fit="crop", size="32")
    assert [record["val"]["samples"] for record in listener.records] == [1, 1]
    assert any(re.search(r"val: 1 of \d images are scored after each epoch", note) for note in listener.notes)
    assert result.summary["samples"] == Manifest.load(dusty).split("test").samples, "the end scores all"
    assert load_checkpoint(result.run.path / "last.pt")["progress"]["val_images"] == 1


@pytest.mark.slow
def test_a_time_limit_holds_for_whole_images(train, dusty):
    result, _ = train(shards=str(dusty), fit="crop", size="32", epochs=None, max_minutes=0.25)
    assert result.summary["seconds"] < 15.75


def test_scales_and_flips_are_averages(train, shapes):
    result, _ = train(shards=str(shapes), fit="crop", size="40", epochs=1)
    trained = load_trained(result.run.path, CPU)
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    each = [Segmenter(trained, CPU, scales=(scale,)).probabilities(image) for scale in (0.5, 1.0, 2.0)]
    together = Segmenter(trained, CPU, scales=(0.5, 1.0, 2.0)).probabilities(image)
    assert np.abs(together - np.mean(each, axis=0)).max() < 1e-6
    assert np.abs(each[0] - each[1]).max() > 1e-4
    assert np.abs(together.sum(0) - 1).max() < 1e-5
    flipped = Segmenter(trained, CPU, tta=True, scales=(0.5, 1.0)).probabilities(image)
    mirror = Segmenter(trained, CPU, tta=True, scales=(0.5, 1.0)).probabilities(image[:, ::-1])[:, :, ::-1]
    assert np.abs(flipped - mirror).max() < 1e-5
    scored = petseg.evaluate(result.run.path, "test", tta=True, tta_scales=(0.5, 1.0))
    assert scored["samples"] == result.summary["samples"]
    with pytest.raises(PetsegError, match="--tta-scale"):
        Segmenter(trained, CPU, scales=(0.0,))


def test_an_image_that_is_long_and_narrow_takes_no_memory_for_its_frame(train, shapes):
    result, _ = train(shards=str(shapes), fit="pad", size="40", epochs=1)
    segmenter = Segmenter(load_trained(result.run.path, CPU), CPU)
    tall = np.full((20_000, 40, 3), 128, np.uint8)
    for rows, band in segmenter.bands(tall):
        assert band.shape == (2, rows.stop - rows.start, 40)
    assert rows.stop == 20_000


def test_a_run_without_a_recorded_fit_is_squashed():
    config = TrainConfig().to_dict()
    for name in ("fit", "scale", "crop_max_share"):
        del config[name]
    assert TrainConfig.recorded(config).fit == "squash"


def test_the_tally_is_that_of_the_loader(dusty):
    """At the network's own size, whole images and batches are counted alike."""
    table = Manifest.load(dusty).classes
    one, all_ = (Tally(len(table), World(rank=0, size=1, device=CPU)) for _ in range(2))
    confusions = torch.arange(12).view(3, 2, 2)
    all_.add(torch.tensor([0, 1, 2]), confusions)
    for index in range(3):
        one.add(torch.tensor([index]), confusions[index : index + 1])
    assert one.evaluation(table, Objective(), skipped=0) == all_.evaluation(table, Objective(), skipped=0)
