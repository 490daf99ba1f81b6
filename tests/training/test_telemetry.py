"""Where the time goes."""

import time

import pytest
import torch

from petseg.training.telemetry import Clock, peak_memory_mb

CPU = torch.device("cpu")


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


def test_memory_is_counted_in_mb():
    before = peak_memory_mb(CPU)
    block = bytearray(300_000_000)
    assert peak_memory_mb(CPU) >= max(before, 300)
    del block
