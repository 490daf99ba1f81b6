"""What a run is told at its end."""

import pytest
import torch

from petseg.config import TrainConfig
from petseg.training.verdict import verdict, waiting_pct

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GOOD = {"mean_iou": 0.7, "baseline_mean_iou": 0.2}


def records(*waits, ious=(), losses=()):
    """Epochs of a second each."""
    return [
        {
            "samples": 100, "images_per_s": 100.0, "data_wait_pct": float(wait),
            "train_loss": losses[i] if losses else 1.0, "val": {"mean_iou": ious[i]} if ious else None,
        }
        for i, wait in enumerate(waits)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wait", "loader", "cache", "device", "amp", "kind", "option"),
    [
        (50, "webdataset", "none", CPU, "off", "loader-bound", "--cache host"),
        (50, "webdataset", "host", GPU, "bf16", "loader-bound", "--loader dali"),
        (50, "dali", "host", GPU, "bf16", "loader-bound", "--loader webdataset"),
        (50, "webdataset", "host", CPU, "off", "loader-bound", "--prefetch-batches 8"),
        (10, "dali", "none", GPU, "bf16", "balanced", "--cache host"),
        (10, "dali", "device", GPU, "bf16", "balanced", "--prefetch-batches 4"),
        (1, "dali", "none", GPU, "off", "compute-bound", "--amp auto"),
        (1, "dali", "none", GPU, "bf16", "compute-bound", "--batch-size"),
        (1, "dali", "none", CPU, "off", "compute-bound", "--device cuda"),
    ],
)
def test_a_run_that_learned_is_told_what_held_it_up(wait, loader, cache, device, amp, kind, option):
    found = verdict(TrainConfig(loader=loader, cache=cache, amp=amp), device, records(wait, wait), GOOD)
    assert (found.kind, found.option) == (kind, option) and f"{wait}%" in found.why
    assert found.sentence().startswith(f"{kind.capitalize()}: ") and found.sentence().endswith(".")


def test_waiting_for_the_first_epoch_is_no_reason_for_advice():
    """Processes start and files are cold: half of the first epoch, and nothing after it."""
    found = verdict(TrainConfig(cache="host", loader="webdataset"), CPU, records(51, 2, 2), GOOD)
    assert found.kind == "compute-bound" and "2%" in found.why
    assert waiting_pct(records(60, 0, 0)) == (20.0, 0.0)
    assert waiting_pct(records(60)) == (60.0, 60.0)
    assert waiting_pct([]) == (0.0, 0.0)


def test_a_run_that_is_no_better_than_one_class_everywhere_is_told_so():
    bad = {"mean_iou": 0.045, "baseline_mean_iou": 0.043}
    flat = verdict(TrainConfig(lr=6e-3, batch_size=8), CPU, records(*[10] * 9, ious=[0.04] * 9), bad)
    assert flat.kind == "learned nothing" and flat.option == "--lr 0.002" and "0.045" in flat.why
    rising = [0.01, 0.01, 0.01, 0.02, 0.02, 0.03, 0.035, 0.04, 0.045]
    found = verdict(TrainConfig(), CPU, records(*[10] * 9, ious=rising), bad)
    assert (found.kind, found.option) == ("still rising", "--epochs 27")
    found = verdict(TrainConfig(max_minutes=2.0), CPU, records(*[10] * 9, losses=[9, 8, 7, 6, 5, 4, 3, 2, 1]), bad)
    assert (found.kind, found.option) == ("still rising", "--max-minutes 6")
    assert verdict(TrainConfig(), CPU, records(10), {**bad, "mean_iou": None}).kind == "balanced"
    found = verdict(TrainConfig(), CPU, records(10, ious=[0.04]), bad)
    assert found.kind == "learned nothing yet" and found.option == "--epochs 3" and "6 steps" in found.why
