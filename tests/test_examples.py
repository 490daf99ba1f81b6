"""The scripts in examples/ run, on drawn pets."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ("--size", "32", "--epochs", "1")


def run(*args: str | Path, cwd: Path, environment: dict[str, str], **more: str) -> str:
    done = subprocess.run(
        [str(arg) for arg in args], cwd=cwd, env={**environment, **more}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


slow = pytest.mark.slow  # CI asks for them


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}: uv sync --group examples")


def test_all_are_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"({path.name})" in text


@slow
def test_a_loop_under_torchrun_resumes(packed, tmp_path, environment):
    torchrun = Path(sys.executable).with_name("torchrun")

    def train(ranks: int, epochs: int) -> str:
        return run(
            torchrun, "--standalone", "--nproc-per-node", str(ranks), EXAMPLES / "torchrun_loop.py", "--shards", packed,
            "--size", "32", "--batch-size", "4", "--epochs", str(epochs), cwd=tmp_path, environment=environment,
        )  # fmt: skip

    assert re.fullmatch(r"epoch 1  loss \d\.\d+\n", train(2, 1))
    assert re.fullmatch(r"epoch 2  loss \d\.\d+\n", train(1, 2)), "with another number of ranks"


@slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_lightning(packed, tmp_path, environment, devices):
    needs("lightning")
    said = run(
        sys.executable, EXAMPLES / "with_lightning.py", "--shards", packed, *SMALL, "--batch-size", "4",
        "--devices", devices, cwd=tmp_path, environment=environment,
    )  # fmt: skip
    assert re.search(r"val loss \d\.\d+", said)


@slow
def test_accelerate(packed, tmp_path, environment):
    needs("accelerate")
    said = run(
        Path(sys.executable).with_name("accelerate"), "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", EXAMPLES / "with_accelerate.py", "--shards", packed,
        *SMALL, "--batch-size", "4", cwd=tmp_path, environment=environment,
    )  # fmt: skip
    assert re.search(r"epoch 1  loss \d\.\d+", said)


@slow
def test_mlflow(packed, tmp_path, environment):
    needs("mlflow")
    run(
        sys.executable, EXAMPLES / "track_mlflow.py", "--shards", packed, *SMALL, cwd=tmp_path, environment=environment,
        MLFLOW_TRACKING_URI=f"file:{tmp_path}/mlruns", MLFLOW_ALLOW_FILE_STORE="true",
    )  # fmt: skip
    files = {path.name for path in (tmp_path / "mlruns").rglob("*")}
    assert {"val_mean_iou", "test_mean_iou", "batch_size", "report.html"} <= files


@slow
def test_wandb_offline(packed, tmp_path, environment):
    needs("wandb")
    run(
        sys.executable, EXAMPLES / "track_wandb.py", "--shards", packed, *SMALL, cwd=tmp_path, environment=environment,
        WANDB_MODE="offline", WANDB_DIR=str(tmp_path),
    )  # fmt: skip
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data = log.read_bytes()
    assert b"test_mean_iou" in data and b"train_loss" in data


@slow
def test_the_notebook(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    book = nbformat.read(EXAMPLES / "notebook.ipynb", 4)
    for cell in book.cells:
        cell.source = cell.source.replace("synthetic:400", "synthetic:60").replace('"epochs": 2', '"epochs": 1')
    nbclient.NotebookClient(book, timeout=120).execute()
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()


@slow
def test_training_on_slurm(packed, tmp_path, environment):
    """With stand-ins for srun and scontrol: one node, two ranks; a second job resumes the run and finds it finished."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", 'exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "17", "GPUS_PER_NODE": "2",
        "PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
    }  # fmt: skip
    script = (EXAMPLES / "train.sbatch").read_text().replace("-m petseg train", f"-m petseg train {' '.join(SMALL)}")
    for _ in range(2):
        run(
            "bash",
            "-c",
            script,
            "train.sbatch",
            packed,
            tmp_path / "run",
            cwd=tmp_path,
            environment=environment,
            **slurm,
        )
    assert (tmp_path / "run" / "summary.json").exists()
