"""The train benchmark: the whole beside what its parts allow."""

import pytest
import torch

from benchmarks.harness import Row
from benchmarks.train import LOADERS, NOTEBOOK, STEP, _detail, _expected, contenders, ratios


def row(name, *samples, cell="packed at 128", recipe="seed", kind="petseg"):
    facts = {"cell": cell, "recipe": recipe, "size": 100, "chart": "Training", "kind": kind}
    return Row(name=name, unit="images/s", samples=list(samples), facts=facts)


def test_loader_and_step_share_a_cpu_and_run_beside_each_other_on_a_gpu(monkeypatch):
    loading, step = row("dali, loader only", 300.0, 100.0), row(STEP, 60.0, 100.0)
    assert _expected("dali", loading, step).samples == pytest.approx([50.0, 50.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = _expected("dali", loading, step)
    assert made.samples == [60.0, 100.0]
    assert (made.name, made.facts["kind"], made.unit) == ("ceiling: dali and step", "ceiling", "images/s")


def test_each_loader_is_measured_alone_and_whole_and_the_notebook_in_its_own_recipe():
    names = contenders("seed", LOADERS, peers=True)
    assert names[0] == STEP and names[-1] == NOTEBOOK
    assert {"cache host, loader only", "dali, end to end", "webdataset, end to end"} < set(names)
    assert NOTEBOOK not in contenders("seed", ["dali"], peers=False) + contenders("default", ["dali"], peers=True)


def test_ratios_compare_within_a_recipe_and_with_the_notebook_on_original_files():
    rows = [
        row("webdataset, end to end", 45.0, recipe="default"),
        row("ceiling: webdataset and step", 50.0, recipe="default", kind="ceiling"),
        row("webdataset, end to end", 80.0),
        row("ceiling: webdataset and step", 400.0, kind="ceiling"),
        row(NOTEBOOK, 10.0, kind="notebook"),
        row(NOTEBOOK, 8.0, cell="originals", kind="notebook"),
    ]
    assert ratios(rows) == {"webdataset": 0.9, "dali": None, "cache_host": None, "notebook": 10.0}


def test_waiting_and_memory_are_said():
    made = row("dali, end to end", 60.0, 61.0, 62.0)
    made.facts |= {"data_wait_pct": [1.0, 9.0, 2.0], "memory_mb": [800.0, 900.0, 1900.0]}
    assert _detail(made) == "2.0% waiting for data, 1,900 MB"
