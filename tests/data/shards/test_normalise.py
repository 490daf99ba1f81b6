"""Every kind of image that people have: made fit, or left out with a reason, never half-decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from petseg.classes import OXFORD, ClassTable
from petseg.data.decode.image_files import turned
from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.shards.mask_files import RejectError
from petseg.data.shards.normalise import frame_marker, normalise
from petseg.data.shards.stats import ShardStats, mean_std

HEIGHT, WIDTH = 60, 90
TIFFS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")


def any_image(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Smooth, so that JPEG's losses stay small; no two corners alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def codes(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.full((height, width), 2, np.uint8)
    mask[: height // 3, : width // 2] = 1
    mask[height // 3 : height // 2, :7] = 3
    return mask


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray | None = None, **options) -> bytes:
    return encoded(any_image() if pixels is None else pixels, "JPEG", **{"quality": 95, **options})


def fit(image: bytes, mask: bytes | None = None, short_side: int = 0, classes: ClassTable = OXFORD, **options):
    return normalise(
        image, encoded(codes()) if mask is None else mask, classes=classes, short_side=short_side, quality=95, **options
    )


def near(data: bytes, expected: np.ndarray, tolerance: float = 3.0) -> None:
    got = decode_image(data)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < tolerance


GREY = any_image()[..., :1].repeat(3, axis=2)
FORMATS = {
    "png": (encoded(any_image()), any_image()),
    "gif": (encoded(Image.fromarray(any_image()).quantize(256, dither=Image.Dither.NONE), "GIF"), any_image()),
    "bmp": (encoded(any_image(), "BMP"), any_image()),
    "webp": (encoded(any_image(), "WEBP", lossless=True), any_image()),
    "tiff": (encoded(any_image(), "TIFF"), any_image()),
    "grey jpeg": (jpeg(any_image()[..., 0]), GREY),
    "cmyk jpeg": (encoded(Image.fromarray(any_image()).convert("CMYK"), "JPEG", quality=95), any_image()),
    "grey png": (encoded(any_image()[..., 0]), GREY),
    "16-bit png": (encoded(any_image()[..., 0].astype(np.uint16) * 257), GREY),
    "palette png": (encoded(Image.fromarray(any_image()).quantize(256, dither=Image.Dither.NONE)), any_image()),
    "transparent png": (
        encoded(np.dstack([any_image(), np.full((HEIGHT, WIDTH), 255, np.uint8)])), any_image()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("short_side", [0, 256])
def test_any_format_becomes_an_rgb_jpeg(name, short_side):
    data, expected = FORMATS[name]
    sample = fit(data, short_side=short_side)
    near(sample.image, expected, tolerance=6 if name in {"gif", "palette png", "cmyk jpeg"} else 3)
    assert sample.converted and not sample.kept and not sample.progressive
    assert frame_marker(sample.image) == 0xC0
    assert np.array_equal(decode_mask(sample.mask), codes())
    assert sample.counts[1:4].tolist() == [20 * 45, HEIGHT * WIDTH - 20 * 45 - 70, 70]


def test_sound_jpegs_are_kept_to_the_byte():
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        data = jpeg(**options)
        sample = fit(data)
        assert sample.image == data and sample.kept and not sample.converted
        assert sample.progressive == bool(options.get("progressive"))
    assert not fit(jpeg(), short_side=200).kept


def test_transparency_is_laid_over_white():
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    near(fit(encoded(rgba)).image, np.full((HEIGHT, WIDTH, 3), 255))


@pytest.mark.parametrize(
    ("orientation", "frame"), [*((o, "stored") for o in range(1, 9)), *((o, "upright") for o in (1, 5, 6, 7, 8))]
)
def test_images_are_turned_upright_and_their_masks_with_them(orientation, frame):
    exif = Image.Exif()
    exif[274] = orientation
    data = jpeg(exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    # A mask of the stored frame turns with its image; one that was drawn on the upright image stays.
    mask = codes() if frame == "stored" else turned(codes(), orientation)
    sample = fit(data, encoded(mask), mask_orientation="stored")
    near(sample.image, upright)
    assert np.array_equal(decode_mask(sample.mask), turned(codes(), orientation))
    assert sample.kept == (orientation == 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_odd_orientations_mean_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = jpeg(exif=exif)
    assert fit(data).image == data


def png(rows, height: int, depth: int = 8, colour: int = 0, *, width: int = WIDTH, interlaced: int = 0) -> bytes:
    """A PNG by hand, its checksums right: rows of packed bytes, under a header that promises `height` of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def two_bit_png() -> bytes:
    quads = np.pad(codes(), ((0, 0), (0, 2))).reshape(HEIGHT, -1, 4)
    return png((quads << np.array([6, 4, 2, 0], np.uint8)).sum(2).astype(np.uint8), HEIGHT, depth=2)


def palette_mask() -> bytes:
    image = Image.fromarray(codes(), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9, 1, 2, 3])
    return encoded(image)


@pytest.mark.parametrize(
    "mask",
    [
        encoded(codes()),
        encoded(codes().astype(np.uint16)),
        palette_mask(),
        two_bit_png(),
        encoded(codes(), "TIFF"),
        encoded(codes(), "BMP"),
    ],
    ids=["8-bit", "16-bit", "palette", "2-bit", "tiff", "bmp"],
)
def test_masks_of_any_depth_keep_their_codes(mask):
    assert np.array_equal(decode_mask(fit(jpeg(), mask).mask), codes())


def test_ignored_codes_are_kept_as_they_are():
    void = codes()
    void[0] = 255
    voc = ClassTable.from_dict({"codes": [1, 2, 3], "ignored": [255]})
    sample = fit(jpeg(), encoded(void), classes=voc)
    assert np.array_equal(decode_mask(sample.mask), void) and sample.counts[255] == WIDTH


def flipped(data: bytes) -> bytes:
    """With one byte of its pixels changed, which most decoders never notice."""
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("image", "mask", "reason"),
    [
        (b"", None, "image is empty"),
        (b"no image", None, "image is of no known format"),
        (jpeg()[: len(jpeg()) // 2], None, "image is damaged"),
        (jpeg(progressive=True)[:-300], None, "image is damaged"),
        (jpeg()[:-2], None, "image is damaged"),
        (flipped(encoded(any_image())), None, "image is damaged"),
        (encoded(any_image())[:-200], None, "image is damaged"),
        (FORMATS["gif"][0][:-900], None, "image is damaged"),
        (jpeg(), b"", "mask is empty"),
        (jpeg(), b"no mask", "mask is of no known format"),
        (jpeg(), encoded(codes())[:-30], "mask is damaged"),
        (jpeg(), flipped(encoded(codes())), "mask is damaged"),
        (jpeg(), encoded(codes(), "JPEG"), "mask is a JPEG"),
        (jpeg(), encoded(any_image()), "which no class has"),
        (jpeg(), encoded(codes(HEIGHT, WIDTH - 1)), "mask is 89x60, its image 90x60"),
        (jpeg(), encoded(np.zeros((HEIGHT, WIDTH), np.uint8)), "unknown codes 0$"),
        (jpeg(), encoded(codes().astype(np.uint16) + 300), "codes over 255"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_out_with_its_reason(image, mask, reason):
    with pytest.raises(RejectError, match=reason):
        fit(image, mask)


CMYK = FORMATS["cmyk jpeg"][0]
JPEG_IN_TIFF = encoded(any_image(), "TIFF", compression="jpeg")


def zeroed(data: bytes, length: int = 200) -> bytes:
    """With zeros in its middle."""
    return data[: len(data) // 2] + bytes(length) + data[len(data) // 2 + length :]


def taller_tiff(data: bytes, factor: int = 2) -> bytes:
    """A TIFF whose header promises more rows than there are."""
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, kind = struct.unpack_from("<HH", data, entry)
        if tag in {257, 278}:  # ImageLength, RowsPerStrip
            layout = "<H" if kind == 3 else "<I"
            struct.pack_into(layout, changed, entry + 8, factor * struct.unpack_from(layout, data, entry + 8)[0])
    return bytes(changed)


def taller_gif() -> bytes:
    """A GIF whose pixels end half-way, by the end code that belongs there."""
    half = Image.fromarray(any_image()[: HEIGHT // 2]).quantize(64)
    data = bytearray(encoded(half, "GIF"))
    at = data.index(b"\x2c\0\0\0\0")
    struct.pack_into("<H", data, 8, HEIGHT)
    struct.pack_into("<H", data, at + 7, HEIGHT)
    return bytes(data)


@pytest.mark.parametrize(
    "image",
    [
        CMYK[: len(CMYK) // 2] + b"\xff\xd9",
        zeroed(CMYK),
        jpeg()[: len(jpeg()) // 2] + b"\xff\xd9",
        zeroed(jpeg()),
        jpeg()[:-300] + bytes(298) + b"\xff\xd9",
        png(any_image().reshape(HEIGHT, -1)[: HEIGHT // 2], HEIGHT, colour=2),
        zeroed(JPEG_IN_TIFF),
        taller_tiff(JPEG_IN_TIFF),
        *(taller_tiff(encoded(any_image(), "TIFF", compression=c)) for c in TIFFS),
        zeroed(encoded(any_image(), "TIFF", compression="tiff_adobe_deflate"), 8),
        taller_gif(),
        encoded(any_image(), "PPM")[:-100],
        encoded(any_image(), "BMP")[:-100],
        encoded(any_image(), "WEBP")[:-100],
    ],
    ids=[
        "cmyk-half", "cmyk-zeros", "jpeg-half", "jpeg-zeros", "jpeg-zero-tail", "png-half", "jpeg-in-tiff-zeros",
        "jpeg-in-tiff-half", "tiff-half", "lzw-half", "deflate-half", "packbits-half", "deflate-zeros", "gif-half",
        "ppm-cut", "bmp-cut", "webp-cut",
    ],
)  # fmt: skip
def test_an_image_of_which_a_part_is_missing_is_rejected(image):
    with pytest.raises(RejectError, match="image is damaged"):
        fit(image, encoded(codes()))


@pytest.mark.parametrize(
    "options", [{"compression": c} for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
)
def test_whole_tiffs_are_taken(options):
    near(fit(encoded(any_image(), "TIFF", **options)).image, any_image(), tolerance=6)


@pytest.mark.parametrize("colours", [2, 16, 256])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8), (61, 90)])
def test_whole_shallow_pngs_are_taken(size, colours):
    image = Image.fromarray(any_image(*size)).quantize(colours)
    fit(encoded(image, bits={2: 1, 16: 4, 256: 8}[colours]), encoded(np.ones(size, np.uint8)))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 3), (8, 8), (61, 90)])
def test_interlaced_pngs_are_taken_whole_only(size):
    mask = np.random.default_rng(1).integers(1, 4, size, dtype=np.uint8)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [row for x, y, dx, dy in passes for row in mask[y::dy, x::dx] if row.size]
    data = png(rows, size[0], width=size[1], interlaced=1)
    assert np.array_equal(decode_mask(fit(jpeg(any_image(*size)), data).mask), mask)
    with pytest.raises(RejectError, match=r"mask is damaged .*% of its pixels"):
        fit(jpeg(any_image(*size)), png(rows[:-1], size[0], width=size[1], interlaced=1))


def test_a_mask_with_half_its_rows_is_rejected():
    zero = ClassTable.from_dict({"codes": [0, 1, 2, 3]})
    assert fit(jpeg(), png(codes(), HEIGHT), classes=zero).counts[1] == 20 * 45
    with pytest.raises(RejectError, match=r"mask is damaged .*it holds 50% of its pixels"):
        fit(jpeg(), png(codes()[: HEIGHT // 2], HEIGHT), classes=zero)


def test_what_cannot_be_checked_is_said(tmp_path):
    image = Image.fromarray(any_image()[..., 0] > 128)
    with pytest.raises(
        RejectError,
        match="a TIFF compressed by group4, which hides missing parts: save it again with another compression",
    ):
        fit(encoded(image, "TIFF", compression="group4"))


def test_no_program_is_started_for_a_file_that_is_no_image(monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    eps = encoded(any_image(), "EPS")
    with pytest.raises(RejectError, match="image is of no known format"):
        fit(eps)
    with pytest.raises(RejectError, match="mask is of no known format"):
        fit(jpeg(), eps)
    assert not started


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_image_is_never_padded_with_grey(cut):
    for options in ({}, {"progressive": True}):
        data = jpeg(**options)
        with pytest.raises(RejectError, match="image is damaged"):
            fit(data[: int(len(data) * cut)])


def test_a_padded_end_is_no_damage():
    data = jpeg()
    padded = data[:-2] + bytes(5) + data[-2:]
    near(fit(padded).image, any_image())
    assert not fit(padded).kept


def test_large_images_are_refused_by_their_header():
    with pytest.raises(RejectError, match="image is too large"):
        fit(jpeg(), max_pixels=HEIGHT * WIDTH - 1)


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 120), width=st.integers(1, 120), short_side=st.sampled_from([0, 16, 33, 64]))
def test_sizes_are_reduced_and_never_enlarged(height, width, short_side):
    sample = fit(jpeg(any_image(height, width)), encoded(codes(height, width)), short_side=short_side)
    got = decode_image(sample.image).shape[:2]
    assert got == decode_mask(sample.mask).shape == sample.pixels.shape[:2]
    if short_side and short_side < min(height, width):
        assert min(got) == short_side
        assert abs(got[0] / got[1] - height / width) < height / width * (1.5 / min(got))
    else:
        assert got == (height, width)


def test_the_statistics_are_the_pixels():
    sample = fit(jpeg(), short_side=32)
    stats = ShardStats(name="train-000000.tar")
    for _ in range(2):
        stats.add(sample.pixels, sample.counts, progressive=False)
    pixels = simplejpeg.decode_jpeg(sample.image).reshape(-1, 3).astype(np.int64)
    assert stats.pixels == 2 * len(pixels) == sum(stats.pixel_counts.values())
    assert stats.channel_sums == (2 * pixels.sum(0)).tolist()
    assert stats.channel_squares == (2 * (pixels**2).sum(0)).tolist()
    mean, std = mean_std([stats])
    assert np.allclose(mean, pixels.mean(0) / 255) and np.allclose(std, pixels.std(0) / 255)
    flat = ShardStats(name="train-000001.tar")
    flat.add(np.full((9, 9, 3), 7, np.uint8), sample.counts, progressive=False)
    assert mean_std([flat])[1] == (1 / 255,) * 3  # nobody divides by nothing


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_bytes_are_rejected_or_whole_but_never_a_crash(data):
    kind = data.draw(st.sampled_from(sorted(FORMATS)))
    raw = bytearray(FORMATS[kind][0])
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        sample = fit(bytes(raw), short_side=data.draw(st.sampled_from([0, 32])))
    except RejectError as reason:
        assert len(str(reason).splitlines()) == 1
    else:
        assert decode_image(sample.image).shape[:2] == sample.pixels.shape[:2]
