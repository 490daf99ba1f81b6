"""Scores over a set: against torchmetrics, whatever the batches and their padding."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from petseg import Manifest, build_loader
from petseg.classes import OXFORD
from petseg.data.shards.reader import ShardReader
from petseg.device import World
from petseg.inference.evaluate import evaluate
from petseg.inference.segment import Segmenter
from petseg.inference.trained import load_trained
from petseg.inference.whole_images import score_whole_images
from petseg.model.losses import Objective
from petseg.model.metrics import mean_iou
from petseg.model.transform import InputTransform
from petseg.report.panels import choose, make_panels

CPU = torch.device("cpu")
WORLD = World(rank=0, size=1, device=CPU)
TRANSFORM = InputTransform((0.4,) * 3, (0.2,) * 3)


class Threshold(nn.Module):
    """Colours to classes, with nothing to learn: right often enough to have something to count."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x) * torch.tensor([3.0, -2.0, 1.0]).view(1, 3, 1, 1)


def loader(packed, batch_size, split="train"):
    return build_loader("webdataset", shards=packed, split=split, batch_size=batch_size, size=(32, 48))


@pytest.mark.parametrize("batch_size", [1, 5, 42, 64])
def test_metrics_are_torchmetrics_whatever_the_batch(packed, batch_size):
    network = Threshold().train()
    made = loader(packed, batch_size)
    found = evaluate(network, made, OXFORD, TRANSFORM, WORLD)
    assert network.training, "it was left in evaluation mode"
    network.eval()
    iou, accuracy = MulticlassJaccardIndex(3, average=None), MulticlassAccuracy(3, average="micro")
    for batch in made:
        real = batch.indices >= 0
        with torch.no_grad():
            answers = network(TRANSFORM(batch.images[real])).argmax(1)
        truth = OXFORD.masks(batch.codes[real])
        iou.update(answers, truth), accuracy.update(answers, truth)
    made.close()
    assert list(found.metrics["iou"].values()) == pytest.approx(iou.compute().tolist(), abs=1e-6)
    assert found.metrics["pixel_accuracy"] == pytest.approx(accuracy.compute().item(), abs=1e-6)
    assert found.metrics["samples"] == 42 and sorted(found.image_iou) == list(range(42))


def test_the_loss_does_not_depend_on_the_batch(packed):
    network = Threshold()
    losses = []
    for batch_size in (1, 4, 42, 50):
        made = loader(packed, batch_size)
        losses.append(evaluate(network, made, OXFORD, TRANSFORM, WORLD).metrics["loss"])
        made.close()
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    from petseg.cli.app import run, train_app

    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--size", "32x48", "--width", "4", "--depth", "3", "--epochs", "1", "--amp", "off", "--gallery", "0"]
    assert run(train_app, "petseg-train", ["--shards", str(packed), "--run-dir", str(folder), *options]) == 0
    return load_trained(folder, CPU)


def test_full_size_scores_are_each_images_own(trained, packed):
    manifest = Manifest.load(packed)
    ticks = []
    found = score_whole_images(trained, packed, manifest, "val", device=CPU, progress=ticks.append).metrics
    assert sum(ticks) == found["samples"] == 12
    reader, segmenter = ShardReader(packed, manifest, "val"), Segmenter(trained, CPU)
    confusion = np.zeros((3, 3), np.int64)
    for index in range(12):
        image, codes = reader.decoded(index)
        answer = segmenter.segment(image)
        assert answer.shape == codes.shape
        np.add.at(confusion, (codes.astype(int).ravel() - 1, answer.astype(int).ravel()), 1)
    reader.close()
    assert found["mean_iou"] == pytest.approx(float(mean_iou(confusion)), abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())


def test_panels_show_a_sample_and_the_worst(trained, packed):
    manifest = Manifest.load(packed)
    scores = {index: 0.9 - 0.01 * index for index in range(12)}
    drawn, worst = choose(scores, 6)
    assert (drawn, worst) == (choose(scores, 6)[0], [11, 10, 9, 8]) and drawn == sorted(set(drawn)) and len(drawn) == 6
    panels, worst_panels = make_panels(trained, packed, manifest, "val", scores, count=6, device=CPU)
    assert [p.iou for p in worst_panels] == [scores[i] for i in worst] and len(panels) == 6
    for panel in (*panels, *worst_panels):
        assert panel.image.shape == (32, 48, 3) and panel.truth.shape == (32, 48)
        assert panel.probabilities.shape == (3, 32, 48)
        assert np.allclose(panel.probabilities.sum(0), 1, atol=1e-5)
    assert make_panels(trained, packed, manifest, "val", scores, count=0, device=CPU) == ([], [])


def test_mirrored_scores_are_those_of_the_mean_of_both(trained, packed):
    """Loss and mean IoU; a whole image's mirror image gets the mirrored answer."""
    made = loader(packed, 5, "val")
    mirrored, entropy = trained.mirrored().network, Objective("ce")
    found = evaluate(mirrored, made, OXFORD, trained.transform, WORLD, objective=entropy).metrics
    confusion, losses, pixels = np.zeros((3, 3), np.int64), 0.0, 0
    for batch in made:
        images = batch.images[batch.indices >= 0]
        truth = OXFORD.masks(batch.codes[batch.indices >= 0])
        both = (trained.probabilities(images) + trained.probabilities(images.flip(2)).flip(3)) / 2
        np.add.at(confusion, (truth.numpy().ravel(), both.argmax(1).numpy().ravel()), 1)
        losses -= both.gather(1, truth[:, None]).log().sum().item()
        pixels += truth.numel()
        torch.testing.assert_close(
            trained.mirrored().probabilities(images.flip(2)).flip(3), trained.mirrored().probabilities(images)
        )
    made.close()
    assert found["mean_iou"] == pytest.approx(float(mean_iou(confusion)), abs=1e-9)
    assert found["loss"] == pytest.approx(losses / pixels, rel=1e-5)
