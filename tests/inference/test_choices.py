"""What `auto` means for mixed precision and the loader."""

import torch

from petseg.inference import choices

CPU = torch.device("cpu")


def test_amp_is_what_the_hardware_multiplies(monkeypatch):
    for there, expected in ((True, "bf16"), (False, "off")):
        monkeypatch.setattr(choices, "cpu_has_bf16", lambda there=there: there)
        assert choices.resolve_amp("auto", CPU) == expected
    for asked in ("bf16", "fp16", "off"):
        assert choices.resolve_amp(asked, CPU) == asked
    assert [choices.amp_dtype(a) for a in ("bf16", "fp16", "off")] == [torch.bfloat16, torch.float16, None]


def test_the_loader_is_the_faster_one():
    assert choices.resolve_loader("auto", CPU) == "webdataset"
    assert choices.resolve_loader("dali", CPU) == "dali"
    assert choices.resolve_loader("auto", torch.device("cuda", 0)) == "dali"
