"""The mixed precision that `auto` means on a device."""

from __future__ import annotations

from typing import Literal

import torch

from petseg.system import read_text

Amp = Literal["auto", "bf16", "fp16", "off"]


def amp_dtype(amp: str) -> torch.dtype | None:
    """The autocast dtype of a resolved `--amp`, None for `off`."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def resolve_amp(choice: Amp, device: torch.device) -> Literal["bf16", "fp16", "off"]:
    """`auto` means bf16 where the hardware multiplies in it, fp16 on older GPUs, off on older CPUs."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if cpu_has_bf16() else "off"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's BF16); emulation is slower than fp32."""
    flags = read_text("/proc/cpuinfo").split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
