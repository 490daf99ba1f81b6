"""What `import petseg` gives, and what it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import petseg

ROOT = Path(__file__).parents[1]


def test_the_public_names_are_these_and_no_more():
    from petseg.data.loaders.build import build_loader
    from petseg.data.loaders.loader import Batch
    from petseg.data.loaders.samples import OrderedSamples
    from petseg.data.shards.manifest import Manifest
    from petseg.model.networks import UNet

    assert petseg.__all__ == ["Batch", "Manifest", "OrderedSamples", "UNet", "build_loader"]
    found = [getattr(petseg, name) for name in petseg.__all__]
    assert found == [Batch, Manifest, OrderedSamples, UNet, build_loader]
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


def test_the_readmes_options_exist():
    import re

    from petseg.cli.app import shard_app, train_app, umbrella

    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / "README.md").read_text("utf-8")))
    known = {"--help", "--nproc-per-node", "--extra", "--no-install-package"}  # torchrun's and uv's
    import typer.main

    for app in (shard_app, train_app, umbrella):
        command = typer.main.get_command(app)
        for one in (command, *getattr(command, "commands", {}).values()):
            for parameter in one.params:
                known |= {*parameter.opts, *parameter.secondary_opts}
    assert flags <= known, flags - known


def test_versions_are_pinned_and_dali_is_linuxs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (dali,) = (d for d in project["project"]["dependencies"] if d.startswith("nvidia-dali"))
    assert dali.endswith("; sys_platform == 'linux'") and "cuda120" in dali
    pinned = {c.partition("<")[0] for c in project["tool"]["uv"]["constraint-dependencies"]}
    assert {"torch", "webdataset", "nvidia-dali-cuda120"} <= pinned
