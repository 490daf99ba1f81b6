"""Images of more than 8 bits or three bands: one range and one choice of bands for a whole set."""

import contextlib
import io

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from petseg.data.decode.image_files import ImageError
from petseg.data.decode.rgb import Tones, decode_file, is_deep, to_rgb
from petseg.data.shards.ranges import Values, parse_bands, parse_range
from petseg.errors import PetsegError

WIDE = Tones((0, 4095))


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    photometric = "rgb" if values.ndim == 3 and values.shape[2] in {3, 4, 6} else "minisblack"
    tifffile.imwrite(buffer, values, **{"photometric": photometric, **options})
    return buffer.getvalue()


def saved(values: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def cv2_png(values: np.ndarray) -> bytes:
    import cv2

    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 else ...
    return cv2.imencode(".png", values[..., order] if values.ndim == 3 else values)[1].tobytes()


@given(hnp.arrays(np.uint16, (7, 9), elements=st.integers(0, 5000)))
def test_whole_numbers_are_scaled_by_the_range_and_cut(values):
    expected = np.rint(np.clip(values / 4095 * 255, 0, 255)).astype(np.uint8)
    for data in (saved(values), tiff(values), tiff(values, compression="lzw"), tiff(values.astype(np.int32))):
        image = decode_file(data, WIDE)
        assert (image.pixels == expected[..., None]).all() and not image.plain


@pytest.mark.parametrize("write", [cv2_png, tiff])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
def test_colours_of_16_bits_keep_their_lower_bits(write, compression):
    values = np.random.default_rng(0).integers(0, 4096, (12, 16, 3), dtype=np.uint16)
    data = write(values) if compression is None else tiff(values, compression=compression)
    assert (decode_file(data, WIDE).pixels == np.rint(values / 4095 * 255)).all()
    assert decode_file(data).pixels.max() < 17  # as the type's own range has it


def test_floats_without_a_range_are_0_to_1_or_refused():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert (decode_file(tiff(ramp)).pixels[..., 0].ravel() == np.arange(256)).all()
    for values in (ramp * 200, ramp - 0.5):
        with pytest.raises(ImageError, match=r"values beyond 0 to 1, .*--range"):
            decode_file(tiff(values))
    hole = ramp.copy()
    hole[3, 4] = np.nan
    assert decode_file(tiff(hole)).pixels[3, 4, 0] == 0


def test_bands_are_chosen_and_what_is_not_said_is_refused():
    values = np.random.default_rng(1).integers(0, 256, (10, 14, 6), dtype=np.uint8)
    for options in ({}, {"planarconfig": "separate"}):
        data = tiff(np.moveaxis(values, -1, 0) if options else values, photometric="minisblack", **options)
        if options:
            assert (decode_file(data, Tones(bands=(5, 3, 2))).pixels == values[..., [4, 2, 1]]).all()
    data = tiff(values, photometric="rgb", planarconfig="contig")
    assert (decode_file(data, Tones(bands=(5, 3, 2))).pixels == values[..., [4, 2, 1]]).all()
    assert (decode_file(data, Tones(bands=(6,))).pixels == values[..., 5:]).all()
    with pytest.raises(ImageError, match="has 6 bands: give --bands"):
        decode_file(data)
    with pytest.raises(ImageError, match="has 6 bands, and --bands asks for band 9"):
        decode_file(data, Tones(bands=(9, 1, 1)))
    three = Image.fromarray(values[..., :3])
    assert (to_rgb(three, Tones(bands=(3, 2, 1))) == values[..., [2, 1, 0]]).all()
    jpeg = saved(values[..., :3], "JPEG")
    swapped = decode_file(jpeg, Tones(bands=(3, 2, 1)))
    assert (swapped.pixels[..., ::-1] == decode_file(jpeg).pixels).all() and not swapped.plain
    assert decode_file(jpeg, Tones(bands=(1, 2, 3))).plain


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_near_infrared_is_no_transparency(kind):
    four = np.random.default_rng(2).integers(0, 256, (10, 14, 4), dtype=np.uint8)
    with pytest.raises(ImageError, match="--bands 1,2,3"):
        decode_file(saved(four, kind))
    assert (decode_file(saved(four, kind), Tones(bands=(1, 2, 3))).pixels == four[..., :3]).all()
    four[..., 3] = 255
    four[:5, :, 3] = 0
    found = decode_file(saved(four, kind)).pixels
    assert (found[:5] == 255).all() and (found[5:] == four[5:, :, :3]).all()


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_deep_images_of_which_a_part_is_missing_are_damaged(compression):
    values = np.random.default_rng(3).integers(0, 65536, (64, 64), dtype=np.uint16)
    data = tiff(values, compression=compression, rowsperstrip=8)
    for cut in (1, 50, len(data) // 2):
        with pytest.raises(ImageError, match="is damaged"):
            decode_file(data[:-cut])


@given(st.binary(max_size=40), st.integers(0, 400))
def test_altered_tiffs_end_in_a_sentence(noise, at):
    data = bytearray(tiff(np.arange(120, dtype=np.uint16).reshape(10, 12)))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(ImageError):
        assert decode_file(bytes(data)).pixels.shape[2] == 3


def test_stacks_are_not_read_in_part():
    stack = np.zeros((5, 8, 9), np.uint16)
    for data in (tiff(stack), tiff(stack, imagej=True), tiff(stack.astype(np.uint8), imagej=True)):
        with pytest.raises(ImageError, match="holds 5 pages"):
            decode_file(data)


def test_what_is_deep_is_told_from_the_header():
    grey = np.zeros((4, 4), np.uint8)
    assert not any(map(is_deep, (saved(grey), saved(grey, "TIFF"), saved(np.dstack([grey] * 3), "JPEG"))))
    assert (
        is_deep(saved(grey.astype(np.uint16)))
        and is_deep(b"P5 # a comment\n4 4\n4095\n")
        and not is_deep(b"P5 4 4 255 ")
    )


# --- the range of a set


def values_of(*images: np.ndarray) -> Values:
    found = Values()
    for number, image in enumerate(images):
        found.add(image, f"p{number}")
    return found


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 4080, np.uint16, (0, 4095)), (3, 250, np.uint16, (0, 255)), (0, 65000, np.uint16, (0, 65535)),
        (7000, 8500, np.uint16, (7000, 8500)), (-1024, 3071, np.int32, (-1024, 3071)), (0, 0.97, np.float32, (0, 1)),
        (0, 3000, np.uint16, (0, 3000)), (0, 0.3, np.float32, (0, 0.3)), (5, 5, np.uint16, (0, 255)),
    ],
)  # fmt: skip
def test_the_range_is_what_the_set_spans(low, high, kind, expected):
    found = values_of(np.linspace(low, high, 5000).astype(kind), np.linspace(low, high, 77).astype(kind))
    assert found.range() == pytest.approx(expected, rel=1e-6)


def test_a_range_that_a_few_values_decide_is_asked_for():
    values = np.linspace(20, 4000, 100_000).astype(np.uint16)
    values[:7] = 65535
    with pytest.raises(PetsegError, match=r"20 to 65535, but nearly all within .*--range p0\.1 p99\.9"):
        values_of(values).range()
    with pytest.raises(PetsegError, match="p0 and p1 are of different kinds"):
        values_of(values, values / np.float32(2)).range()


@given(st.lists(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)), min_size=2))
def test_values_add_up_in_any_order_and_percentiles_are_near(arrays):
    forwards, backwards = Values(), Values()
    for order, into in ((arrays, forwards), (arrays[::-1], backwards)):
        for number, array in enumerate(order):
            part = Values()
            part.add(array, f"{number:03d}")
            into.merge(part)
    every = np.sort(np.concatenate(arrays))
    assert (forwards.counts == backwards.counts).all()
    assert (forwards.low, forwards.high) == (backwards.low, backwards.high) == (every[0], every[-1])
    exact = every[max(0, int(np.ceil(0.5 * len(every))) - 1)]
    low, high = (forwards.percentile(50, upper=upper) for upper in (False, True))
    assert low <= exact <= high and high - low <= max(0.01 * abs(exact), 1e-37)


def test_what_is_asked_for_is_read_or_refused():
    assert parse_range(["0", "4095"]) == ((0, 4095), None) and parse_range(["p1", "p99"]) == (None, (1, 99))
    assert parse_range(["-1000", "400"]) == ((-1000, 400), None)
    for bad in (["1", "0"], ["a", "b"], ["p1", "99"], ["p1", "p101"], ["nan", "1"], ["0", "inf"]):
        with pytest.raises(PetsegError, match="--range"):
            parse_range(bad)
    assert parse_bands("") == () and parse_bands("4,3, 2") == (4, 3, 2) and parse_bands("1") == (1,)
    for text in ("0,1,2", "1,2", "a", "1,2,3,4"):
        with pytest.raises(PetsegError, match="--bands"):
            parse_bands(text)
