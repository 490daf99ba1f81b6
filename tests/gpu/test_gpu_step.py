"""The training step on a GPU: one graph, no host sync, mixed precision, memory."""

import copy

import pytest
import torch
from torch import nn

from petseg.model.networks import OwnNetwork
from petseg.model.transform import to_float

pytestmark = pytest.mark.gpu

AMPS = ["off", "bf16", "fp16"]


def weights(step):
    parts = {"": step.network, "ema.": step.ema.network}
    return {prefix + name: value.clone() for prefix, part in parts.items() for name, value in part.state_dict().items()}


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("capture", [True, False])
def test_the_step_never_waits_for_the_device(make_step, batch, cuda, amp, capture):
    step = make_step(amp, capture=capture)
    batches, epoch = [batch(k) for k in range(6)], torch.tensor(1, device=cuda)
    step(batches[0], epoch)  # the optimiser's state is made in the first one
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in batches[1:]:
            step(each, epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.steps == 6 and 0 < step.mean_loss() < 3


@pytest.mark.parametrize("amp", AMPS)
def test_a_graph_learns_what_single_kernels_learn(repeatable, make_step, learn, amp):
    captured, plain = make_step(amp, capture=True), make_step(amp, capture=False)
    assert captured.notes == [] and captured._captured is not None and plain._captured is None
    # The warm-up is undone: both begin with the same weights.
    for (name, a), b in zip(weights(captured).items(), weights(plain).values(), strict=True):
        assert torch.equal(a, b), name
    ours, theirs = learn(captured, range(12)), learn(plain, range(12))
    tolerance = 1e-4 if amp == "off" else 2e-2
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert ours[-1] < ours[0]
    for (name, a), b in zip(weights(captured).items(), weights(plain).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=1e-3 if amp == "off" else 3e-2, msg=name)
    assert captured.skipped_steps == plain.skipped_steps


def test_going_on_from_a_state_is_what_it_would_have_been(repeatable, make_step, learn):
    whole = make_step()
    learn(whole, range(4))
    saved = copy.deepcopy([part.state_dict() for part in (whole.network, whole.ema.network, whole)])
    expected = learn(whole, range(4, 10))
    for capture in (True, False):
        again = make_step(capture=capture)
        for part, state in zip((again.network, again.ema.network, again), saved, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        assert learn(again, range(4, 10)) == pytest.approx(expected, rel=1e-4)
    # Also back in the same one, as the trial steps of --max-minutes are undone.
    for part, state in zip((whole.network, whole.ema.network, whole), saved, strict=True):
        part.load_state_dict(state)
    assert learn(whole, range(4, 10)) == pytest.approx(expected, rel=1e-4)


def test_dropout_of_a_graph_is_drawn_anew_each_step(make_step, batch, learn):
    step = make_step(lr=0.0, augment=False, dropout=0.5)
    losses = learn(step, [0] * 4)
    assert len(set(losses)) == 4


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns_as_fp32_does(make_step, learn, amp):
    full, mixed = (
        learn(make_step(kind, dropout=0.0, augment=False), [k % 8 for k in range(80)]) for kind in ("off", amp)
    )
    late = slice(60, None)
    assert sum(mixed[late]) == pytest.approx(sum(full[late]), rel=0.1)
    assert sum(full[late]) / 20 < full[0] / 2


def test_compiled_kernels_in_a_graph_learn_the_same(make_step, learn):
    compiled, plain = make_step("bf16", compile=True), make_step("bf16")
    assert compiled.notes == [] and compiled.compiled
    assert learn(compiled, range(8)) == pytest.approx(learn(plain, range(8)), rel=3e-2)


class Curious(nn.Module):
    """A network that looks at its own values, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        return y * 2 if y.mean().item() > 0 else y


def test_a_network_that_cannot_be_captured_still_learns(make_step, learn):
    step = make_step(network=OwnNetwork(Curious()))
    assert "cannot be a CUDA graph" in step.notes[0] and step._captured is None
    losses = learn(step, [0] * 30)
    assert losses[-1] < losses[0]
    # Nor does it spoil what comes after it in the same process.
    assert make_step(dropout=0.5).notes == [] and make_step(dropout=0.5, capture=False).notes == []
    learn(make_step(dropout=0.5, capture=False), [0] * 2)


class Copying(Curious):
    """A network that a graph refuses, and that nothing warns of."""

    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not in here")
        return self.conv(x)


def test_a_capture_that_fails_half_way_leaves_dropout_usable(make_step, learn):
    step = make_step(network=OwnNetwork(nn.Sequential(nn.Dropout(0.5), Copying())))
    assert "not in here" in step.notes[0]
    assert learn(step, [0] * 30)[-1] < 2
    learn(make_step(dropout=0.5, capture=False), [0] * 2)


def test_images_are_channels_last_without_a_copy(batch):
    images = batch().images
    seen = images.permute(0, 3, 1, 2)
    assert seen.is_contiguous(memory_format=torch.channels_last) and seen.data_ptr() == images.data_ptr()
    assert to_float(images, channels_last=True).is_contiguous(memory_format=torch.channels_last)


def test_memory_does_not_grow_over_2000_steps(make_step, batch, cuda):
    step = make_step("bf16")
    batches, epoch = [batch(k) for k in range(8)], torch.tensor(0, device=cuda)

    def run(n):
        for k in range(n):
            step(batches[k % 8], epoch)
        step.mean_loss()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before = run(50)
    assert run(2000) == before


@pytest.mark.parametrize("amp", AMPS)
def test_a_graph_of_a_part_learns_what_single_kernels_learn(repeatable, make_step, batch, cuda, amp):
    """Under --accumulate each of a step's batches replays one graph, whose gradients add up."""
    steps = [make_step(amp, capture=capture, accumulate=3) for capture in (True, False)]
    assert steps[0].notes == [] and steps[0]._captured is not None
    for _ in range(4):
        for step in steps:
            step([batch(k) for k in range(3)], torch.tensor(0, device=cuda))
    assert steps[0].mean_loss() == pytest.approx(steps[1].mean_loss(), rel=1e-4 if amp == "off" else 2e-2)
