"""Numbers as words: their forms at the edges, and a dash for whatever is not a number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.report import words

FORMS = [words.score, words.percent, words.rate, words.whole, words.compact, words.duration, words.memory]


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (words.score, 0.84249, "0.842"),
        (words.score, 1, "1.000"),
        (words.percent, 3.249, "3.2%"),
        (words.percent, 9.94, "9.9%"),
        (words.percent, 9.96, "10%"),
        (words.rate, 85.34, "85.3"),
        (words.rate, 99.97, "100"),
        (words.rate, 3120.4, "3,120"),
        (words.whole, 3669, "3,669"),
        (words.compact, 9994, "9,994"),
        (words.compact, 9995, "9.99 k"),
        (words.compact, 512_345, "512 k"),
        (words.compact, 999_500, "1 M"),
        (words.compact, 7_763_523, "7.76 M"),
        (words.compact, 12_345_678, "12.3 M"),
        (words.compact, 999.6e6, "1 G"),
        (words.compact, 5e12, "5,000 G"),
        (words.duration, 14.23, "14.2 s"),
        (words.duration, 59.96, "1 min 00 s"),
        (words.duration, 192, "3 min 12 s"),
        (words.duration, 3599.7, "1 h 00 min"),
        (words.duration, 7500, "2 h 05 min"),
        (words.memory, 2812.4, "2,812 MB"),
        (words.memory, 12_400, "12.4 GB"),
    ],
)
def test_forms(form, value, text):
    assert form(value) == text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [None, "0.8", True, math.nan, math.inf, [], {}, 10**400])
def test_what_is_no_number_is_a_dash(form, value):
    assert form(value) == words.DASH


@given(value=st.one_of(st.floats(), st.integers(), st.none(), st.text()))
def test_every_form_takes_everything(value):
    for form in FORMS:
        assert form(value)
