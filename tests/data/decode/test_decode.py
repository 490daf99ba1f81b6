"""Pixels from bytes, and the one resize, against Pillow and against the formulas."""

import io

import cykooz_resizer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from petseg.data.decode.image_files import DecodeError, turned
from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.nvimgcodec import BatchDecoder, available
from petseg.data.decode.resize import (
    _TRIANGLE,
    nearest_indices,
    resize_by_formula,
    resize_image,
    resize_nearest,
)
from petseg.data.decode.rgb import to_rgb

SIDES = st.integers(1, 90)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@given(n_in=st.integers(1, 5000), n_out=st.integers(1, 5000))
def test_nearest_is_the_integer_formula(n_in, n_out):
    indices = nearest_indices(n_in, n_out)
    exact = [((2 * i + 1) * n_in) // (2 * n_out) for i in range(n_out)]
    assert indices.tolist() == exact
    assert min(exact) >= 0 and max(exact) < n_in
    if n_in == n_out:
        assert exact == list(range(n_in))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, seed=st.integers(0, 9))
def test_nearest_keeps_to_the_codes(height, width, new_height, new_width, seed):
    codes = np.random.default_rng(seed).choice(np.array([1, 2, 3, 255], np.uint8), (height, width))
    small = resize_nearest(codes, new_height, new_width)
    assert small.shape == (new_height, new_width) and small.dtype == np.uint8
    assert set(np.unique(small)) <= set(np.unique(codes))
    y, x = new_height // 2, new_width // 3
    assert small[y, x] == codes[((2 * y + 1) * height) // (2 * new_height), ((2 * x + 1) * width) // (2 * new_width)]


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 200), width=st.integers(1, 200), new_height=SIDES, new_width=SIDES, seed=st.integers(0, 9))
def test_images_are_resized_as_pillow_does(height, width, new_height, new_width, seed):
    rng = np.random.default_rng(seed)
    image = rng.choice(np.array([0, 255] if seed % 2 else range(256), np.uint8), (height, width, 3))
    expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)).astype(int)
    row = np.empty((new_height, new_width, 3), np.uint8)
    assert resize_image(image, new_height, new_width, row) is row
    assert np.array_equal(resize_image(image, new_height, new_width), row)
    assert np.array_equal(resize_image(image[:, ::-1], new_height, new_width), resize_by_formula(
        image[:, ::-1], new_height, new_width
    ))  # fmt: skip
    assert np.abs(row - expected).max() <= 1


@settings(deadline=None, max_examples=60)
@given(
    sides=st.lists(st.integers(1, 700), min_size=4, max_size=4), extension=st.sampled_from(["none", "sse4_1", "avx2"])
)
def test_the_resize_is_its_formula_on_every_instruction_set(sides, extension):
    height, width, new_height, new_width = sides
    image = np.random.default_rng(sides).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resizer = cykooz_resizer.Resizer()
    resizer.cpu_extensions = cykooz_resizer.CpuExtensions[extension]
    source = cykooz_resizer.ImageData(width, height, cykooz_resizer.PixelType.U8x3, image.tobytes())
    target = cykooz_resizer.ImageData(new_width, new_height, cykooz_resizer.PixelType.U8x3)
    resizer.resize(source, target, _TRIANGLE)
    by_formula = resize_by_formula(image, new_height, new_width)
    if (height, width) != (new_height, new_width):  # which it copies without a pass
        assert target.get_buffer() == by_formula.tobytes()
    assert np.array_equal(resize_image(image, new_height, new_width), by_formula)


def test_without_a_wheel_the_formula_does_it(monkeypatch):
    image = smooth(61, 83)
    expected = resize_image(image, 40, 30)
    monkeypatch.setattr("petseg.data.decode.resize.cykooz_resizer", None)
    row = np.empty((40, 30, 3), np.uint8)
    assert resize_image(image, 40, 30, row) is row and np.array_equal(row, expected)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_decode_as_pillow_does(subsampling, progressive):
    data = jpeg(smooth(61, 83), subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)), dtype=int)
    assert np.abs(decode_image(memoryview(data)) - expected).max() <= 1


@pytest.mark.parametrize("cut", [0, 1, 2, 10, 200, 600])
def test_a_cut_jpeg_is_damaged(cut):
    data = jpeg(smooth(61, 83))
    with pytest.raises(DecodeError, match="image is damaged"):
        decode_image(data[: len(data) - cut] if cut else b"")


def test_only_8_bit_grey_pngs_are_masks():
    codes = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    assert np.array_equal(decode_mask(png(Image.fromarray(codes))), codes)
    palette = Image.fromarray(codes, "P")
    palette.putpalette(list(range(256)) * 3)
    for other in (
        png(palette), png(Image.fromarray(codes.astype(np.uint16))), png(Image.fromarray(codes).convert("RGB")),
        png(Image.fromarray(codes > 9)), jpeg(codes), b"",
    ):  # fmt: skip
        with pytest.raises(DecodeError, match="not an 8-bit grey PNG"):
            decode_mask(other)
    with pytest.raises(DecodeError, match="mask is damaged"):
        decode_mask(png(Image.fromarray(codes))[:-30])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_is_what_exif_means(orientation):
    image = smooth(5, 8)
    exif = Image.Exif()
    exif[274] = orientation
    opened = Image.open(io.BytesIO(png_with(image, exif)))
    assert np.array_equal(turned(image, orientation), np.asarray(ImageOps.exif_transpose(opened)))
    assert np.array_equal(to_rgb(opened), turned(image, orientation))
    assert np.array_equal(to_rgb(opened, upright=False), image)


def png_with(image: np.ndarray, exif: Image.Exif) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.skipif(not available(), reason="nvImageCodec comes with DALI, on Linux")
def test_nvimagecodec_decodes_a_batch_and_names_what_it_could_not():
    decoder = BatchDecoder(torch.device("cpu"), 2)
    originals = [smooth(60 + n, 80 - n, n) for n in range(5)]
    encoded = [np.frombuffer(jpeg(p), np.uint8) for p in originals]
    decoded = decoder.decode(encoded, (33, 44))
    images = decoder.take(decoded)
    assert decoded.failed == [] and images.shape == (5, 33, 44, 3) and images.dtype == torch.uint8
    for n, original in enumerate(originals):
        expected = np.asarray(Image.open(io.BytesIO(jpeg(original))).resize((44, 33), Image.Resampling.BILINEAR))
        assert np.abs(images[n].numpy().astype(int) - expected).mean() < 2
    kept = images.clone()
    for again in (encoded[::-1], encoded[:2], encoded):  # into the buffers of the images before
        found = decoder.take(decoder.decode(again, (33, 44)))
        assert torch.equal(found, decoder.take(BatchDecoder(torch.device("cpu"), 2).decode(again, (33, 44))))
    assert torch.equal(images, kept) and torch.equal(found, kept)
    encoded[3] = np.frombuffer(b"\xff\xd8 no image", np.uint8)
    assert decoder.decode(encoded, (33, 44)).failed == [3]
    assert decoder.decode(encoded[:3], (33, 44)).failed == []
