"""Where the time goes, and the words for it."""

import time

import pytest
import torch

from petseg.training.telemetry import Clock, peak_memory_mb, verdict

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_clock_adds_up_phases():
    clock = Clock()
    assert clock.data_wait_pct() == 0
    for _ in range(2):
        with clock.measure("data"):
            time.sleep(0.02)
    with clock.measure("compute"):
        time.sleep(0.04)
    with pytest.raises(ValueError), clock.measure("other"):
        raise ValueError
    assert 0.04 <= clock.seconds["data"] < 0.2 and clock.seconds["other"] > 0
    assert 20 < clock.data_wait_pct() < 80


@pytest.mark.parametrize(
    ("wait", "loader", "cache", "device", "amp", "word", "flag"),
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
def test_the_verdict_is_a_word_and_one_flag(wait, loader, cache, device, amp, word, flag):
    sentence, advice = verdict(wait, loader=loader, cache=cache, device=device, amp=amp)
    assert sentence.startswith(f"{word}: ") and f"{wait}" in sentence and advice.startswith(flag)
    assert advice.split()[:2] != ["--loader", loader]


def test_memory_is_counted_in_mb():
    before = peak_memory_mb(CPU)
    block = bytearray(300_000_000)
    assert peak_memory_mb(CPU) >= max(before, 300)
    del block
