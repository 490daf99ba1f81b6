import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.boxes import (
    MOST_DRAWS,
    OUTSIDE,
    Box,
    Fit,
    Framing,
    drawn,
    frame_image,
    frame_mask,
    padded,
)
from petseg.data.order import hash_of, keyed_hash

SIDES = st.integers(1, 90)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
CODES = bytes(range(4))


def any_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, 5, (height, width), dtype=np.uint8)


def formula(codes, box, size, outside):
    """The contract's own words, pixel by pixel."""
    found = np.full(size, outside, np.uint8)
    for i in range(size[0]):
        for j in range(size[1]):
            y = box.top + ((2 * i + 1) * box.height) // (2 * size[0])
            x = box.left + ((2 * j + 1) * box.width) // (2 * size[1])
            if 0 <= y < codes.shape[0] and 0 <= x < codes.shape[1]:
                found[i, j] = codes[y, x]
    return found


@given(value=st.integers(0, 2**63 - 1), key=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_the_hash_of_one_is_that_of_many(value, key):
    assert hash_of(value, *key) == int(keyed_hash(np.array([value]), *key)[0])


@settings(max_examples=60)
@given(height=SIDES, width=SIDES, size=SIZES, kind=st.sampled_from(["squash", "pad", "crop"]), index=st.integers(0, 99))
def test_masks_are_gathered_by_the_formula_inside_the_box(height, width, size, kind, index):
    _, codes = any_image(height, width, index)
    framing = Framing(size, Fit(kind=kind), seed=3, epoch=2, codes=CODES, outside=200)
    out = np.empty(size, np.uint8)
    box, found = frame_mask(codes, framing, index, out)
    assert found is out
    assert np.array_equal(found, formula(codes, box, size, 200))
    assert np.array_equal(found, frame_mask(codes, framing, index)[1])


@given(
    height=st.integers(1, 5000), width=st.integers(1, 5000), size=st.tuples(st.integers(1, 999), st.integers(1, 999))
)
def test_a_padded_box_is_the_smallest_of_its_shape(height, width, size):
    box = padded(height, width, size)
    assert box.inside(height, width) == (0, 0, height, width)
    assert box.height == height or box.width == width
    # As wide as its shape asks for, to a pixel; and the image is in its middle, to a pixel.
    assert abs(box.height * size[1] - box.width * size[0]) < max(size)
    assert abs((box.height - height) + 2 * box.top) <= 1 and abs((box.width - width) + 2 * box.left) <= 1


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    size=SIZES,
    scale=st.tuples(st.floats(0.05, 8), st.floats(0.05, 8)).map(sorted).map(tuple),
    draw=st.integers(0, 9),
)
def test_a_crop_lies_in_its_image_or_the_image_in_it(height, width, size, scale, draw):
    framing = Framing(size, Fit(kind="crop", scale=scale), codes=CODES)
    box = drawn(framing, 5, draw, height, width)
    for place, side, length, wanted in zip(box[:2], box[2:], (height, width), size, strict=True):
        assert wanted / scale[1] - 1 <= side <= max(1, wanted / scale[0] + 1)
        if side <= length:
            assert 0 <= place <= length - side
        else:
            assert place <= 0 and place + side >= length


def test_crops_are_spread_evenly_and_change_with_every_part_of_their_key():
    framing = Framing((32, 32), Fit(kind="crop", scale=(0.5, 2.0)), codes=CODES)
    boxes = np.array([drawn(framing, index, 0, 200, 300) for index in range(4000)])
    factors = 32 / boxes[:, 2]
    assert 0.49 < factors.min() < 0.52 and 1.9 < factors.max() < 2.05 and abs(factors.mean() - 1.25) < 0.03
    for place, side, length in ((0, 2, 200), (1, 3, 300)):
        share = boxes[:, place] / (length - boxes[:, side])
        assert abs(share.mean() - 0.5) < 0.02 and share.min() < 0.01 and share.max() > 0.99
    one = drawn(framing, 7, 0, 200, 300)
    others = [
        drawn(framing._replace(seed=1), 7, 0, 200, 300),
        drawn(framing._replace(epoch=1), 7, 0, 200, 300),
        drawn(framing, 8, 0, 200, 300),
        drawn(framing, 7, 1, 200, 300),
    ]
    assert one not in others and len(set(others)) == 4
    # The rule is part of what a run resumes to.
    assert [*drawn(framing._replace(seed=2**63 - 1, epoch=12), 345, 6, 777, 999)] == PINNED


PINNED = [73, 366, 36, 36]


def test_the_first_crop_without_too_much_of_a_class_is_taken():
    """As cat_max_ratio of mmsegmentation, whose void pixels do not count either."""
    codes = np.zeros((100, 100), np.uint8)
    codes[:, 60:] = 1
    codes[:, 80:] = 9  # void
    framing = Framing((20, 20), Fit(kind="crop", scale=(1.0, 1.0), max_share=0.75), codes=CODES, outside=9)
    redrawn = 0
    for index in range(60):
        boxes = [drawn(framing, index, draw, 100, 100) for draw in range(MOST_DRAWS)]

        def share(box):
            counts = np.bincount(formula(codes, box, (20, 20), 9).ravel(), minlength=10)[:4]
            return counts.max() / counts.sum() if counts.sum() else 2.0

        shares = [share(box) for box in boxes]
        number = next((n for n, each in enumerate(shares) if each < 0.75), shares.index(min(shares)))
        redrawn += number > 0
        assert frame_mask(codes, framing, index)[0] == boxes[number]
    assert redrawn > 20
    without = framing._replace(fit=Fit(kind="crop", scale=(1.0, 1.0), max_share=1.0))
    assert all(frame_mask(codes, without, i)[0] == drawn(without, i, 0, 100, 100) for i in range(30))


@settings(max_examples=40)
@given(height=SIDES, width=SIZES, index=st.integers(0, 99))
def test_images_are_a_full_decode_cut_out_and_resized(height, width, index):
    image, codes = any_image(height, width[0] + 20, index)
    framing = Framing((24, 36), Fit(kind="crop"), codes=CODES)
    box, _ = frame_mask(codes, framing, index)
    canvas = Image.new("RGB", (box.width, box.height), (OUTSIDE,) * 3)
    canvas.paste(Image.fromarray(image), (-box.left, -box.top))
    wanted = np.asarray(canvas.resize((36, 24), Image.Resampling.BILINEAR), np.int16)
    assert np.abs(frame_image(image, box, (24, 36)).astype(np.int16) - wanted).max() <= 1


def test_a_crop_at_the_images_own_scale_is_its_pixels():
    image, codes = any_image(80, 80)
    box, found = frame_mask(codes, Framing((16, 16), Fit(kind="crop", scale=(1, 1)), codes=CODES), 4)
    assert box[2:] == (16, 16)
    part = slice(box.top, box.top + 16), slice(box.left, box.left + 16)
    assert np.array_equal(frame_image(image, box, (16, 16)), image[part])
    assert np.array_equal(found, codes[part])


def test_what_is_outside_is_no_class():
    assert OXFORD.outside not in OXFORD.codes
    every = ClassTable(codes=tuple(range(255)), names=tuple(map(str, range(255))), colours=((0, 0, 0),) * 255)
    assert every.outside == 255
    assert ClassTable.from_dict({"codes": [0, 255], "ignored": [9]}).outside == 9
    assert Box(-2, 3, 10, 10).inside(5, 8) == (0, 3, 5, 5)


@pytest.mark.parametrize(
    "options", [{"kind": "stretch"}, {"scale": (2.0, 0.5)}, {"scale": (0.0, 1.0)}, {"max_share": 0.0}]
)
def test_what_is_no_fit_is_refused(options):
    with pytest.raises(ValueError, match="no such fit"):
        Fit(**options)
