"""Runs side by side: figures, options, curves, and what keeps them from being compared."""

import json

import pytest

from petseg.errors import PetsegError
from petseg.report.compare import compare, write_comparison


def column(comparison, title):
    return next(column for column in comparison.columns if column.title == title)


@pytest.fixture
def two(make_run):
    return [
        make_run(name="slow", epochs=9, config={"width": 32, "lr": 0.002, "run_dir": "runs/slow"}),
        make_run(
            name="fast", config={"width": 8, "lr": 0.002, "run_dir": "runs/fast"},
            summary={"mean_iou": 0.7, "images_per_s": 900.4, "parameters": 480_000},
        ),
    ]  # fmt: skip


def test_figures_and_the_best_of_each(two):
    found = compare(two)
    assert found.names == ("slow", "fast")
    assert column(found, "mean IoU").values == ("0.758", "0.700") and column(found, "mean IoU").best == {0}
    assert column(found, "images/s").values == ("121", "900") and column(found, "images/s").best == {1}
    assert column(found, "epochs").values == ("9", "4") and not column(found, "epochs").best
    assert column(found, "foreground: pet or border").values == ("0.911", "0.911")
    assert not column(found, "pet").best  # they are equally good
    assert found.options == (("width", ("32", "8")),) and found.notes == ()
    assert [chart.title for chart in found.charts] == [
        "Validation mean IoU, by epoch", "Validation mean IoU, by minute", "Training loss", "Validation loss",
        "Validation IoU: pet", "Validation IoU: background", "Validation IoU: border",
    ]  # fmt: skip
    by_epoch, by_minute = found.charts[:2]
    assert [line.name for line in by_epoch.lines] == ["slow", "fast"]
    assert by_epoch.lines[0].at == tuple(range(1, 10)) and len(by_epoch.lines[1].at) == 4
    assert by_minute.lines[1].at == pytest.approx([14.2 * n / 60 for n in range(1, 5)])


def test_foregrounds_go_by_the_codes_of_the_summary(make_run):
    codes = {"codes": [0, 1, 2], "foreground_iou": {"{1}": 0.5}}
    found = compare([make_run(name=name, summary=codes) for name in "ab"])
    assert column(found, "foreground: background").values == ("0.500", "0.500")


def test_an_unfinished_run_is_compared_by_what_it_has(two):
    (two[1] / "summary.json").unlink()
    found = compare(two)
    assert column(found, "mean IoU").values == ("0.758", "–")
    assert column(found, "time").values == ("2 min 12 s", "56.8 s")
    assert "Not finished" in found.notes[0] and "fast" in found.notes[0]


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ({"data_digest": "e" * 64}, "different shards"),
        ({"split": "val"}, "different splits: test, val"),
        ({"iou": {"road": 0.5}}, "different classes"),
    ],
)
def test_what_cannot_be_compared_is_said(make_run, summary, says):
    found = compare([make_run(name="a"), make_run(name="b", summary=summary)])
    assert any(says in note for note in found.notes)


def test_names_tell_runs_apart(make_run, tmp_path):
    for folder in ("one", "two"):
        make_run(name="run").rename(tmp_path / folder)
        (tmp_path / folder / "x").mkdir()
        for file in list((tmp_path / folder).iterdir()):
            if file.is_file():
                file.rename(tmp_path / folder / "x" / file.name)
    runs = [tmp_path / "one" / "x", tmp_path / "two" / "x", tmp_path / "one" / "." / "x"]
    assert compare(runs).names == ("one/x", "two/x")


def test_bad_input_is_named(two, tmp_path):
    with pytest.raises(PetsegError, match="two runs or more"):
        compare([two[0], two[0]])
    with pytest.raises(PetsegError, match=r"no such run: .*nowhere"):
        compare([two[0], tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PetsegError, match="empty is not a run's folder"):
        compare([two[0], tmp_path / "empty"])
    (two[1] / "summary.json").write_text("{")
    with pytest.raises(PetsegError, match=r"summary\.json is not JSON"):
        compare(two)
    found = compare([two[0], _without_summary(two[1])])
    with pytest.raises(PetsegError, match=r"--out: .* is a folder"):
        write_comparison(found, tmp_path)
    with pytest.raises(PetsegError, match="could not be written"):
        write_comparison(found, tmp_path / "nowhere" / "compare.html")


def _without_summary(run):
    (run / "summary.json").unlink()
    return run


def test_a_run_with_nothing_but_a_summary(two):
    for run in two:
        (run / "metrics.jsonl").unlink()
        (run / "resolved.toml").unlink()
    found = compare(two)
    assert found.charts == () and found.options == () and column(found, "epochs").values == ("9", "4")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(chromium, make_run, tmp_path, width, dark):
    names = ["<script>remove()", "x" * 200, *(f"run {n}" for n in range(10))]
    runs = [make_run(name=name, config={"lr": 0.001 * n, "path": "/" * 200}) for n, name in enumerate(names)]
    (runs[1] / "report.html").write_text("a report")
    page = tmp_path / "compare.html"
    write_comparison(compare(runs), page)
    script = """(() => ({
      width: document.scrollingElement.clientWidth, scrolled: document.scrollingElement.scrollWidth,
      charts: [...document.querySelectorAll('.chart > div > svg')].filter(s => s.getBoundingClientRect().height > 60).length,
      links: [...document.querySelectorAll('thead a')].map(a => a.getAttribute('href')),
      text: document.body.innerText,
    }))()"""  # noqa: E501
    seen = chromium.look(page, width=width, script=script, dark=dark)
    found = seen.evaluated
    assert found["scrolled"] <= found["width"], "the page scrolls sideways"
    assert found["charts"] == 7 and "12 runs compared" in found["text"] and names[0] in found["text"]
    assert found["links"] == [f"{names[1]}/report.html"] * 2
    assert not seen.console and len([url for url in seen.requests if url.startswith("file:")]) == 1


def test_equal_input_gives_equal_bytes(two, tmp_path):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        write_comparison(compare(two), page)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert "runs/slow" not in pages[0].read_text()  # run_dir differs by nature


def test_a_run_whose_times_are_unknown_is_left_out_of_the_chart_by_minute(two):
    records = [json.loads(line) for line in (two[1] / "metrics.jsonl").read_text().splitlines()]
    del records[1]["seconds"]
    (two[1] / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    by_epoch, by_minute = compare(two).charts[:2]
    assert [line.name for line in by_epoch.lines] == ["slow", "fast"]
    assert [line.name for line in by_minute.lines] == ["slow"]
