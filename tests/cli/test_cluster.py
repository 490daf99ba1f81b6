"""Packing on several machines from the command line."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from petseg import Manifest
from tests.cli.test_app import refuses
from tests.data.shards.test_pack import content

SMALL = ["--split", "official", "--short-side", 32, "--samples-per-shard", 4]

SBATCH = """#!/bin/bash
# Runs what it is given at once, as sbatch would: arrays by their #SBATCH line, scripts from standard input.
for arg; do case $arg in --*) ;; *) script=$arg ;; esac; done
if [ -n "${script:-}" ]; then
  last=$(sed -n 's/^#SBATCH --array=1-//p' "$script")
  for task in $(seq "$last"); do SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash "$script" >&2; done
  echo 17
else
  [[ "$*" == *--dependency=afterok:17* ]] && bash
fi
"""


def test_parts_then_the_end(oxford, petseg):
    assert petseg("shard", oxford, "whole", *SMALL, "--workers", 1)[0] == 0
    code, out, err = petseg("shard", oxford, "shards", *SMALL, "--workers", 1, "--part", "1/2")
    assert (code, err) == (0, "") and "Part 1/2 is packed: 4 shards of 7 with" in out and "--finish" in out
    code, out, _ = petseg("shard", oxford, "shards", "--status")
    assert code == 0 and "3 of 7 shards are missing: " in out
    code, out, _ = petseg("shard", oxford, "shards", "--status", "--part", "1/2")
    assert code == 0 and "All 4 shards of part 1/2 are packed" in out
    refuses(petseg("shard", oxford, "shards", *SMALL, "--finish"), "3 of 7 shards are missing")
    assert petseg("shard", oxford, "shards", *SMALL, "--workers", 1, "--part", "2/2")[0] == 0
    assert "--finish writes the manifest" in petseg("shard", oxford, "shards", "--status")[1]
    code, out, err = petseg("shard", oxford, "shards", *SMALL, "--finish")
    assert (code, err) == (0, "") and "Shards are in shards" in out
    assert "holds a finished pack" in petseg("shard", oxford, "shards", "--status")[1]
    assert content(Path("shards")) == content(Path("whole"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--part", "3"], "--part 3: give such as 3/64"),
        (["--part", "0/3"], "counted from 1, so give 1/3 to 3/3"),
        (["--part", "1/3", "--finish"], "--part and --finish: give one of them"),
        (["--finish", "--status"], "--finish and --status: give one"),
        (["--print-slurm", "-1"], "give the number of parts"),
        (["--status"], "holds no pack that was begun"),
    ],
)
def test_bad_input(petseg, args, words):
    refuses(petseg("shard", "synthetic:4", "out", *args), words)


def test_the_script_for_slurm_packs(oxford, petseg, tmp_path, environment):
    assert petseg("shard", oxford, "whole", *SMALL, "--workers", 1)[0] == 0
    code, script, err = petseg("shard", oxford, "with a blank", *SMALL, "--print-slurm", 3)
    assert (code, err) == (0, "") and "'with a blank'" in script and "print-slurm" not in script
    Path("pack.sh").write_text(script)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "sbatch").chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        ["bash", "pack.sh"], env={**environment, "PATH": path}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert content(Path("with a blank")) == content(Path("whole"))
    assert Manifest.load(Path("with a blank")).split("test").samples == 8
