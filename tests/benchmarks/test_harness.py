"""The instrument: contenders are measured in turn, judged by their pixels, and none is left out in silence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.data import Reference
from benchmarks.harness import Contender, ContenderError, Row, command_line, interleave, ratio, write_result

ROOT = Path(__file__).parents[2]
PEER = """
import sys; sys.path.insert(0, {peers!r})
import numpy as np
from _serve import arguments, endless, serve
args = arguments()
print("a library prints what it likes")
batch = np.zeros((4, args.size, args.size, 3), np.uint8), np.ones((4, args.size, args.size), np.uint8)
serve(endless(lambda: [batch]), "numpy")
"""


@pytest.fixture
def peer(tmp_path):
    """Starts a contender from the text of a script."""
    started = []

    def start(text: str) -> Contender:
        script = tmp_path / f"peer{len(started)}.py"
        script.write_text(text.format(peers=str(ROOT / "benchmarks" / "peers")))
        options = ["--data", str(tmp_path), "--size", "6", "--scratch", str(tmp_path)]
        started.append(Contender([sys.executable, str(script), *options]))
        return started[-1]

    yield start
    for contender in started:
        contender.close()


def test_a_contender_measures_when_told_and_shows_its_samples(peer, tmp_path):
    contender = peer(PEER)
    contender.wait_ready()
    assert contender.ready == {"ready": True, "versions": {"numpy": np.__version__}}
    answer = contender.ask(skip=2, timed=5)
    assert answer["samples"] == 20 and answer["seconds"] > 0
    assert contender.ask(check=str(tmp_path / "made.npz"), batches=3) == {"samples": 12}
    with np.load(tmp_path / "made.npz") as made:
        assert made["images"].shape == (12, 6, 6, 3) and made["codes"].max() == 1


def test_a_contender_that_cannot_run_is_named_with_its_reason(monkeypatch, peer):
    monkeypatch.setattr(harness, "END_SECONDS", 0.2)
    missing = peer("import no_such_library")
    with pytest.raises(ContenderError, match="No module named 'no_such_library'"):
        missing.wait_ready()
    silent = peer("import time; time.sleep(60)")
    with pytest.raises(ContenderError, match="did not answer within 1 s"):
        silent.wait_ready(1.0)
    dies = peer(PEER.replace("serve(", "import os; os._exit(3); serve("))
    with pytest.raises(ContenderError):
        dies.wait_ready()
    lingers = peer("import os, sys, time; print('too old', file=sys.stderr); os.close(1); time.sleep(60)")
    with pytest.raises(ContenderError, match="too old"):
        lingers.wait_ready()


def test_all_are_measured_once_before_any_is_measured_again():
    order, rows = [], {name: Row(name=name, unit="images/s") for name in "abc"}

    def measure(name):
        def once():
            order.append(name)
            if name == "b" and order.count("b") == 2:
                raise ContenderError("it went away")
            return float(len(order))

        return once

    ticks = []
    interleave({name: measure(name) for name in "abc"}, rows, 3, lambda: ticks.append(1))
    assert order == list("abcabcac") and len(ticks) == 9
    assert rows["b"].note == "failed: it went away" and rows["b"].samples == [2.0]
    assert (
        rows["a"].to_dict() | {"median": 4.0, "min": 1.0, "max": 7.0, "samples": [1.0, 4.0, 7.0]} == rows["a"].to_dict()
    )


def test_ratios_are_of_medians_and_say_nothing_where_nothing_is_known(tmp_path):
    rows = [
        Row(name="ours", unit="images/s", samples=[10.0, 30.0, 20.0]),
        Row(name="slow", unit="images/s", samples=[5.0]),
        Row(name="fast", unit="images/s", samples=[8.0, 10.0, 100.0]),
        Row(name="gone", unit="images/s", note="failed: no wheel"),
    ]
    assert ratio(rows, ["ours"], ["slow", "fast", "gone"]) == 2.0
    assert ratio(rows, ["ours"], ["gone"]) is None and ratio(rows, [], ["slow"]) is None
    line = write_result("loader", rows, {"libraries": 2.0}, {"cores": 2}, tmp_path)
    assert json.loads(line) == json.loads((tmp_path / "loader.json").read_text())
    assert json.loads(line)["rows"][3] == {
        "name": "gone", "unit": "images/s", "samples": [], "note": "failed: no wheel", "median": None, "min": None,
        "max": None,
    }  # fmt: skip


def test_work_is_judged_by_its_pixels():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)
    codes = rng.integers(1, 4, (12, 16, 16), dtype=np.uint8)
    reference = Reference(images, codes)
    order = rng.permutation(12)
    assert reference.judge(images[order], codes[order]) == ""
    near = np.clip(images.astype(int) + rng.integers(-2, 3, images.shape), 0, 255).astype(np.uint8)
    assert reference.judge(near[order], codes[order]) == ""
    assert "images differ by" in reference.judge(np.clip(images.astype(int) + 9, 0, 255).astype(np.uint8), codes)
    wrong = codes.copy()
    wrong[3, 5, 7] ^= 1
    assert reference.judge(images, wrong) == f"{100 / codes.size:.2g}% of mask pixels differ"
    assert "only 1 of 12 samples are distinct" in reference.judge(images[[3] * 12], codes[[3] * 12])
    assert "its batches are (8, 8, 3)" in reference.judge(images[:, :8, :8], codes[:, :8, :8])


def test_a_peer_without_its_environment_is_a_row_with_its_reason(tmp_path, monkeypatch):
    from benchmarks import loader

    peer = loader.Entry("a peer", "peer.py", own_environment=True)
    assert loader.missing_environment(loader.Entry("ours", "petseg_loader.py"), install=False) == ""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "peer.py").write_text(
        '# /// script\n# dependencies = ["no-such-package-of-anyone==9"]\n# ///\n'
    )
    monkeypatch.setattr(loader, "ROOT", tmp_path)
    assert loader.missing_environment(peer, install=False) == "not ready: uv sync --script benchmarks/peers/peer.py"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "made by uv, which is not installed" in loader.missing_environment(peer, install=True)


def test_every_peers_script_is_there():
    from benchmarks.loader import ENTRIES

    for entry in ENTRIES:
        text = (ROOT / "benchmarks" / "peers" / entry.script).read_text()
        assert text.startswith("# /// script") == entry.own_environment, entry.script


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "loader", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for flag in ("--quick", "--source", "--repeats", "--no-peers", "--out"):
        assert flag in done.stdout


def test_the_command_is_kept_without_where_its_result_went():
    assert command_line(["step", "--out", "/my/own", "--repeats", "2"]) == "python -m benchmarks step --repeats 2"
    assert command_line(["learn", "--source", "/my/own/pets"]) == "python -m benchmarks learn --source pets"
    assert command_line(["loader", "--quick"]) == "python -m benchmarks loader --quick"
