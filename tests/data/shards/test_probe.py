"""The same bytes from every instruction set; and a pack begun with others is not gone on with."""

import os
import subprocess
import sys

import pytest

from petseg.data.shards import pack as packing
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.probe import probe
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError

WITHOUT = {
    "OPENCV_CPU_DISABLE": "AVX2,AVX,FP16,FMA3,AVX512F,AVX512_SKX,SSE4_2,SSE4_1,SSSE3,POPCNT",
    "ATEN_CPU_CAPABILITY": "default",
    "JSIMD_FORCENONE": "1",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
}
"""What libraries are told to do without the CPU's extensions by."""


def probe_of(**environment: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", "from petseg.data.shards.probe import probe; print(probe())"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_bytes_are_the_same_on_every_instruction_set():
    assert probe_of(**WITHOUT) == probe()


def test_the_formula_packs_what_the_library_packs(monkeypatch):
    expected = probe()
    monkeypatch.setattr("petseg.data.decode.resize.cykooz_resizer", None)
    assert probe.__wrapped__() == expected


def test_a_half_pack_of_another_kernel_is_not_gone_on_with(tmp_path, monkeypatch):
    options = PackOptions(split="random", short_side=32, samples_per_shard=4)
    monkeypatch.setattr(packing, "probe", lambda: "0" * 64)
    real = packing.write_atomic

    def stop_after_the_plan(path, data):
        real(path, data)
        if path.name == packing.PLAN_NAME:
            raise KeyboardInterrupt

    monkeypatch.setattr(packing, "write_atomic", stop_after_the_plan)
    with pytest.raises(KeyboardInterrupt):
        pack(SyntheticSource(12, 0), tmp_path / "out", options, workers=1)
    monkeypatch.undo()
    with pytest.raises(PetsegError, match="unfinished pack"):
        pack(SyntheticSource(12, 0), tmp_path / "out", options, workers=1)
