"""The same bytes from every instruction set; and a pack begun with others is not continued."""

import json
import os
import subprocess
import sys

import pytest

from petseg.data.shards.begun import begun
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import PLAN_NAME, output_of
from petseg.data.shards.pack import pack
from petseg.data.shards.pool import run_jobs
from petseg.data.shards.probe import Machine, probe
from petseg.data.shards.work import ShardWork
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


class Stopped(Exception):
    pass


def begin(out, options):
    def stop(_):
        raise Stopped

    with pytest.raises(Stopped):
        pack(SyntheticSource(12, 0), out, options, workers=1, progress=stop)


@pytest.mark.parametrize("what", ["probe", "pillow"])
def test_a_half_pack_of_another_machine_is_not_gone_on_with(tmp_path, what):
    options, out = PackOptions(split="random", short_side=32, samples_per_shard=4), tmp_path / "out"
    begin(out, options)
    plan = json.loads((out / PLAN_NAME).read_text())
    machine = plan["machine"]
    if what == "probe":
        machine["probe"] = "0" * 64
    else:
        machine["versions"]["pillow"] = "0.1"
    (out / PLAN_NAME).write_text(json.dumps(plan))
    words = {"probe": "so its CPU differs", "pillow": r"begun with pillow 0\.1, .* install pillow==0\.1 here"}
    with pytest.raises(PetsegError, match=words[what]):
        pack(SyntheticSource(12, 0), out, options, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_would_write_other_bytes_refuses(tmp_path, workers):
    """The machine that plans and the one that packs are not one on a cluster."""
    other = Machine(versions=Machine.this().versions, probe="0" * 64)
    source, out = SyntheticSource(12, 0), output_of(tmp_path / "out")
    options = PackOptions(split="random", short_side=32, samples_per_shard=4)
    with begun(source, source.listing(), options, out, workers=1, alone=True) as found:
        work = ShardWork(source=source, out=out, options=options, machine=other)
        with pytest.raises(PetsegError, match="so its CPU differs"):
            list(run_jobs(work, found.jobs(), workers=workers, progress=lambda _: None))
    assert not list((tmp_path / "out").glob("*.tar"))
