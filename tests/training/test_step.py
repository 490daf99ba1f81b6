import copy

import pytest
import torch

from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.data.loaders.loader import Batch
from petseg.distributed import World
from petseg.model.networks import UNet
from petseg.model.transform import InputTransform
from petseg.training.step import TrainStep

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def batch(k=0, padded=False):
    g = torch.Generator().manual_seed(k)
    codes = (
        torch.randint(1, 4, (4, 4, 4), generator=g, dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    )
    images = (codes.unsqueeze(-1) * torch.tensor([60, 30, 80])).to(torch.uint8)
    return Batch(images, codes, torch.full((4,), -1) if padded else torch.arange(4) + 4 * k)


def make(amp="off", **options):
    torch.manual_seed(0)
    config = TrainConfig(width=8, depth=3, **{"dropout": 0.2, "lr": 1e-2, **options})
    network = UNet(width=8, depth=3, dropout=config.dropout)
    transform = InputTransform((0.5,) * 3, (0.25,) * 3)
    return TrainStep(network, config, OXFORD, transform, WORLD, amp=amp, compile=False, total_samples=160)


def run(step, ks):
    for k in ks:
        step(batch(k), torch.tensor(k // 4))


def test_the_loss_goes_down():
    step = make(augment=False, dropout=0.0)
    run(step, [0])
    first = step.mean_loss()
    run(step, [0] * 30)
    step.start_epoch()
    run(step, [0])
    assert step.mean_loss() < first / 2


def test_going_on_is_bit_equal():
    whole = make()
    run(whole, range(3))
    saved = copy.deepcopy(whole.state_dict())
    run(whole, range(3, 8))
    again = make()
    again.network.load_state_dict(saved["model"])
    again.load_state_dict(saved)
    run(again, range(3, 8))
    a, b = whole.state_dict(), again.state_dict()
    for part in ("model", "ema"):
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), name
    assert (a["samples"], a["loss_sum"]) == (b["samples"], b["loss_sum"])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_padding_only_is_finite_and_amp_runs(amp):
    step = make(amp)
    run(step, range(2))
    step(batch(padded=True), torch.tensor(0))
    assert torch.isfinite(torch.tensor(step.mean_loss()))
    assert all(torch.isfinite(p).all() for p in step.network.parameters())
