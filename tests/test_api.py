"""petseg from Python: the same run as the command's, networks of one's own, and what becomes of them."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import petseg
from petseg.cli.app import run, train_app, umbrella
from petseg.errors import PetsegError
from petseg.run.checkpoint import load_checkpoint

TINY = {
    "size": "32", "width": 4, "depth": 3, "batch_size": 8, "epochs": 2, "device": "cpu", "amp": "off", "gallery": 2,
    "num_threads": 2,
}  # fmt: skip


class Own(nn.Module):
    """A network as somebody may bring it along; `out` as torchvision's have it."""

    def __init__(self, classes=3, *, as_dict=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))
        self.as_dict = as_dict

    def forward(self, x):
        return {"out": self.body(x)} if self.as_dict else self.body(x)


@pytest.fixture
def options(packed, tmp_path):
    return {**TINY, "shards": str(packed), "run_dir": str(tmp_path / "run")}


def test_it_is_the_commands_run(options, tmp_path):
    result = petseg.train(options)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "run_dir"]
    assert run(train_app, "petseg-train", [*flags, "--run-dir", str(tmp_path / "command")]) == 0
    ours, theirs = (load_checkpoint(tmp_path / name / "best.pt") for name in ("run", "command"))
    assert all(torch.equal(ours["ema"][name], theirs["ema"][name]) for name in theirs["ema"])
    assert {p.name for p in result.run.path.iterdir()} == {p.name for p in (tmp_path / "command").iterdir()}
    assert result.summary["mean_iou"] == json.loads((tmp_path / "command" / "summary.json").read_text())["mean_iou"]


def test_callbacks_are_called_after_every_epoch(options, caplog):
    heard = []
    with caplog.at_level(logging.INFO, "petseg"):
        petseg.train(options, callbacks=[heard.append, lambda record: record.clear()])
    lines = [json.loads(line) for line in open(f"{options['run_dir']}/metrics.jsonl")]  # noqa: SIM115, PTH123
    assert [each["epoch"] for each in lines] == [1, 2] and len(heard) == 2
    assert "epoch 2: loss" in caplog.text


def test_a_tracker_takes_the_records_in_five_lines(options):
    """The README's example, with a tracker that only remembers."""

    class Tracker:
        def __init__(self):
            self.logged = []

        def log_metrics(self, metrics, step):
            self.logged.append((step, metrics))

    mlflow = Tracker()

    def track(record):
        scores = {"train_loss": record["train_loss"], "val_mean_iou": record["val"]["mean_iou"]}
        mlflow.log_metrics(scores, step=record["epoch"])

    petseg.train(options, callbacks=[track])
    assert [step for step, _ in mlflow.logged] == [1, 2]
    assert all(isinstance(value, float) for _, metrics in mlflow.logged for value in metrics.values())


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_network_of_ones_own(options, capsys, as_dict):
    torch.manual_seed(0)
    network = Own(as_dict=as_dict)
    before = network.body[0].weight.clone()
    result = petseg.train(options, network=network)
    assert not torch.equal(network.body[0].weight, before), "it is trained in place"
    assert result.summary["parameters"] == sum(p.numel() for p in network.parameters())
    again = petseg.train({"run_dir": options["run_dir"], "epochs": 3}, network=Own(as_dict=as_dict), resume=True)
    assert again.summary["epochs"] == 3
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    own = petseg.load(options["run_dir"], "cpu", network=Own(as_dict=as_dict))
    assert set(np.unique(own.predict(photo))) <= {1, 2, 3}
    with pytest.raises(PetsegError, match="this run's network is yours"):
        petseg.load(options["run_dir"])
    assert run(umbrella, "petseg", ["eval", options["run_dir"]]) == 2
    assert "give it as `network` to petseg.train, load, predict, evaluate, export or write_report" in (
        capsys.readouterr().err
    )


def test_everything_takes_a_network_of_ones_own_and_leaves_it_as_it_is(options, tmp_path):
    result = petseg.train(options, network=Own())
    fresh = Own().train()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    path = options["run_dir"]
    assert petseg.evaluate(path, network=fresh, device="cpu")["mean_iou"] == result.summary["mean_iou"]
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    (written,) = petseg.predict(path, tmp_path / "photo.png", tmp_path / "out", network=fresh, device="cpu")
    assert written.mask.is_file()
    report = (result.run.path / "report.html").read_bytes()
    assert petseg.write_report(path, network=fresh, device="cpu").read_bytes() == report
    assert petseg.export(path, "torch-export", network=fresh).path.is_file()
    again = petseg.train(
        {**options, "run_dir": str(tmp_path / "again"), "init_from": path, "lr": 1e-12, "epochs": 1, "ema": 0.0},
        network=fresh,
    )
    assert again.run.resolved()["optimizer"] == "adamw"
    assert abs(again.summary["mean_iou"] - result.summary["mean_iou"]) < 0.05, "it starts from the other's weights"
    assert fresh.training and all(p.requires_grad for p in fresh.parameters())
    assert any(not torch.equal(before[name], value) for name, value in fresh.state_dict().items()), "in place"
    other = Own().eval()
    petseg.load(path, "cpu", network=other).predict(np.zeros((8, 8, 3), np.uint8))
    assert all(p.requires_grad for p in other.parameters())


def test_a_network_of_ones_own_gets_the_statistics_that_it_learned_with(options):
    """As timm's networks say them, or as asked; the shards' own where nobody knows."""

    def mean(network, **more):
        run_dir = f"{options['run_dir']}-{len(more)}-{hasattr(network, 'pretrained_cfg')}"
        result = petseg.train({**options, "epochs": 1, "gallery": 0, "run_dir": run_dir, **more}, network=network)
        return load_checkpoint(result.run.last)["mean"]

    told = Own()
    told.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    assert mean(told) == pytest.approx([0.1, 0.2, 0.3])
    assert mean(Own()) == pytest.approx(petseg.Manifest.load(options["shards"]).mean)
    assert mean(Own(), statistics="imagenet") == pytest.approx([0.485, 0.456, 0.406])


def test_a_network_that_cannot_learn_from_a_batch_of_one(options):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x):
            return x + self.pool(x)

    with pytest.raises(PetsegError, match=r"cannot learn from batches of 1 images .* give a larger --batch-size"):
        petseg.train({**options, "batch_size": 1}, network=Pooled())
    assert petseg.train({**options, "epochs": 1}, network=Pooled()).summary["epochs"] == 1


class Logits(nn.Module):
    """A network whose auxiliary head has no part in its output, as torchvision's have one."""

    def __init__(self):
        super().__init__()
        self.body, self.aux = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return {"out": self.body(x), "aux": self.aux(x)}


RANKS = """
import sys
import torch
from test_api import Logits
import petseg
from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.device import open_world
from petseg.model.networks import OwnNetwork
from petseg.model.transform import InputTransform
from petseg.training.step import TrainStep

with open_world("cpu") as world:
    torch.manual_seed(world.rank)  # as a script leaves it that seeds nothing
    network = Logits()
    result = petseg.train(
        {"shards": sys.argv[1], "run_dir": sys.argv[2], "size": "32", "batch_size": 4, "epochs": 1, "device": "cpu",
         "amp": "off", "lr": 1e-9, "optimizer": "adam", "gallery": 0},
        network=network,
    )
    torch.manual_seed(world.rank)
    config = TrainConfig(arch="own", optimizer="adamw", amp="off", compile="off")
    ours, transform = OwnNetwork(Logits()), InputTransform((0.5,) * 3, (0.25,) * 3)
    step = TrainStep(ours, config, OXFORD, transform, world, total_samples=100)
    for value in step.ema.network.state_dict().values():
        total = value.clone()
        torch.distributed.all_reduce(total)
        assert torch.allclose(total, 2 * value), "every rank averages rank 0's weights"
"""


@pytest.mark.slow
def test_unused_parameters_and_other_first_weights_on_two_ranks(packed, tmp_path, environment):
    (tmp_path / "script.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(packed), str(tmp_path / "run")],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_reporter_is_a_callback_and_tensorboard_writes_from_python_too(options):
    class Tracker(petseg.Reporter):
        def __init__(self):
            self.heard = []

        def started(self, run, config):
            self.heard.append((run.path.name, config.optimizer))

        def epoch_ended(self, record):
            self.heard.append(record["epoch"])

    tracker = Tracker()
    result = petseg.train({**options, "tensorboard": True}, callbacks=[tracker])
    assert tracker.heard == [("run", "muon"), 1, 2]
    assert list(result.run.path.glob("events.out.tfevents.*"))


def test_options_that_do_nothing_are_named(options, pixels, caplog):
    given = {"shards": str(pixels), "epochs": 1, "warmup": 0.3, "sync_batchnorm": True, "chroma": "simple"}
    with caplog.at_level(logging.INFO, "petseg"):
        petseg.train({**options, **given, "gallery": 0})
    assert "--warmup 0.3 does nothing here: --schedule onecycle has its own warmup" in caplog.text
    assert "--sync-batchnorm does nothing here: this run has one rank" in caplog.text
    assert "--chroma simple does nothing here: these shards hold PPM images, not JPEGs" in caplog.text


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Own(classes=2), r"its outputs are \[1, 2, 32, 32\], and \[1, 3, 32, 32\] are wanted"),
        (nn.Conv2d(3, 3, 3), r"outputs are \[1, 3, 30, 30\]"),
        (nn.Conv2d(4, 3, 1), "does not take images of 32x32 px"),
    ],
)
def test_a_network_that_does_not_fit(options, tmp_path, network, words):
    with pytest.raises(PetsegError, match=words):
        petseg.train(options, network=network)
    assert not (tmp_path / "run").exists()


def test_what_train_refuses(options):
    with pytest.raises(PetsegError, match="--shards: name a folder"):
        petseg.train({"epochs": 2})
    with pytest.raises(PetsegError, match=r"nothing to resume: .*run has no last\.pt"):
        petseg.train(options, resume=True)
    petseg.train({**options, "epochs": 1})
    with pytest.raises(PetsegError, match="leave your own out"):
        petseg.load(options["run_dir"], network=Own())


def test_a_loaded_network_takes_any_image(options, tmp_path):
    petseg.train(options)
    pets = petseg.load(options["run_dir"], device="cpu")
    assert pets.classes.names == ("pet", "background", "border") and isinstance(pets.network, nn.Module)
    pixels = np.random.default_rng(0).integers(0, 256, (61, 87, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png")
    masks = [pets.predict(each) for each in (pixels, image, tmp_path / "photo.png", str(tmp_path / "photo.png"))]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert masks[0].dtype == np.uint8 and masks[0].shape == (61, 87)
    found = pets.probabilities(image)
    assert found.dtype == np.float32 and found.shape == (3, 61, 87)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert np.array_equal(pets.classes.to_codes(found.argmax(0)), masks[0])


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 3])
def test_what_is_no_image(options, image):
    petseg.train({**options, "epochs": 1})
    with pytest.raises(PetsegError, match=r"an image is a path, a PIL image or u8\[H, W, 3\], not"):
        petseg.load(options["run_dir"]).predict(image)


def test_what_is_shown_of_a_result_is_a_line(options, packed):
    result = petseg.train({**options, "epochs": 1, "gallery": 0})
    found = [
        result, result.test, result.trained, petseg.load(options["run_dir"], "cpu"), petseg.Manifest.load(packed),
        petseg.TrainConfig(**options),
        petseg.build_loader("webdataset", shards=packed, split="val", batch_size=4, size=(32, 32)),
    ]  # fmt: skip
    found.append(next(iter(found[-1])))
    for one in found:
        assert repr(one).startswith(f"{type(one).__name__}(") and len(repr(one)) < 400 and "\n" not in repr(one)
    found[-2].close()
    assert "mean IoU 0." in repr(result) and "42" in repr(found[4]) and "1 pet, 2 background" in repr(found[4])


NOTEBOOK = """
import petseg
result = petseg.train({options!r})
"""


@pytest.mark.slow
def test_a_notebook_shows_progress(options, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK.format(options=options))])
    nbclient.NotebookClient(book, timeout=120).execute()
    shown = str([output for cell in book.cells for output in cell.outputs])
    assert "epoch 1/2" in shown and "val mean IoU" in shown
