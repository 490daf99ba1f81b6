"""The suite for one GPU, as far as a CPU goes."""

import pytest
from torch import nn

from benchmarks import gpu_suite
from benchmarks.gpu.roofline import roofline_seconds
from benchmarks.harness import Row
from petseg.model.networks import OwnNetwork, build_model
from petseg.training.auto import training_flops


def row(chart, name, *samples, kind="petseg", **facts):
    return Row(name=name, unit="images/s", samples=list(samples), facts={"chart": chart, "kind": kind, **facts})


@pytest.mark.slow
def test_a_section_is_a_process_whose_rows_come_back():
    said = []
    rows = gpu_suite.run_section("ceilings", 60, ["--quick"], said.append)
    assert [r.name for r in rows][:2] == ["bf16 matrix product", "copy on the device"]
    assert all(r.samples[0] > 0 for r in rows) and len(said) == len(rows) + 1
    assert all(0 < r.facts["share"] <= 1 for r in rows[2:]) and len(rows) > 6


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
        row("Decode policies, packed at 256", "petseg dali, fancy", 11000),
        row("Decode policies, packed at 256", "petseg dali, simple", 19000),
        row("Decode policies, packed at 256", "petseg nvImageCodec, simple", 18000),
        row("Decode policies, packed at 256", "DALI's own reader, simple", 20000, kind="library"),
        row("Steps at 256 px: width 64", "width 64", 3000, gflop_an_image=42.0),
        row("Steps at 256 px: width 64", "width 64, compiled", 6250, gflop_an_image=42.0),
    ]
    found = gpu_suite.ratios(rows)
    assert found["mfu_seed"] == pytest.approx(15000 * 20 / 750e3)
    assert found["loader_256"] == 12000 and found["loader_256_over_dali"] == 0.5
    assert found["end_to_end_dali"] == pytest.approx(0.9)
    assert found["end_to_end_webdataset"] is None and found["over_notebook"] is None
    assert found["dali_over_reader_simple"] == 0.95 and found["webdataset_over_reader_simple"] == 0.9
    assert found["dali_over_reader_fancy"] is None and found["mfu_default_256"] is None
    assert found["mfu_width_64_256"] == pytest.approx(0.35)


@pytest.mark.slow
def test_a_part_has_a_file_of_its_own(tmp_path):
    gpu_suite.main(quick=True, only="ceilings", out=tmp_path)
    gpu_suite.main(quick=True, only="packed 128", out=tmp_path, minutes=0.0)
    names = sorted(path.name.split("-")[-1] for path in tmp_path.iterdir())
    assert names == ["ceilings.json"]  # nothing was measured in no time


def test_a_roofline_is_what_its_layers_take():
    network = OwnNetwork(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2)))
    pixels, flops, bandwidth = 32 * 48, 1e9, 1e6
    products = 3 * max(2 * pixels * 3 * 8 * 9 / flops, 2 * pixels * 11 / bandwidth)
    moved = (8 * 2 * pixels * 8 + 2 * 2 * (pixels * 8 + pixels * 2)) / bandwidth
    assert roofline_seconds(network, 32, 48, flops=flops, bandwidth=bandwidth) == pytest.approx(products + moved)
    network = build_model("unet", classes=3)
    bound = training_flops(network, 64, 64) / 1e12
    assert roofline_seconds(network, 64, 64, flops=1e12, bandwidth=1e18) == pytest.approx(bound, rel=1e-3)
    assert roofline_seconds(network, 64, 64, flops=1e12, bandwidth=1e9) > 2 * bound
