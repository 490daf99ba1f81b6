"""Charts: what is drawn, what is left out, and that they are fit to stand inside a page."""

import math
import re
from xml.etree import ElementTree

import pytest

from petseg.report.curves import MAX_CLASS_LINES, charts
from petseg.report.looks import class_looks

NAMES = ("pet", "background", "border")
LOOKS = class_looks(None, NAMES, 3)


def record(epoch, **change):
    iou = dict(zip(NAMES, (0.5, 0.7, 0.2), strict=True))
    val = {"loss": 0.9 / epoch, "mean_iou": 0.47, "iou": iou}
    return {
        "epoch": epoch, "train_loss": 1.0 / epoch, "lr": 1e-3, "val": val, "images_per_s": 120.5, "data_wait_pct": 3.2,
    } | change  # fmt: skip


def draw(records, **options):
    return charts(records, options.pop("looks", LOOKS), **({"best": None, "baseline": None} | options))


def test_all_charts_of_a_whole_run():
    drawn = draw([record(i) for i in range(1, 31)], best=28, baseline=0.2)
    assert [chart.title for chart in drawn] == [
        "Loss", "Validation IoU", "Throughput", "Waiting for data", "Learning rate",
    ]  # fmt: skip
    assert [line.name for line in drawn[0].lines] == ["train", "validation"]
    assert [(line.name, line.last) for line in drawn[1].lines] == [
        ("mean", "0.470"), ("pet", "0.500"), ("background", "0.700"), ("border", "0.200"),
    ]  # fmt: skip


def test_every_chart_is_sound_xml_with_ids_of_its_own_and_no_fixed_colours():
    drawn = draw([record(i) for i in range(1, 4)], best=2, baseline=0.2)
    ids = []
    for chart in drawn:
        root = ElementTree.fromstring(chart.svg)
        found = [element.get("id") for element in root.iter() if element.get("id")]
        ids += found
        for used in re.findall(r'(?:url\(|href=")#([^)"]+)', chart.svg):
            assert used in found
        assert root.get("viewBox") and not root.get("width")
        assert "://" not in chart.svg
        assert "<style" not in chart.svg
        assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(url\(#|href="#|id=")[^)"]*', "", chart.svg))
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("epochs", [1, 2, 26])
def test_lines_are_drawn_however_few_epochs(epochs):
    for chart in draw([record(i + 1) for i in range(epochs)], best=1):
        root = ElementTree.fromstring(chart.svg)
        drawn = [e for e in root.iter("g") if re.fullmatch(r"c\d-line2d_\d+", e.get("id") or "")]
        assert len(drawn) >= len(chart.lines)
        # A single epoch has no line to see: it has to be a dot.
        assert epochs > 1 or len(list(root.iter("use"))) >= len(chart.lines)
        assert "nan" not in chart.svg.lower()


def test_without_validation_only_training_is_drawn():
    drawn = draw([record(1, val=None), {"epoch": 2, "train_loss": 0.5}])
    assert [chart.title for chart in drawn] == ["Loss", "Throughput", "Waiting for data", "Learning rate"]
    assert [line.name for line in drawn[0].lines] == ["train"]


def test_a_class_that_never_occurs_has_no_line_and_gaps_stay_gaps():
    gap = {"loss": None, "mean_iou": math.nan, "iou": {"pet": None, "background": 0.6, "border": None}}
    drawn = draw([record(1, val=gap), record(2), record(3, val=gap)])
    iou = drawn[1]
    assert [line.name for line in iou.lines] == ["mean", "pet", "background", "border"]
    pet = iou.lines[1].values
    assert math.isnan(pet[0]) and pet[1] == 0.5 and math.isnan(pet[2])
    assert [line.name for line in draw([record(1, val=gap)])[1].lines] == ["background"]


def test_many_classes_are_cut_to_an_even_choice_and_it_is_said():
    names = [f"c{i}" for i in range(20)]
    val = {"mean_iou": 0.5, "iou": {name: i / 20 for i, name in enumerate(names)}}
    chart = draw([record(1, val=val)], looks=class_looks(None, names, 20))[1]
    assert [line.name for line in chart.lines] == [
        "mean",
        "c0",
        "c4",
        "c8",
        "c11",
        "c15",
        "c19",
    ] and MAX_CLASS_LINES == 6
    assert "20 classes" in chart.note


def test_names_never_reach_the_drawing():
    names = ("$\\frac{1}$", "<script>", "_hidden")
    looks = class_looks(None, names, 3)
    val = {"mean_iou": 0.5, "iou": dict.fromkeys(names, 0.5)}
    chart = draw([record(1, val=val)], looks=looks)[1]
    assert [line.name for line in chart.lines] == ["mean", *names]
    assert not any(name in chart.svg for name in ("frac", "script", "_hidden"))


@pytest.mark.parametrize("loss", [0.0, -3.0, 1e-30, 1e300])
def test_any_finite_loss_can_be_drawn(loss):
    assert draw([record(1, train_loss=loss), record(2, train_loss=loss)])[0].lines[0].values == (loss, loss)


def test_no_records_no_charts():
    assert draw([]) == []
    assert draw([{"epoch": 1}]) == []


def test_matplotlibs_settings_are_left_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    first = draw([record(1), record(2)])
    assert dict(matplotlib.rcParams) == before
    assert first == draw([record(1), record(2)])
