import itertools

import numpy as np

import petseg.drawing as module
from petseg.classes import OXFORD
from petseg.drawing import legend, overlay


def test_overlay_tints_marks_the_classes_limits_and_shows_no_seams(monkeypatch):
    pixels = np.full((80, 60, 3), 100, dtype=np.uint8)
    mask = np.zeros((80, 60), dtype=np.uint8)
    mask[20:50, 15:40] = 1
    whole = overlay(pixels, mask, OXFORD)
    assert (pixels == 100).all()
    tint = 0.55 * 100 + 0.45 * OXFORD.palette().astype(float)
    np.testing.assert_allclose(whole[5, 5], tint[0], atol=1)
    np.testing.assert_allclose(whole[30, 30], tint[1], atol=1)
    assert whole[30, 14].min() > 200 and whole[19, 30].min() > 200
    for rows in (1, 7, 20, 49):
        monkeypatch.setattr(module, "_BAND_PIXELS", 60 * rows)
        assert (overlay(pixels, mask, OXFORD) == whole).all()


def test_the_overlay_of_a_large_image_has_thicker_lines():
    mask = np.zeros((2000, 2000), np.uint8)
    mask[:, 1000:] = 1
    over = overlay(np.full((2000, 2000, 3), 100, np.uint8), mask, OXFORD)
    assert (over[5].min(-1) > 200).nonzero()[0].tolist() == [996, 997, 998, 999]


def test_a_legend_takes_as_many_lines_as_it_needs_and_never_cuts_a_label():
    colours = [(250, 0, 0), (0, 200, 0), (0, 0, 250)]
    one, three = (legend(["first", "second", "third"], colours, width, 12) for width in (400, 90))
    assert one and three and (one.width, three.width) == (400, 90) and (one.height, three.height) == (24, 60)
    for strip in (one, three):
        pixels = np.array(strip)
        assert all((pixels == colour).all(-1).any() for colour in colours)
        assert (pixels[:, -1] == module.PAPER).all()
    assert legend(["a label that is too long for it"], colours[:1], 90, 12) is None


def test_a_legend_is_written_in_greek_and_cyrillic_too():
    strips = [np.array(legend([label], [(9, 9, 9)], 200, 20)) for label in ("γ", "ш", "\ue000")]
    # A font without them draws the same box for all three.
    assert all((a != b).any() for a, b in itertools.combinations(strips, 2))
