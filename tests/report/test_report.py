"""The page: whole, self-contained, safe with hostile text, and patient with what is missing."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from petseg.classes import OXFORD, ClassTable
from petseg.errors import PetsegError
from petseg.report import write_report


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.pieces = [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.pieces.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path):
    return Page(path.read_text("utf-8"))


def test_a_whole_run(make_run, panels):
    run = make_run()
    path = write_report(run, panels(8), worst=panels(4, key="bad"))
    assert path == run / "report.html"
    page = read(path)
    # Of 1,000 true pet pixels 851 were found, and 49 taken for border.
    assert re.search(r"pet\s*85%\s*10%\s*4\.9%\s*background\s*6\.0%\s*91%\s*2\.7%", page.text)
    assert "Mean IoU 0.758 on 998 test images, foreground IoU 0.851 for pet and 0.911 for pet or border" in page.text
    assert "with the dali loader on cpu (2 threads) at 121 images/s" in page.text
    assert "Loader-bound: 31% of the time was waiting. Try next: --cache host." in page.text
    assert "pet or border" in page.text and "Baseline" in page.text and "0.195" in page.text
    assert len(page.of("img")) == 12 * 6
    assert [a["id"] for a in page.of("section")] == [
        "curves", "classes", "time", "gallery", "worst", "configuration",
    ]  # fmt: skip
    assert "batch_size" in page.text and "2.15.0" in page.text and "f" * 64 in page.text


def test_the_page_asks_for_nothing_from_elsewhere(make_run, panels):
    html = write_report(make_run(), panels(4)).read_text("utf-8")
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, name, address)
    assert not re.findall(r"url\((?!#)", html) and "@import" not in html
    assert "://" not in html
    assert page.of("script") == [{}] and not page.of("iframe"), "petseg's own, by whose hash alone scripts may run"
    (policy,) = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_ids_are_unique_and_anchors_lead_somewhere(make_run, panels):
    page = read(write_report(make_run(), panels(4)))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = [a["href"][1:] for tag, a in page.tags if a.get("href", "").startswith("#")]
    used += [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert used and set(used) <= set(ids)


def test_images_and_tables_speak_to_those_who_do_not_see(make_run, panels):
    page = read(write_report(make_run(), panels(3)))
    assert all(a.get("alt") for a in page.of("img"))
    assert all(a.get("aria-label") for _, a in page.tags if a.get("role") == "img")
    assert all(a.get("scope") in {"row", "col"} for a in page.of("th"))
    assert page.of("html") == [{"lang": "en"}]


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><script>alert(2)</script>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "' onmouseover='alert(3)",
)


def test_hostile_text_stays_text(make_run, panels):
    names = HOSTILE[:3]
    run = make_run(
        name="<b>run & 'co'",
        config={"shards": HOSTILE[1], HOSTILE[0]: HOSTILE[2], "nested": {HOSTILE[4]: [HOSTILE[0]]}},
        summary={
            "iou": dict(zip(names, (0.8, 0.9, 0.5), strict=True)),
            "foreground_iou": {HOSTILE[0]: 0.5},
            "split": HOSTILE[1],
            "loader": HOSTILE[0],
            "device": HOSTILE[2],
            "amp": HOSTILE[3],
            "verdict": {"kind": HOSTILE[0], "why": HOSTILE[1], "option": HOSTILE[4], "remark": HOSTILE[3]},
            "versions": {HOSTILE[0]: HOSTILE[1]},
            "data_digest": HOSTILE[2],
        },
    )
    hostile = [panel for text in HOSTILE for panel in panels(1, key=text)]
    page = read(write_report(run, [], worst=hostile))
    assert page.of("script") == [{}]
    assert len(page.of("img")) == len(HOSTILE) * 6
    assert len(page.of("style")) == len(page.of("title")) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    for text in (*HOSTILE, "<b>run & 'co'"):
        assert text in page.text
    assert next(a["alt"] for a in page.of("img")).startswith(HOSTILE[0])


def test_names_that_are_no_unicode_can_be_written(make_run, panels):
    path = write_report(make_run(), panels(1, key="broken\udcff"))
    assert "broken?" in path.read_text("utf-8")


def test_a_single_epoch(make_run, panels):
    run = make_run(epochs=1)
    page = read(write_report(run, panels(2)))
    assert "Over 1 epoch." in page.text
    assert len([a for a in page.of("figure") if "chart" in a.get("class", "")]) == 5


@pytest.mark.parametrize("val", [None, {}, "absent"])
def test_without_validation(make_run, val):
    run = make_run(epochs=3)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["val"] = val
        if val == "absent":
            del record["val"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = read(write_report(run, []))
    assert "no validation split" in page.text and "Validation IoU" not in page.text


def test_a_class_that_never_appears_is_a_dash(make_run, panels):
    nothing = {"pet": None, "background": 0.9, "border": math.nan}
    run = make_run(
        summary={"iou": nothing, "dice_per_class": nothing, "class_accuracy": nothing, "foreground_iou": {"{1}": None}}
    )
    page = read(write_report(run, panels(1)))
    assert "nan" not in page.text.lower() and "None" not in page.text
    assert page.text.count("–") >= 6
    assert "foreground IoU" not in page.text.split("Curves")[0]


def test_a_summary_with_nothing_in_it(tmp_path, panels):
    (tmp_path / "summary.json").write_text("{}")
    page = read(write_report(tmp_path, panels(2)))
    assert "No epoch was recorded." in page.text
    assert "class 2" in page.text
    assert "None" not in page.text and "nan" not in page.text.lower()


def test_values_of_the_wrong_kind_are_taken_for_unknown(make_run):
    keys = (
        "mean_iou iou dice time versions seconds samples epochs best_epoch parameters foreground_iou images_per_s "
        "baseline_mean_iou peak_memory_mb"
    )
    wrong = {key: ["no number"] for key in keys.split()}
    run = make_run(summary=wrong)
    (run / "metrics.jsonl").write_text('{"epoch": "x", "train_loss": [], "val": 3}\n\n{}\n')
    write_report(run, [])


def test_without_configuration_and_curves(make_run):
    run = make_run()
    (run / "metrics.jsonl").unlink()
    (run / "resolved.toml").unlink()
    page = read(write_report(run, []))
    assert "No epoch was recorded." in page.text
    assert "Gallery" not in page.text and "Worst cases" not in page.text


def test_worst_cases_stand_apart_in_the_order_given(make_run, panels):
    run = make_run()
    given = write_report(run, panels(3), worst=panels(2, key="bad"))
    assert "images of the test split with the lowest" in read(given).text
    gallery, _, worst = given.read_text("utf-8").partition('id="worst"')
    assert re.findall("<h3>(.*?)</h3>", worst)[:2] == ["bad", "bad"] and "<h3>drawn_" not in worst
    assert "<h3>drawn_2</h3>" in gallery and "bad" not in gallery
    assert 'id="worst"' not in write_report(run, panels(3)).read_text("utf-8")


def test_a_class_table_names_foregrounds_and_colours(make_run, panels):
    table = ClassTable(
        codes=(0, 7, 40), names=OXFORD.names, colours=((1, 2, 3), (4, 5, 6), (7, 8, 9)), foregrounds=((0, 40),)
    )
    run = make_run(summary={"foreground_iou": {"{0,40}": 0.5}})
    html = write_report(run, panels(1), classes=table).read_text("utf-8")
    assert "pet or border" in html and "background:rgb(7, 8, 9)" in html


@pytest.mark.parametrize("classes", [2, 20])
def test_other_numbers_of_classes(make_run, panels, classes):
    names = [f"class no. {i}" for i in range(classes)]
    run = make_run(summary={"iou": dict.fromkeys(names, 0.5), "foreground_iou": {}})
    page = read(write_report(run, panels(2, classes=classes)))
    assert len(page.of("img")) == 2 * (3 + min(classes, 3))
    assert all(name in page.text for name in names)


def test_equal_input_gives_equal_bytes(make_run, panels):
    run = make_run()
    first = write_report(run, panels(3)).read_bytes()
    assert write_report(run, panels(3)).read_bytes() == first


@pytest.mark.parametrize("rows", [12, 68])
def test_the_page_stays_small(make_run, panels, rows):
    assert write_report(make_run(), panels(rows, size=(128, 128))).stat().st_size < 3_000_000


def test_a_report_that_fails_leaves_the_old_one_whole(make_run, panels):
    run = make_run()
    old = write_report(run, panels(1)).read_bytes()
    before = sorted(run.iterdir())
    with pytest.raises(ValueError, match="5 classes"):
        write_report(run, panels(1, classes=5), classes=OXFORD)
    assert (run / "report.html").read_bytes() == old
    assert sorted(run.iterdir()) == before


def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing_half_done(make_run):
    run = make_run()
    (run / "report.html").mkdir()
    before = sorted(run.iterdir())
    with pytest.raises(PetsegError, match=r"report\.html could not be written"):
        write_report(run, [])
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("summary.json", None, "has no summary.json: finish the run first"),
        ("summary.json", b"{", "summary.json is not JSON"),
        ("summary.json", b"[]", "holds no summary but a list"),
        ("summary.json", b"\xff", "summary.json is not JSON"),
        ("metrics.jsonl", b'{"epoch": 1}\n{"epo', "metrics.jsonl, line 2, is not JSON"),
        ("metrics.jsonl", b"3\n", "line 1, is not an epoch's record"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl cannot be read"),
        ("resolved.toml", b"= 3", "resolved.toml is not TOML"),
    ],
)
def test_damaged_files_are_named(make_run, file, content, says):
    run = make_run()
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    with pytest.raises(PetsegError, match=re.escape(says)) as caught:
        write_report(run, [])
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_matplotlib_is_loaded_late_and_pyplot_never(make_run):
    code = (
        "import sys; from pathlib import Path; from petseg.report import write_report;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules, 'loaded early';"
        "write_report(Path(sys.argv[1]), []);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules, 'pyplot'"
    )
    subprocess.run([sys.executable, "-c", code, str(make_run())], check=True)


def test_many_classes_have_a_list_of_confused_pairs(make_run):
    names = [f"c{i}" for i in range(30)]
    matrix = [[1000 if i == k else 0 for k in range(30)] for i in range(30)]
    matrix[3][7], matrix[8][2] = 600, 200
    run = make_run(
        summary={"iou": dict.fromkeys(names, 0.5), "confusion": matrix, "mean_iou": 0.5, "samples": 3, "split": "test"}
    )
    page = write_report(run, []).read_text()
    table = page.partition('class="pairs"')[2].partition("</table>")[0]
    rows = re.findall(r"</span>(c\d+)</th><th.*?</span>(c\d+)</th><td>(.*?)</td><td>(.*?)</td>", table)
    assert rows == [("c3", "c7", "38%", "75%"), ("c8", "c2", "17%", "25%")]
    assert 'class="confusion"' not in page
