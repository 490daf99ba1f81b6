"""The documentation: it builds without a warning, its commands exist, and its layouts pack as it says."""

import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

import petseg
from petseg.cli.app import shard_app, train_app, umbrella

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAYOUTS = sorted((ROOT / "docs" / "data").glob("*.md"))
CLASSES = 'codes = [0, 1]\nnames = ["rest", "thing"]\n'


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_it_builds_without_a_warning(tmp_path):
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("docs", "petseg"):
        shutil.copytree(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
    assert all(f'id="petseg.{name}"' in page for name in petseg.__all__), "every public name is on the page"


def test_every_public_name_has_an_example():
    assert [f"::: petseg.{name}" in (ROOT / "docs" / "api.md").read_text() for name in petseg.__all__]
    for name in petseg.__all__:
        assert ">>> " in (getattr(petseg, name).__doc__ or ""), f"{name} has no example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_links_exist(page):
    text = page.read_text("utf-8")
    # torchrun's, uv's, sbatch's, Kubernetes' and AWS's
    known = {
        "--help", "--extra", "--no-install-package", "--minutes", "--max-restarts", "--nproc-per-node", "--array",
        "--install-completion", "--head", "--job-name", "--job-queue", "--job-definition", "--array-properties",
        "--container-overrides", "--depends-on", "--quick", "--size", "--group", "--source",
    }  # fmt: skip
    for app in (shard_app, train_app, umbrella):
        command = typer.main.get_command(app)
        for one in (command, *getattr(command, "commands", {}).values()):
            for parameter in one.params:
                known |= {*parameter.opts, *parameter.secondary_opts}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert used <= known, used - known
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, n) for page in LAYOUTS for n in range(len(blocks(page, "text")))],
    ids=lambda value: getattr(value, "name", value),
)
def test_layouts_pack_as_printed(page, number, tmp_path, environment):
    """Each tree of a page is made, and the command that follows it packs all that it shows."""
    tree = blocks(page, "text")[number].split()
    for text in tree:
        path = tmp_path / text
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            wanted = {"train": "a\nb\n", "val": "c\n"}
            path.write_text(wanted[path.stem])
        else:
            draw(path)
    (tmp_path / "classes.toml").write_text(CLASSES)
    after = page.read_text("utf-8").partition(blocks(page, "text")[number])[2]
    (command, *_) = re.findall(r"```sh\n(.*?)```", after, re.DOTALL)
    args = shlex.split(command, comments=True)
    done = subprocess.run(
        [Path(sys.executable).with_name(args[0]), *args[1:], "--workers", "1", "--allow-rejects"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = petseg.Manifest.load(tmp_path / args[2])
    images = {Path(text).stem for text in tree if is_image(text)}
    assert sum(split.samples for split in manifest.splits.values()) == len(images)
    assert not manifest.rejected


def is_image(text: str) -> bool:
    """Whether a path of a page's tree is an image, and no mask."""
    if text.endswith(".txt"):
        return False
    if re.search("mask|truth|SegmentationClass", text):
        return False
    return not text.endswith("cells/a.png")


def draw(path: Path) -> None:
    if is_image(str(path)):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    else:
        Image.fromarray(np.tile(np.array([0, 1], np.uint8), (24, 16))).save(path)


def test_the_python_of_the_readme_and_the_page_runs_as_printed(packed, tmp_path, monkeypatch):
    """On drawn pets, with smaller images and fewer epochs, a tracker that only remembers and a smaller network."""
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "oxford").symlink_to(packed)
    Image.new("RGB", (70, 50), (200, 120, 30)).save("photo.jpg")
    logged = []
    tracker = types.SimpleNamespace(log_metrics=lambda scores, step: logged.append((step, scores)))
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    readme, page = (blocks(path, "python") for path in (ROOT / "README.md", ROOT / "docs" / "python.md"))
    assert (len(readme), len(page)) == (1, 4)
    for block in (*readme, *page):
        code = block
        shutil.rmtree("runs", ignore_errors=True) if block is page[0] else None
        for printed, small in (
            ("batch_size=64, size=(128, 128)", "batch_size=8, size=(32, 32)"),
            ('"size": "128", "epochs": 10', '"size": "32", "epochs": 1, "width": 4'),
            ('"runs/deeplab"}', '"runs/deeplab", "size": "32", "epochs": 1, "batch_size": 8}'),
            ("deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)", "torch.nn.Conv2d(3, 3, 1)"),
        ):
            code = code.replace(printed, small)
        exec(code, {"torch": torch})
    assert [step for step, _ in logged] == [1]
