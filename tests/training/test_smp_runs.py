"""Runs of networks from segmentation_models.pytorch: whole, stopped, and what is made of them."""

import os
import signal

import numpy as np
import pytest
import torch

import petseg
from petseg.config import TrainConfig
from petseg.data.shards.manifest import Manifest
from petseg.errors import PetsegError
from petseg.inference.export import export
from petseg.model.pretrained import IMAGENET
from petseg.model.smp import SmpNetwork
from petseg.run.checkpoint import load_checkpoint
from petseg.training.recipe import build_optimizer, set_rate

# Feature pyramids bring dropout of their own along.
SMALL = {"arch": "smp:FPN:tu-test_efficientnet", "dropout": 0.0}


@pytest.fixture
def weights(tmp_path):
    """A file of weights that are unlike any fresh ones."""
    torch.manual_seed(99)
    path = tmp_path / "encoder.pth"
    torch.save(SmpNetwork(SMALL["arch"], classes=3).encoder.state_dict(), path)
    return str(path)


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(train, weights):
    whole, listener = train("whole", encoder_weights=weights, **SMALL)
    assert any("matched by name" in note for note in listener.notes)

    def interrupt(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    train("stopped", encoder_weights=weights, on_step=interrupt, **SMALL)
    resumed, again = train("stopped", resume=True)
    assert again.steps == 3 and not any("begins with" in note for note in again.notes)
    a, b = (load_checkpoint(result.run.last) for result in (whole, resumed))
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    assert a["mean"] == b["mean"] == pytest.approx(IMAGENET[0])
    with pytest.raises(PetsegError, match=r"--encoder-weights imagenet: .* was begun with .*encoder.pth"):
        train("stopped", resume=True, encoder_weights="imagenet")
    other, _ = train("other", epochs=1, init_from=str(whole.run.path), **SMALL)
    assert load_checkpoint(other.run.last)["mean"] == pytest.approx(IMAGENET[0]), (
        "what the weights expect goes with them"
    )
    assert other.run.path.name == "other"


@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_a_pretrained_encoder_learns_more_slowly(train, weights, scale):
    given = {"ema": 0.0, "weight_decay": 0.0, "schedule": "constant", "optimizer": "adam", "epochs": 1, "lr": 1e-3}
    result, _ = train(encoder_weights=weights, encoder_lr_scale=scale, **{**given, **SMALL})
    before, after = torch.load(weights), load_checkpoint(result.run.last)["model"]
    moved = [(after[f"module.encoder.{k}"] - v).abs().max().item() for k, v in before.items() if k.endswith("weight")]
    # Adam moves no weight by much more than the rate in a step; of those there are five.
    assert (max(moved) == 0.0) if scale == 0 else (0.5e-3 * scale < max(moved) < 6e-3 * scale)


def test_every_parameter_is_in_one_group():
    network = SmpNetwork(SMALL["arch"], classes=3)
    for optimizer, count in (("muon", 6), ("adamw", 4), ("adam", 2)):
        config = TrainConfig(arch=SMALL["arch"], encoder_weights="imagenet", encoder_lr_scale=0.5, optimizer=optimizer)
        built = build_optimizer(network, config, torch.device("cpu"))
        set_rate(built, 0.5)
        assert [group["lr"] for group in built.param_groups] == [0.5] * (count // 2) + [0.25] * (count // 2)
        assert sorted(id(p) for g in built.param_groups for p in g["params"]) == sorted(map(id, network.parameters()))
    fresh = build_optimizer(network, TrainConfig(arch=SMALL["arch"], optimizer="muon"), torch.device("cpu"))
    assert len(fresh.param_groups) == 3, "an encoder that starts from nothing learns at the full rate"


@pytest.mark.parametrize(
    ("fmt", "suffix"),
    [pytest.param("torch-export", "pt2", marks=pytest.mark.slow), pytest.param("onnx", "onnx", marks=pytest.mark.slow)],
)
def test_it_predicts_and_is_exported(train, tmp_path, fmt, suffix):
    result, listener = train(arch="smp:Unet:tu-test_efficientnet", size="40x64", epochs=1)
    assert "--size 40x64 is padded to 64x64 for this network: 32x64 or 64x64 waste nothing." in listener.notes
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert petseg.load(result.run.path, "cpu").predict(photo).shape == (50, 70)
    report = export(result.run.path, fmt, tmp_path / f"model.{suffix}", dynamic_size=True)
    assert report.multiple == 32 and report.argmax_agreement > 0.99
    assert report.metadata["arch"] == "smp:Unet:tu-test_efficientnet"


@pytest.mark.slow
def test_compiled_in_either_layout(train):
    plain, _ = train("plain", epochs=1, **SMALL)
    compiled, _ = train("compiled", epochs=1, compile="on", channels_last=False, **SMALL)
    assert compiled.summary["compile"] == "on"
    assert abs(compiled.run.records()[-1]["train_loss"] - plain.run.records()[-1]["train_loss"]) < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "smp:Unet"}, r"--arch: unknown network 'smp:Unet'; choose unet, seed or smp:ARCH:ENCODER"),
        ({"arch": "smp:Unet:../x"}, "--arch: unknown network"),
        ({"encoder_weights": "imagenet"}, "--encoder-weights: --arch unet has no encoder to pretrain"),
        ({**SMALL, "encoder_weights": "a", "init_from": "b"}, "--encoder-weights: --init-from gives"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(PetsegError, match=words):
        TrainConfig(**options)


def test_statistics_are_the_shards_own_without_pretrained_weights(train, packed):
    result, _ = train(epochs=1, **SMALL)
    assert load_checkpoint(result.run.last)["mean"] == list(Manifest.load(packed).mean)


def test_what_starts_from_trained_weights_gets_adamw_and_a_slow_encoder(train, weights):
    first, _ = train("first", encoder_weights=weights, **SMALL)
    again, _ = train("again", init_from=str(first.run.path), **{**SMALL, "epochs": 1})
    assert first.run.resolved()["optimizer"] == again.run.resolved()["optimizer"] == "adamw"
    groups = load_checkpoint(again.run.last)["step"]["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {1.0, 0.3}
    assert load_checkpoint(again.run.last)["mean"] == load_checkpoint(first.run.last)["mean"]


def test_a_frozen_encoder_keeps_its_weights_and_its_statistics(train, weights):
    with pytest.raises(PetsegError, match="--freeze: freezing needs trained weights"):
        train(freeze="encoder", **SMALL)
    result, _ = train(encoder_weights=weights, freeze="encoder", **{**SMALL, "epochs": 1})
    before, after = torch.load(weights), load_checkpoint(result.run.last)["model"]
    moved = [name for name, value in before.items() if not torch.equal(after[f"module.encoder.{name}"], value)]
    assert moved == [], "its BatchNorm counts nothing either"
    assert any("segmentation_head" in name for name in after)
    train(resume=True, epochs=2)
