"""The page in a real browser: at a desk and on a phone, in light and dark, whatever the names are."""

import io

import numpy as np
import pytest
from PIL import Image

from petseg.report import write_report

MEASURE = """(() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const page = document.scrollingElement, seen = e => e.getClientRects().length > 0;
  const images = [...document.images];
  return {
    window: innerWidth, width: page.clientWidth, scrolled: page.scrollWidth, height: page.scrollHeight,
    images: images.length,
    broken: images.filter(i => !i.complete || !i.naturalWidth || !seen(i)).length,
    charts: [...document.querySelectorAll('.chart > div > svg')].filter(s => s.getBoundingClientRect().height > 60).length,
    text: document.body.innerText.length,
    smallest: Math.min(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height)),
    paper: getComputedStyle(document.body).backgroundColor,
    line: getComputedStyle(document.querySelector('.chart path[style*="--series-1"]')).stroke,
  };
})()"""  # noqa: E501


def check(seen, width, images):
    found = seen.evaluated
    assert found["window"] == width
    assert found["scrolled"] <= found["width"] <= width, "the page scrolls sideways"
    assert found["images"] == images and found["broken"] == 0
    assert found["charts"] == 5
    assert found["text"] > 1000
    assert found["smallest"] > 8, "chart labels too small to read"
    assert not seen.console, seen.console
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in seen.requests if url.startswith("file:")]) == 1
    image = np.asarray(Image.open(io.BytesIO(seen.png)).convert("RGB"))
    assert image.shape[0] > 2000
    # Not blank: no band of it, a screen high, is of one colour.
    for top in range(0, image.shape[0] - 900, 900):
        assert image[top : top + 900].std() > 3, f"nothing is seen from {top} px on"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_at_a_desk_and_on_a_phone(chromium, make_run, panels, width, dark):
    page = write_report(make_run(), panels(6))
    seen = chromium.look(page, width=width, script=MEASURE, dark=dark)
    check(seen, width, 36)
    channels = [int(v) for v in seen.evaluated["paper"].removeprefix("rgb(").rstrip(")").split(",")]
    assert (max(channels) < 60) if dark else (min(channels) > 200)
    # The charts follow: their colours are the style sheet's, resolved.
    assert seen.evaluated["line"] == ("rgb(242, 160, 92)" if dark else "rgb(180, 80, 15)")


@pytest.mark.parametrize("width", [1280, 390])
def test_long_and_hostile_names_do_not_break_the_page(chromium, make_run, panels, width):
    long = "x" * 300
    names = [f"<script>document.body.remove()</script>{long}", *(f"{long}{i}" for i in range(19))]
    run = make_run(
        name="r" * 200,
        config={long: long, "path": "/" * 300},
        summary={
            "iou": dict.fromkeys(names, 0.5), "device": long, "loader": long,
            "verdict": {"kind": long, "why": long, "option": f"--{long}"},
            "versions": {long: long}, "data_digest": long, "foreground_iou": {f"{{{long}}}": 0.5}, "split": long,
        },
    )  # fmt: skip
    rows = [*panels(1, classes=20, key=f"<img src=x onerror=document.body.remove()>{long}"), *panels(2, classes=20)]
    seen = chromium.look(write_report(run, rows), width=width, script=MEASURE)
    check(seen, width, 18)


SORTED = """(() => {
  const names = () => [...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[0].textContent);
  const [name, iou] = document.querySelectorAll('.sortable thead button');
  const before = names();
  iou.click(); const up = names();
  iou.click(); const down = names();
  name.click(); const byName = names();
  return {before, up, down, byName, says: name.parentNode.getAttribute('aria-sort')};
})()"""


def test_the_classes_can_be_sorted(make_run, chromium):
    page = write_report(make_run(), [])
    found = chromium.look(page, width=1280, script=SORTED).evaluated
    rest = found["before"][3:]
    assert found["before"][:3] == ["pet", "background", "border"]
    assert found["up"] == ["border", "pet", "background", *rest] and found["down"] == [
        "background",
        "pet",
        "border",
        *rest,
    ]
    assert found["byName"] == ["background", "border", "pet", *rest] and found["says"] == "ascending"
