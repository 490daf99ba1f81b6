"""Pixels as they are: what Pillow and OpenCV read, and nothing that is not whole."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petseg.data.decode.image_files import DecodeError
from petseg.data.decode.images import check_encoded, decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.netpbm import encode_pixels


def drawn(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_other_libraries_read_what_is_written(height, width):
    image, mask = drawn(height, width, 3), drawn(height, width)
    as_ppm, as_pgm = encode_pixels(image), encode_pixels(mask)
    for data, pixels, decode in ((as_ppm, image, decode_image), (as_pgm, mask, decode_mask)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        assert np.array_equal(decode(data), pixels) and np.array_equal(decode(memoryview(data)), pixels)
    assert np.array_equal(cv2.imdecode(np.frombuffer(as_ppm, np.uint8), cv2.IMREAD_COLOR_RGB), image)
    assert np.array_equal(cv2.imdecode(np.frombuffer(as_pgm, np.uint8), cv2.IMREAD_GRAYSCALE), mask)
    check_encoded(as_ppm)


def test_what_other_tools_write_is_read():
    image = drawn(5, 7, 3)
    for header in (b"P6 7 5 255\n", b"P6\n# made by a tool\n7 5\n# as large as that\n255\n", b"P6\t7\r\n5 255 "):
        assert np.array_equal(decode_image(header + image.tobytes()), image)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], r"\(104 bytes for 7x5 pixels\)"),
        (lambda data: data + b"0", r"\(106 bytes for 7x5 pixels\)"),
        (lambda data: data.replace(b"255", b"254"), "no header of an 8-bit"),
        (lambda data: data.replace(b"7 5", b"0 5"), r"\(105 bytes for 0x5"),
        (lambda data: data.replace(b"7 5", b"-7 5"), "no header"),
        (lambda data: b"P6\n61680 61680\n255\n", r"too large \(61680x61680\)"),
        (lambda data: b"P6", "no header"),
    ],
)
def test_what_is_not_whole_is_refused(change, words):
    data = change(encode_pixels(drawn(5, 7, 3)))
    for decode in (decode_image, check_encoded):
        with pytest.raises(DecodeError, match=words):
            decode(data)
