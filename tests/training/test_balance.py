"""Weights of classes, losses, and runs with them."""

import dataclasses
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import petseg
from petseg import Manifest
from petseg.classes import OXFORD
from petseg.data.shards.reader import ShardReader
from petseg.data.weights import digest_of, sample_weights
from petseg.errors import PetsegError
from petseg.inference.trained import load_trained
from petseg.run.checkpoint import load_checkpoint
from petseg.training.balance import class_weights
from petseg.training.step import _keys


def test_balanced_is_median_frequency(packed):
    manifest = Manifest.load(packed)
    counts = np.array([manifest.pixel_counts[code] for code in manifest.classes.codes])
    weights = class_weights("balanced", manifest)
    assert weights == pytest.approx(np.median(counts) / counts)
    assert class_weights("none", manifest) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pet = 1\nbackground = 2", "'border' is missing"),
        ("pet = 1\nbackground = 2\nborder = 1\ntail = 1", "'tail' is not a class"),
        ("pet = -1\nbackground = 2\nborder = 1", "pet = -1"),
        ("pet = true\nbackground = 2\nborder = 1", "pet = True"),
        ("pet = 0\nbackground = 0\nborder = 0", "every weight is 0"),
        ("pet = ", "TOML"),
    ],
)
def test_a_file_names_every_class_once(packed, tmp_path, text, words):
    file = tmp_path / "weights.toml"
    file.write_text(text)
    with pytest.raises(PetsegError, match=f"--class-weights: .*{words}"):
        class_weights(str(file), Manifest.load(packed))
    with pytest.raises(PetsegError, match="no such file"):
        class_weights(str(tmp_path / "none.toml"), Manifest.load(packed))


def test_weights_of_a_file_are_the_classes(packed, tmp_path):
    file = tmp_path / "weights.toml"
    file.write_text("border = 4\npet = 1.5\nbackground = 0\n")
    assert class_weights(str(file), Manifest.load(packed)) == (1.5, 0.0, 4.0)


@pytest.mark.parametrize("loss", ["ce", "focal", "lovasz"])
def test_a_run_minimises_and_scores_by_its_loss(train, loss):
    result, listener = train(loss=loss, class_weights="balanced", epochs=3)
    losses = [record["train_loss"] for record in listener.records]
    assert losses[-1] < losses[0]
    saved = load_checkpoint(result.run.path / "best.pt")
    assert saved["class_weights"] == pytest.approx(class_weights("balanced", Manifest.load(saved["config"]["shards"])))
    again = petseg.evaluate(result.run.path, "test")
    assert again["loss"] == pytest.approx(result.summary["loss"], rel=1e-5)


OPTIONS = {
    "size": "32", "width": 4, "depth": 3, "batch_size": 8, "epochs": 1, "device": "cpu", "amp": "off", "compile": "off",
    "gallery": 0, "num_threads": 2,
}  # fmt: skip


def test_an_augmentation_from_python_takes_the_place_of_the_options(packed, tmp_path):
    seen = []

    def mine(x, masks):
        seen.append((x.shape, x.max().item(), masks.max().item()))
        return x, masks

    options = {**OPTIONS, "shards": str(packed)}
    mine_run = petseg.train({**options, "run_dir": str(tmp_path / "mine")}, augment=mine)
    plain = petseg.train({**options, "run_dir": str(tmp_path / "plain"), "augment": False})
    assert len(seen) == 5 and seen[0][0] == (8, 3, 32, 32) and seen[0][1] <= 1
    one, other = (load_checkpoint(each.run.last)["model"] for each in (mine_run, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(PetsegError, match=r"begun with an augmentation of your own.*augment=\.\.\."):
        petseg.train({"run_dir": str(tmp_path / "mine"), "epochs": 2}, resume=True)
    petseg.train({"run_dir": str(tmp_path / "mine"), "epochs": 2}, augment=mine, resume=True)
    assert len(seen) == 10


@pytest.mark.parametrize("given", [{"hflip": False}, {"hflip": False, "vflip": True}, {"vflip": True}])
def test_test_time_flips_are_those_of_training(train, given):
    result, _ = train(**given, epochs=1)
    trained = load_trained(result.run.path, torch.device("cpu"))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    if not any({"hflip": True, **given}.values()):
        with pytest.raises(PetsegError, match=r"--tta: .*without mirror images"):
            trained.mirrored()
        return
    every = trained.mirrored().probabilities(images)
    for dim, name in ((2, "hflip"), (1, "vflip")):
        mirrored = trained.mirrored().probabilities(images.flip(dim)).flip(dim + 1)
        assert torch.allclose(mirrored, every, atol=1e-5) == {"hflip": True, "vflip": False, **given}[name]


def test_a_loss_from_python_is_what_the_run_minimises(packed, tmp_path):
    seen = []

    def mine(outputs, masks):
        seen.append((outputs.shape, masks.min().item()))
        return F.cross_entropy(outputs, masks) + 1.0

    options = {**OPTIONS, "shards": str(packed)}
    mine_run = petseg.train({**options, "run_dir": str(tmp_path / "mine")}, loss=mine)
    plain = petseg.train({**options, "run_dir": str(tmp_path / "plain"), "loss": "ce"})
    assert seen and seen[0][0] == (8, 3, 32, 32)
    one, other = (load_checkpoint(each.run.last)["model"] for each in (mine_run, plain))
    assert all(torch.equal(one[name], other[name]) for name in one), "a constant has no gradient"
    assert mine_run.summary["loss"] == pytest.approx(plain.summary["loss"] + 1, abs=1e-4)
    with pytest.raises(PetsegError, match=r"--loss: .*petseg.train\(..., loss=...\)"):
        petseg.train({**options, "loss": "own", "run_dir": str(tmp_path / "none")})


def test_a_run_that_accumulates_resumes_to_the_same_bits(train):
    """Five batches an epoch, two a step: the last step of an epoch has one."""
    options = {"accumulate": 2, "epochs": 3, "save_every_steps": 1}
    whole, listener = train("whole", **options)
    assert listener.steps == 9 and [record["samples"] for record in listener.records] == [40, 40, 40]
    train("parts", **options, on_step=lambda step: step == 5 and signal.raise_signal(signal.SIGINT))
    rest, _ = train("parts", resume=True)
    one, other = (load_checkpoint(each.run.last)["model"] for each in (whole, rest))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_samples_with_rare_classes_are_visited_more_often(train, packed, tmp_path):
    manifest = Manifest.load(packed)
    reader = ShardReader(packed, manifest, "train")
    file = tmp_path / "weights.txt"
    file.write_text("".join(f"{reader.key(index)} {10 * (index < 6)}\n" for index in range(42)))
    reader.close()
    result, listener = train(sample_weights=str(file), epochs=1, batch_size=6)
    assert listener.records[0]["samples"] == 42
    saved = load_checkpoint(result.run.last)
    assert saved["loader"]["weights"] == digest_of(sample_weights(str(file), packed, manifest))
    assert saved["config"]["sample_weights"] == str(file.absolute())
    with pytest.raises(PetsegError, match="--sample-weights"):
        train(resume=True, epochs=2, sample_weights="balanced")


def test_each_visit_of_an_epoch_is_augmented_anew():
    zeros = torch.zeros((3, 2, 2), dtype=torch.uint8)
    once = petseg.Batch(zeros[..., None].expand(3, 2, 2, 3), zeros, torch.tensor([4, 4, 4]), OXFORD)
    assert _keys(once).tolist() == [4, 4, 4]
    thrice = dataclasses.replace(once, visits=torch.tensor([0, 1, 2]))
    assert _keys(thrice)[0] == 4 and len(set(_keys(thrice).tolist())) == 3
