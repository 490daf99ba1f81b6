"""What `import petseg` gives, and what it costs."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import petseg

ROOT = Path(__file__).parents[1]


def test_the_public_names_are_these_and_no_more():
    names = [
        "Batch", "ClassTable", "Fit", "FitResult", "Loader", "Manifest", "OrderedSamples", "PetsegError",
        "RemoteShards", "Reporter", "Segmenter", "TrainConfig", "UNet", "build_loader", "evaluate", "export", "load",
        "predict", "train", "write_report",
    ]  # fmt: skip
    assert petseg.__all__ == names
    assert [getattr(petseg, name).__name__ for name in names] == names
    with pytest.raises(AttributeError, match="no attribute 'DataLoader'"):
        petseg.DataLoader  # noqa: B018
    assert set(petseg.__all__) <= set(dir(petseg))


def test_commands_that_need_no_torch_do_not_load_it():
    code = (
        "import sys, petseg, petseg.cli.app\n"
        "assert petseg.cli.app.run(petseg.cli.app.umbrella, 'petseg', ['--help']) == 0\n"
        "sys.exit(int('torch' in sys.modules or 'nvidia.dali' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


def test_versions_are_pinned_and_dali_is_linuxs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (dali,) = (d for d in project["project"]["dependencies"] if d.startswith("nvidia-dali"))
    assert dali.endswith("; sys_platform == 'linux'") and "cuda120" in dali
    pinned = {c.partition("<")[0] for c in project["tool"]["uv"]["constraint-dependencies"]}
    assert {"torch", "webdataset", "nvidia-dali-cuda120"} <= pinned


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()


def test_a_shell_completes_commands():
    environment = {**os.environ, "_PETSEG_COMPLETE": "complete_bash", "COMP_WORDS": "petseg ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("petseg")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["verify"]
