import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from petseg.classes import OXFORD
from petseg.config import TrainConfig
from petseg.data.loaders.loader import Batch
from petseg.device import World
from petseg.inference.evaluate import evaluate
from petseg.model.networks import UNet
from petseg.model.transform import InputTransform
from petseg.training.step import TrainStep

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def batch(k=0, padded=False):
    g = torch.Generator().manual_seed(k)
    codes = (
        torch.randint(1, 4, (4, 4, 4), generator=g, dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    )
    images = (codes.unsqueeze(-1) * torch.tensor([60, 30, 80])).to(torch.uint8)
    return Batch(images, codes, torch.full((4,), -1) if padded else torch.arange(4) + 4 * k, OXFORD)


def make(amp="off", *, compile=False, note=lambda _: None, **options):
    torch.manual_seed(0)
    settled = {"amp": amp, "compile": "on" if compile else "off", "optimizer": "muon"}
    config = TrainConfig(width=8, depth=3, **{"dropout": 0.2, "lr": 1e-2, **settled, **options})
    network = UNet(width=8, depth=3, dropout=config.dropout, norm=config.norm)
    transform = InputTransform((0.5,) * 3, (0.25,) * 3)
    return TrainStep(network, config, OXFORD, transform, WORLD, total_samples=160, note=note)


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


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_training_and_validation_draw_the_same_loss(dice):
    step = make(augment=False, dropout=0.0, lr=0.0, weight_decay=0.0, ema=0.0, dice=dice)
    step.network.eval()  # BatchNorm as validation has it
    run(step, range(3))

    class Loader(list):
        plan, skipped = SimpleNamespace(total=12), ()

    batches = Loader(batch(k) for k in range(3))
    found = evaluate(step.network, batches, OXFORD, step._transform, WORLD, objective=step.objective).metrics
    assert step.mean_loss() == pytest.approx(found["loss"], rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"augment": False}, {"loss": "focal"}])
def test_several_batches_learn_what_one_large_one_does(options):
    """Also where each has another share of void pixels; without Dice and BatchNorm, which know their batch alone."""

    def void(made, share):
        codes = torch.where(
            torch.rand(made.codes.shape, generator=torch.Generator().manual_seed(9)) < share, 0, made.codes
        )
        return dataclasses.replace(made, codes=codes.to(torch.uint8))

    parts = [void(batch(k), share) for k, share in enumerate((0.0, 0.9, 0.5, 0.2))]
    whole = Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("images", "codes", "indices")), OXFORD)
    given = {
        "norm": "group", "dropout": 0.0, "dice": 0.0, "ema": 0.0, "optimizer": "adam", "schedule": "constant",
        "lr": 0.1, **options,
    }  # fmt: skip
    # Plain gradients: an optimiser's first step is of one length whatever they are.
    steps = [make(accumulate=n, **given) for n in (1, 4)]
    for step in steps:
        step.optimizer = torch.optim.SGD([{"params": [*step.network.parameters()], "lr_scale": 1.0}])
    steps[0](whole, torch.tensor(0))
    steps[1](parts, torch.tensor(0))
    assert steps[0].samples == steps[1].samples == 16 and steps[1].steps == 1
    assert steps[1].mean_loss() == pytest.approx(steps[0].mean_loss(), rel=1e-5)
    for one, other in zip(steps[0].network.parameters(), steps[1].network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # The mean of the batches' own losses would be something else.
    alone = make(accumulate=1, **given)
    losses = []
    for part in parts:
        alone.start_epoch()
        alone._learn(part.images, part.codes, part.indices, torch.tensor(0))
        losses.append(alone.mean_loss())
    assert abs(sum(losses) / 4 - steps[0].mean_loss()) > 1e-4


def test_of_dice_several_batches_learn_the_mean():
    objective = make(accumulate=2).objective
    outputs, masks = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    sums = [objective(outputs[k : k + 2], masks[k : k + 2]) for k in (0, 2)]
    parts = [objective.part(each, torch.tensor(256.0), torch.tensor(0.5)) for each in sums]
    torch.testing.assert_close(sum(parts), (objective.value(sums[0]) + objective.value(sums[1])) / 2)


def test_going_on_is_bit_equal():
    whole = make()
    run(whole, range(3))
    saved = copy.deepcopy([part.state_dict() for part in (whole.network, whole.ema.network, whole)])
    run(whole, range(3, 8))
    again = make()
    torch.rand(100)  # dropout depends on no random state that something else could move on
    for part, state in zip((again.network, again.ema.network, again), saved, strict=True):
        part.load_state_dict(state)
    run(again, range(3, 8))
    for mine, theirs in ((whole.network, again.network), (whole.ema.network, again.ema.network)):
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert whole.mean_loss() == again.mean_loss() and whole.samples == again.samples


@pytest.mark.slow
def test_a_network_whose_kernels_do_not_compile_still_learns(monkeypatch):
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    monkeypatch.setattr(config.cpp, "cxx", ("/bin/false",))
    notes = []
    with fresh_cache():
        step = make(compile=True, note=notes.append)
        run(step, range(3))
    torch._dynamo.reset()  # or nothing is compiled in this process any more
    assert len(notes) == 1 and "torch.compile fails for this network (" in notes[0] and not step.compiled
    plain = make()
    run(plain, range(3))
    assert step.mean_loss() == plain.mean_loss()


def test_dropout_is_drawn_from_seed_step_and_rank():
    def drawn(rank, steps):
        step = make()
        step.world = dataclasses.replace(WORLD, rank=rank)
        step.steps = steps
        step._seed_dropout()
        return torch.rand(4).tolist()

    assert drawn(0, 3) == drawn(0, 3)
    assert len({tuple(drawn(rank, steps)) for rank in (0, 1) for steps in (3, 4)}) == 4


def test_skipped_steps_of_fp16_are_counted():
    step = make("fp16")
    run(step, range(2))
    before = step.skipped_steps
    step.scaler.update(1e30)  # gradients overflow
    run(step, range(2))
    assert step.skipped_steps == before + 2
    assert make("bf16").skipped_steps == 0


def test_weights_that_are_no_numbers_are_noticed():
    step = make()
    run(step, range(1))
    assert step.weights_are_finite()
    with torch.no_grad():
        step.network.head[-1].bias[0] = float("nan")
    assert not step.weights_are_finite()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_padding_only_is_finite_and_amp_runs(amp):
    step = make(amp)
    run(step, range(2))
    step(batch(padded=True), torch.tensor(0))
    assert torch.isfinite(torch.tensor(step.mean_loss()))
    assert all(torch.isfinite(p).all() for p in step.network.parameters())
