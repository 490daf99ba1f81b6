"""What `auto` means for mixed precision and the loader."""

import sys

import torch

from petseg import device as choices
from petseg.data.loaders.build import dali_is_installed, resolve_loader

CPU = torch.device("cpu")


def test_amp_is_what_the_hardware_multiplies(monkeypatch):
    for there, expected in ((True, "bf16"), (False, "off")):
        monkeypatch.setattr(choices, "cpu_has_bf16", lambda there=there: there)
        assert choices.resolve_amp("auto", CPU) == expected
    for asked in ("bf16", "fp16", "off"):
        assert choices.resolve_amp(asked, CPU) == asked
    assert [choices.amp_dtype(a) for a in ("bf16", "fp16", "off")] == [torch.bfloat16, torch.float16, None]


def test_the_loader_is_the_faster_one():
    assert resolve_loader("auto", CPU) == "webdataset"
    assert resolve_loader("dali", CPU) == "dali"
    assert resolve_loader("auto", torch.device("cuda", 0)) == "dali"


def test_dali_is_looked_for_where_no_package_of_its_publisher_is(monkeypatch):
    assert dali_is_installed()
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert not dali_is_installed()
    assert resolve_loader("auto", torch.device("cuda", 0)) == "webdataset"
