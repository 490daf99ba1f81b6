"""Pixels from bytes, and the one resize, against Pillow and against the formulas."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import DecodeError, decode_mask
from petseg.data.decode.nvimgcodec import BatchDecoder, available
from petseg.data.decode.pictures import to_rgb, turned
from petseg.data.decode.resize import (
    NO_BLUR,
    REACH,
    SMALL,
    nearest_indices,
    resize_image,
    resize_image_on_device,
    resize_nearest,
)

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
@given(height=st.integers(2, 200), width=st.integers(2, 200), new_height=SIDES, new_width=SIDES, seed=st.integers(0, 9))
def test_pictures_are_resized_as_pillow_does(height, width, new_height, new_width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BILINEAR))
    row = np.empty((new_height, new_width, 3), np.uint8)
    assert resize_image(picture, new_height, new_width, row) is row
    assert np.array_equal(resize_image(picture, new_height, new_width), row)
    difference = np.abs(row.astype(int) - expected)
    reduction = max(height / new_height, width / new_width)
    if reduction > REACH:
        assert difference.max() <= 2
    elif reduction > NO_BLUR:  # noise has all of its power where filters differ most: linear sampling is off by 30
        assert difference.mean() <= 10
    if new_width == 1:
        return  # torch's float kernel for the CPU, which stands in for the GPU's here, is wrong for that width alone
    on_device = resize_image_on_device(torch.from_numpy(picture), new_height, new_width).numpy()
    difference = np.abs(on_device.astype(int) - expected)
    assert difference.max() <= 2


@settings(deadline=None, max_examples=60)
@given(side=st.integers(60, 400), ratio=st.floats(0.4, REACH), squash=st.floats(0.7, 1.0), seed=st.integers(0, 9))
def test_small_reductions_stay_well_inside_the_loaders_bounds(side, ratio, squash, seed):
    rng = np.random.default_rng(seed)
    # Detail at every scale, falling off as that of photographs does.
    picture = sum(
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side), 3)) / 16 * k
        for n, k in ((4, 8), (16, 4), (side // 4, 2), (side // 2, 1), (side, 1))
    )
    picture = picture.clip(0, 255).astype(np.uint8)
    height, width = round(side / ratio), round(side / (ratio * squash))
    if max(side / height, side / width) > REACH:
        return
    expected = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(resize_image(picture, height, width) - expected).mean()
    blurred = max(side / height, side / width) > NO_BLUR or side * side > SMALL
    assert difference <= (1 if blurred else 2)


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
        with pytest.raises(DecodeError, match="no 8-bit grey PNG"):
            decode_mask(other)
    with pytest.raises(DecodeError, match="mask is damaged"):
        decode_mask(png(Image.fromarray(codes))[:-30])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_is_what_exif_means(orientation):
    picture = smooth(5, 8)
    exif = Image.Exif()
    exif[274] = orientation
    opened = Image.open(io.BytesIO(png_with(picture, exif)))
    assert np.array_equal(turned(picture, orientation), np.asarray(ImageOps.exif_transpose(opened)))
    assert np.array_equal(to_rgb(opened), turned(picture, orientation))
    assert np.array_equal(to_rgb(opened, upright=False), picture)


def png_with(picture: np.ndarray, exif: Image.Exif) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.skipif(not available(), reason="nvImageCodec comes with DALI, on Linux")
def test_nvimagecodec_decodes_a_batch_and_names_what_it_could_not():
    decoder = BatchDecoder(torch.device("cpu"), 2)
    pictures = [smooth(60 + n, 80 - n, n) for n in range(5)]
    encoded = [np.frombuffer(jpeg(p), np.uint8) for p in pictures]
    decoded = decoder.decode(encoded, (33, 44))
    images = decoder.take(decoded)
    assert decoded.failed == [] and images.shape == (5, 33, 44, 3) and images.dtype == torch.uint8
    for n, picture in enumerate(pictures):
        expected = np.asarray(Image.open(io.BytesIO(jpeg(picture))).resize((44, 33), Image.Resampling.BILINEAR))
        assert np.abs(images[n].numpy().astype(int) - expected).mean() < 2
    encoded[3] = np.frombuffer(b"\xff\xd8 no picture", np.uint8)
    assert decoder.decode(encoded, (33, 44)).failed == [3]
