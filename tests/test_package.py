"""What `import petseg` gives, and what it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

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


def test_the_readmes_options_exist():
    import re

    from petseg.cli.app import shard_app, train_app, umbrella

    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / "README.md").read_text("utf-8")))
    # torchrun's, uv's and the torture's
    known = {"--help", "--nproc-per-node", "--max-restarts", "--extra", "--no-install-package", "--minutes"}
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


def test_the_page_of_public_names_is_what_the_docstrings_say():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_api.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "API.md").read_text("utf-8")
    for name in petseg.__all__:
        entry = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert "\n>>> " in entry, f"{name} has no example"


def test_the_readmes_python_runs_as_printed(packed, tmp_path, monkeypatch):
    """On drawn pets, with smaller pictures and fewer epochs, a tracker that only remembers and a smaller network."""
    import re
    import types

    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "oxford").symlink_to(packed)
    Image.new("RGB", (70, 50), (200, 120, 30)).save("photo.jpg")
    logged = []
    tracker = types.SimpleNamespace(log_metrics=lambda scores, step: logged.append((step, scores)))
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        code = block
        for printed, small in (
            ("batch_size=64, size=(128, 128)", "batch_size=8, size=(32, 32)"),
            ('"size": "128", "epochs": 10', '"size": "32", "epochs": 1, "width": 4'),
            ('"runs/deeplab"}', '"runs/deeplab", "size": "32", "epochs": 1, "batch_size": 8}'),
            ("deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)", "torch.nn.Conv2d(3, 3, 1)"),
        ):
            code = code.replace(printed, small)
        exec(code, {"torch": torch})
    assert [step for step, _ in logged] == [1]
