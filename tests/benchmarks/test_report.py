"""Result files as a page and a table: best first, failures last with their reason, one conclusion a chart."""

import json

import pytest

from benchmarks.harness import Row, write_result
from benchmarks.report import charts, conclusion, markdown, read_results, write_pages
from petseg.errors import PetsegError

ENV = {"command": "python -m benchmarks loader", "cpu": "a <CPU>", "cores": 2, "versions": {"torch": "2.11"}}


def row(name, kind, *samples, unit="images/s", note="", chart="Loading, packed at 128, 100 px out"):
    return Row(name=name, unit=unit, samples=list(samples), note=note, facts={"kind": kind, "chart": chart})


ROWS = [
    row("petseg webdataset", "petseg", 190.0, 200.0, 230.0),
    row("petseg dali", "petseg", 150.0),
    row("webdataset", "library", 100.0),
    row("FFCV jpg", "library", note="failed: no wheel for <this> Python"),
    row("ceiling: OpenCV", "ceiling", 400.0),
]


@pytest.fixture
def results(tmp_path):
    write_result("loader", ROWS, {"libraries": 2.0, "ffcv_jpg": None}, ENV, tmp_path)
    return tmp_path


def test_a_chart_is_best_first_and_leaves_nobody_out():
    (chart,) = charts([each.to_dict() for each in ROWS])
    assert [bar.name for bar in chart.bars] == [
        "ceiling: OpenCV", "petseg webdataset", "petseg dali", "webdataset", "FFCV jpg"
    ]  # fmt: skip
    ours = chart.bars[1]
    assert (ours.length, ours.low, ours.high) == (50.0, 47.5, 57.5)
    assert chart.bars[-1].figure == "" and "no wheel" in chart.bars[-1].note
    assert chart.conclusion == (
        "petseg webdataset makes 200 images/s, 2.00 times the fastest other (webdataset), 50% of the ceiling (OpenCV)."
    )


def test_where_seconds_are_counted_fewer_are_better():
    rows = [row("petseg", "petseg", 2.0, unit="s"), row("a script", "library", 5.0, unit="s")]
    made = [each.to_dict() for each in rows]
    assert [bar.name for bar in charts(made)[0].bars] == ["petseg", "a script"]
    assert conclusion(made) == "petseg takes 2 s, 2.50 times as fast as the fastest other (a script)."


def test_the_page_and_the_table_say_the_same_and_need_nothing_else(results):
    page, table = (path.read_text() for path in write_pages(results))
    for text in (page, table):
        for words in ("petseg webdataset", "200", "2.00", "no wheel", "python -m benchmarks loader"):
            assert words in text
    assert "a &lt;CPU&gt;" in page and "&lt;this&gt;" in page and "not measured here: ffcv_jpg" in page
    assert "http:" not in page and "https:" not in page and "<script" not in page
    assert markdown(read_results(results)) == table


def test_what_is_no_result_is_named(results, tmp_path):
    with pytest.raises(PetsegError, match="holds no result: measure first"):
        write_pages(tmp_path / "nowhere")
    (results / "step.json").write_text(json.dumps({"bench": "step"}))
    with pytest.raises(PetsegError, match=r"step\.json is no result of a benchmark"):
        write_pages(results)
