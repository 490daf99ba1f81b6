"""The suite for one GPU, as far as a CPU goes."""

import pytest

from benchmarks import gpu_suite
from benchmarks.harness import Row


def row(chart, name, *samples, kind="petseg", **facts):
    return Row(name=name, unit="images/s", samples=list(samples), facts={"chart": chart, "kind": kind, **facts})


def test_a_section_is_a_process_whose_rows_come_back():
    said = []
    rows = gpu_suite.run_section("ceilings", 60, ["--quick"], said.append)
    assert [r.name for r in rows] == ["bf16 matrix product", "copy on the device"]
    assert all(r.samples[0] > 0 for r in rows) and len(said) == 3


def test_a_section_that_takes_too_long_is_ended():
    said = []
    assert gpu_suite.run_section("ceilings", 0.2, ["--quick"], said.append) == []
    assert "ended by -9" in said[-1]


def test_ratios_are_of_the_rows_that_they_name():
    end = "End to end, default, packed at 128"
    rows = [
        row(f"{gpu_suite.CEILING}bf16 matrix product", "bf16 matrix product", 700, 800, 750, kind="ceiling"),
        row("Steps of the notebook's network, 100 px, by batch", "petseg, batch 128", 6000, gflop_an_image=20.0),
        row("Steps of the notebook's network, 100 px, by batch", "petseg, compiled", 15000, gflop_an_image=20.0),
        row("Loading, packed at 256, 128 px out", "petseg dali, 8 threads", 12000),
        row("Loading, packed at 256, 128 px out", "DALI's own reader", 24000, kind="library"),
        row("Loading, packed at 128, 128 px out", "petseg dali, 8 threads", 99000),
        row(end, "dali, loader only", 9000),
        row(end, "dali, end to end", 8100),
        row(end, "step only", 20000),
        row(end, "webdataset, loader only", kind="petseg"),
    ]
    found = gpu_suite.ratios(rows)
    assert found["mfu_seed"] == pytest.approx(15000 * 20 / 750e3)
    assert found["loader_256"] == 12000 and found["loader_256_over_dali"] == 0.5
    assert found["end_to_end_dali"] == pytest.approx(0.9)
    assert found["end_to_end_webdataset"] is None and found["over_notebook"] is None
