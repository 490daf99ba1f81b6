"""Class colours stay readable on either paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.classes import OXFORD, ClassTable
from petseg.report.looks import DARK_PAPER, LIGHT_PAPER, LINE_CONTRAST, class_looks, contrast, readable

BYTE = st.integers(0, 255)


@given(colour=st.tuples(BYTE, BYTE, BYTE))
def test_any_colour_stands_out_from_both_papers(colour):
    for paper in (LIGHT_PAPER, DARK_PAPER):
        found = readable(colour, paper)
        assert contrast(found, paper) >= LINE_CONTRAST
        assert all(0 <= v <= 255 for v in found)


@pytest.mark.parametrize("paper", [LIGHT_PAPER, DARK_PAPER])
def test_a_colour_that_stands_out_is_left_alone(paper):
    assert readable((214, 39, 40), LIGHT_PAPER) == (214, 39, 40)
    assert readable((250, 240, 202), DARK_PAPER) == (250, 240, 202)


def test_contrast_is_wcags():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)
    assert contrast((9, 9, 9), (9, 9, 9)) == 1


def test_oxfords_names_get_oxfords_colours_and_others_distinct_ones():
    assert [look.colour for look in class_looks(None, OXFORD.names, 3)] == list(OXFORD.colours)
    other = class_looks(None, ("a", "b"), 4)
    assert [look.name for look in other] == ["a", "b", "class 2", "class 3"]
    assert len({look.colour for look in other}) == 4


def test_a_class_table_has_the_last_word():
    table = ClassTable(codes=(0, 9), names=("pet", "background"), colours=((1, 2, 3), (4, 5, 6)))
    assert [(look.name, look.colour) for look in class_looks(table, OXFORD.names, 3)] == [
        ("pet", (1, 2, 3)),
        ("background", (4, 5, 6)),
    ]
