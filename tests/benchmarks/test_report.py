"""Result files as a page and a table: best first, failures last with their reason, one conclusion a chart."""

import json

import pytest

from benchmarks.harness import Row, write_result
from benchmarks.report import VIEW, ceilings, charts, conclusion, markdown, read_results, write_pages
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
    with pytest.raises(PetsegError, match=r"step\.json is not a result of a benchmark"):
        write_pages(results)


def test_scores_are_drawn_against_seconds():
    def at(line, kind, seconds, score):
        made = row(f"{line}, {seconds} s", kind, score, chart="Learning")
        made.unit = "mean IoU"
        made.facts |= {"seconds": seconds, "line": line}
        return made.to_dict()

    rows = [at("petseg", "petseg", 60.0, 0.6), at("petseg", "petseg", 240.0, 0.71), at("loop", "library", 200.0, 0.5)]
    [chart] = charts(rows)
    assert chart.conclusion == (
        "petseg reaches 0.710 in 240 s of training; the best of the others (loop) 0.500 in 200 s."
    )  # fmt: skip
    assert chart.axis == "seconds" and [text for _, text in chart.ticks] == ["50", "100", "150", "200"]
    assert [line.name for line in chart.lines] == ["petseg", "loop"]


def test_lines_against_threads_keep_their_names_apart():
    def at(line, kind, threads, speed):
        made = row(f"{line}, {threads}", kind, speed, chart="Against threads")
        made.facts |= {"threads": threads, "line": line}
        return made.to_dict()

    rows = [
        at("petseg dali", "petseg", 1, 50.0), at("petseg dali", "petseg", 4, 200.0),
        at("webdataset", "library", 1, 60.0), at("webdataset", "library", 4, 199.0),
    ]  # fmt: skip
    (chart,) = charts(rows)
    assert chart.conclusion == "petseg dali makes 200 images/s with 4 threads, 4.00 times what it makes with one."
    first, second = chart.lines
    assert (first.name, second.name) == ("petseg dali", "webdataset")
    assert second.label_y - first.label_y >= 20
    assert first.points[0][0] * 4 == pytest.approx(first.points[1][0], abs=0.4)
    assert all(0 <= x < VIEW[0] and 0 <= y <= VIEW[1] for line in chart.lines for x, y in line.points)
    assert [text for _, text in chart.ticks] == ["1", "4"]


def test_parts_add_up_to_a_sample_and_the_largest_is_named():
    rows = [row("decode", "petseg", 120.0, unit="µs"), row("read", "petseg", 30.0, unit="µs")]
    for each in rows:
        each.facts["parts_of"] = "the engine"
    rows.append(row("OpenCV: decode", "ceiling", 90.0, unit="µs"))
    text = conclusion([each.to_dict() for each in rows])
    assert text == 'A sample takes the engine 150 µs; the largest part of it is "decode", 80%.'


def test_the_share_of_the_ceiling_is_shown_for_every_stage_that_has_one(results):
    write_result(
        "scale",
        [
            row("petseg", "petseg", 0.4, unit="s", chart="Ordering"),
            row("NumPy", "ceiling", 0.1, unit="s", chart="Ordering"),
            row("petseg", "petseg", 0.0, unit="MB", chart="Memory"),
            row("NumPy", "ceiling", 0.0, unit="MB", chart="Memory"),
        ],
        {}, ENV, results,
    )  # fmt: skip
    chart = ceilings(read_results(results))
    assert [(bar.name, bar.figure) for bar in chart.bars] == [(ROWS[0].facts["chart"], "50%"), ("Ordering", "25%")]
    assert chart.conclusion == "Furthest from its ceiling is ordering: 25%."
    assert "Share of the ceiling" in write_pages(results)[0].read_text()
