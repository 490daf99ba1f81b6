"""Everything here needs a CUDA device; what it runs on is the first one."""

import pytest
import torch

from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.data.loaders.loader import Batch
from petseg.device import World
from petseg.model.build import network_for
from petseg.model.transform import InputTransform
from petseg.training.step import TrainStep


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def repeatable():
    """Kernels that give the same bits each time, so that what is compared differs in nothing else."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


@pytest.fixture
def batch(cuda):
    """Makes the k-th batch: blocks of three classes, each of its own colour."""

    def make(k=0, n=8, side=48):
        g = torch.Generator().manual_seed(k)
        blocks = torch.randint(1, 4, (n, side // 8, side // 8), generator=g, dtype=torch.uint8)
        codes = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
        images = (codes.unsqueeze(-1) * torch.tensor([60, 30, 80])).to(torch.uint8)
        return Batch(images.to(cuda), codes.to(cuda), (torch.arange(n) + n * k).to(cuda), OXFORD)

    return make


@pytest.fixture
def make_step(cuda):
    """Makes a step of a small network; `capture` records it as the trainer does."""

    def make(amp="off", *, capture=True, compile=False, network=None, **options):
        torch.manual_seed(0)
        config = TrainConfig(
            **{
                "width": 8,
                "depth": 3,
                "dropout": 0.2,
                "lr": 1e-2,
                "schedule": "constant",
                "size": "48",
                "cuda_graphs": capture,
                "amp": amp,
                "compile": "on" if compile else "off",
                "optimizer": "muon",
                **options,
            }
        )
        own = network or network_for(config, OXFORD)
        transform = InputTransform((0.5,) * 3, (0.25,) * 3).to(cuda)
        world = World(rank=0, size=1, device=cuda)
        notes: list[str] = []
        step = TrainStep(
            own.to(cuda), config, OXFORD, transform, world, total_samples=10_000,
            note=notes.append,
        )  # fmt: skip
        step.capture()
        step.notes = notes
        return step

    return make


@pytest.fixture
def learn(batch, cuda):
    """Takes steps; returns the loss of each."""

    def run(step, ks):
        losses = []
        for k in ks:
            step.start_epoch()
            step(batch(k), torch.tensor(k // 4, device=cuda))
            losses.append(step.mean_loss())
        return losses

    return run
