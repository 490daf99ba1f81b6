"""Pairs in compressed blocks are the pairs that went in."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg.data.sources import Pair
from petseg.data.sources.pairs import Pairs

TEXT = st.text(max_size=12) | st.sampled_from(["a\nb", "x\0y", "\udcff.jpg", "左.png"])


@st.composite
def pairs(draw):
    keys = sorted(draw(st.sets(st.text(min_size=1, max_size=6), max_size=150)))
    split = st.sampled_from([None, "train", "trainval"])
    return [
        Pair(
            key=key,
            image=draw(TEXT),
            mask=draw(TEXT),
            size=draw(st.integers(0, 2**40)),
            split=draw(split),
            more_masks=tuple(draw(st.lists(TEXT, max_size=2))),
            tag=draw(TEXT),
        )
        for key in keys
    ]


@given(pairs(), st.data())
def test_they_are_what_went_in(listed, data):
    found = Pairs.of(iter(listed))
    assert list(found) == listed and found == listed and len(found) == len(listed)
    for index in range(-len(listed), len(listed)):
        assert found[index] == listed[index]
    first, last = data.draw(st.tuples(st.integers(-200, 200), st.integers(-200, 200)))
    assert found[first:last] == tuple(listed[first:last])
    by_key = {pair.key: pair for pair in listed}
    for key in [*by_key, "", "m", "\U0010ffff", data.draw(st.text(max_size=6))]:
        assert found.find(key) == by_key.get(key)
    for index in (len(listed), -len(listed) - 1):
        with pytest.raises(IndexError):
            found[index]


def test_they_are_small_and_sorted():
    def listed(count):
        for i in range(count):
            key = f"frame_{i:08d}"
            yield Pair(key=key, image=f"/data/images/{key}.jpg", mask=f"/data/masks/{key}.png", size=40_000 + i % 999)

    found = Pairs.of(listed(50_000))
    assert sum(map(len, found._blocks)) < 20 * len(found)
    wrong = [Pair(key=key, image="", mask="", size=1) for key in ("a", "b", "b")]
    with pytest.raises(ValueError, match="sorted by key"):
        Pairs.of(wrong)
    with pytest.raises(ValueError, match="sorted by key"):
        Pairs.of(reversed(wrong))
    with pytest.raises(TypeError):
        hash(found)
    assert pickle.loads(pickle.dumps(list(found[:2]))) == list(found[:2])
