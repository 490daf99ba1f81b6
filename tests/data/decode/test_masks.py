"""Masks are PNGs that everybody reads, and that are read quickly here."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from petseg.data.decode.image_files import DecodeError
from petseg.data.decode.masks import decode_mask, encode_mask

SIDES = st.integers(1, 90)


def codes_of(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (-(-height // 7), -(-width // 7)))
    return np.repeat(np.repeat(coarse, 7, 0), 7, 1)[:height, :width]


@settings(deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 9))
def test_every_reader_finds_the_same_codes(height, width, seed):
    codes = codes_of(height, width, seed)
    data = encode_mask(codes)
    assert np.array_equal(decode_mask(data), codes)
    assert np.array_equal(decode_mask(memoryview(data)), codes)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), codes)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), codes)


@settings(deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 9), level=st.integers(0, 9))
def test_masks_that_other_tools_wrote_are_read_too(height, width, seed, level):
    codes = codes_of(height, width, seed)
    file = io.BytesIO()
    Image.fromarray(codes).save(file, "PNG", compress_level=level)
    assert np.array_equal(decode_mask(file.getvalue()), codes)
    assert np.array_equal(decode_mask(cv2.imencode(".png", codes)[1].tobytes()), codes)


def test_data_in_several_chunks_and_chunks_before_it():
    codes = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(codes).save(file, "PNG", dpi=(72, 72))  # Pillow: a pHYs chunk, and data in parts of 64 KiB
    assert file.getvalue().count(b"IDAT") > 1
    assert np.array_equal(decode_mask(file.getvalue()), codes)
    data = encode_mask(codes)
    assert data.count(b"IDAT") == 1 and np.array_equal(decode_mask(data), codes)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_damage_passes_for_another_mask(data):
    codes = codes_of(40, 33)
    encoded = bytearray(encode_mask(codes))
    if data.draw(st.booleans(), "cut"):
        del encoded[data.draw(st.integers(0, len(encoded) - 17), "to") :]  # less of it leaves the pixels whole
    else:
        at = data.draw(st.integers(0, len(encoded) - 1), "at")
        encoded[at] ^= data.draw(st.integers(1, 255), "bits")
    try:
        found = decode_mask(bytes(encoded))
    except DecodeError:
        return
    # What is left are bytes that carry no pixels: checksums of chunks, and the end chunk.
    assert np.array_equal(found, codes)


def test_what_would_inflate_to_more_than_its_header_says_is_refused():
    small, large = (encode_mask(np.zeros((n, n), np.uint8)) for n in (4, 5000))
    with pytest.raises(DecodeError, match="damaged"):
        decode_mask(small[:33] + large[33:])
