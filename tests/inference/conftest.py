"""Runs that are quickly made, and images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petseg.classes import OXFORD, ClassTable
from petseg.config import TrainConfig
from petseg.inference.segment import Segmenter
from petseg.inference.trained import load_trained
from petseg.model.build import network_for
from petseg.run.checkpoint import save_checkpoint

CPU = torch.device("cpu")


def make_run(folder: Path, classes: ClassTable = OXFORD, decode_policy: str = "fancy-upsampling", **options) -> Path:
    config = TrainConfig(**{"size": "32x48", "width": 4, "depth": 3, "amp": "off", **options})
    torch.manual_seed(3)
    weights = network_for(config, classes).state_dict()
    save_checkpoint(
        folder / "best.pt",
        {
            "config": config.to_dict(), "classes": classes.to_dict(), "mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3],
            "decode_policy": decode_policy, "data_digest": "", "model": weights, "ema": None, "epoch": 1,
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def saved_run():
    """Makes a run folder with an untrained network."""
    return make_run


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    return Segmenter(load_trained(make_run(tmp_path_factory.mktemp("run")), CPU), CPU)


@pytest.fixture(scope="session")
def image():
    """Makes smooth blobs of colour: u8[height, width, 3]."""

    def make(height=60, width=90, seed=0) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture(scope="session")
def save():
    """Writes pixels to a path, whose suffix says how."""

    def write(path: Path, pixels: np.ndarray, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write
