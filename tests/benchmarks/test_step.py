"""The step benchmark: every loop learns the same batch from the same weights, and says what it cannot do."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Contender, Row
from benchmarks.step import CEILINGS, COMPILED, NOTEBOOK, OURS, _share, entries, ratios

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def start():
    """Starts a loop of the step benchmark on two small images."""
    started = []

    def of(*options: str) -> Contender:
        command = [sys.executable, str(PEERS / "step.py"), "--size", "32", "--batch", "2", "--recipe", "seed", *options]
        started.append(Contender(command))
        return started[-1]

    yield of
    for contender in started:
        contender.close()


@pytest.mark.slow
def test_the_loops_do_the_same_work(start):
    loops = [
        start("--loop", "notebook"),
        start("--loop", "petseg"),
    ]
    answers = []
    for loop in loops:
        loop.wait_ready()
        answers.append(loop.ask(skip=1, timed=2))
    exact, ours = (answer["first_loss"] for answer in answers)
    assert exact == pytest.approx(ours, rel=0.03)
    assert {answer["samples"] for answer in answers} == {4}
    assert answers[0]["gflop_an_image"] == answers[1]["gflop_an_image"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are CUDA graphs here")
def test_what_needs_a_gpu_says_so(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    from _training import notebook_loop

    with pytest.raises(SystemExit, match="CUDA graphs need a GPU"):
        notebook_loop(torch.nn.Conv2d(3, 3, 1), ("channels_last", "compile", "graphs"))


def test_each_rung_stands_on_those_before_it():
    ladder = entries(peers=True, compiled=True)
    assert [each.name for each in ladder] == [
        NOTEBOOK, "+ channels_last", "+ bf16", "+ fused optimiser", "+ torch.compile", "+ CUDA graphs", OURS, COMPILED
    ]  # fmt: skip
    assert ladder[3].options[-1] == "channels_last,bf16,fused"
    assert [each.name for each in entries(peers=False, compiled=False)] == [OURS]


def test_products_become_images_a_second_and_shares():
    facts = {"cell": "the notebook's network"}
    of = [20.0]
    rows = [
        Row(name=NOTEBOOK, unit="images/s", samples=[5.0], facts={**facts, "kind": "notebook", "gflop_an_image": of}),
        Row(name=OURS, unit="images/s", samples=[15.0], facts={**facts, "kind": "petseg", "gflop_an_image": of}),
        Row(
            name=CEILINGS["bfloat16"], unit="images/s", samples=[4.0, 5.0, 3.0],
            facts={**facts, "kind": "ceiling", "gflop_a_product": [100.0, 100.0, 100.0]},
        ),
    ]  # fmt: skip
    _share(rows)
    assert rows[2].samples == [20.0, 25.0, 15.0]
    assert rows[1].facts["detail"] == "300 GFLOP/s, 75% of the best matrix product"
    assert ratios(rows) == {
        "notebook_seed": 3.0, "ladder_seed": None, "ceiling_seed": 0.75, "notebook_unet": None, "ladder_unet": None,
        "ceiling_unet": None,
    }  # fmt: skip
