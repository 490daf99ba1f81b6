import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import petseg.inference.inputs as module
from petseg.data.decode.image_files import MAX_PIXELS
from petseg.errors import PetsegError
from petseg.inference.inputs import images_in, read_image

FORMATS = {
    "rgb.jpg": Image.fromarray,
    "grey.jpg": lambda a: Image.fromarray(a).convert("L"),
    "cmyk.jpg": lambda a: Image.fromarray(a).convert("CMYK"),
    "alpha.png": lambda a: Image.fromarray(np.dstack([a, np.where(a[..., :1] > 99, 255, 0).astype(np.uint8)])),
    "palette.gif": lambda a: Image.fromarray(a).quantize(16),
    "bilevel.png": lambda a: Image.fromarray(a).convert("1"),
    "deep.png": lambda a: Image.fromarray(a[..., 0].astype(np.uint16) * 257),
    "photo.webp": Image.fromarray,
    "float.tiff": lambda a: Image.fromarray(a[..., 0].astype(np.float32) / 255),
    "photo.bmp": Image.fromarray,
}


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_becomes_rgb(image, tmp_path, name):
    FORMATS[name](image()).save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (60, 90, 3)


def test_deep_grey_keeps_its_tones_and_transparency_lies_on_white(save, tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert (read_image(save(tmp_path / "deep.png", ramp * 257))[..., 1] == ramp).all()
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[:2, :, 3] = 255
    over = read_image(save(tmp_path / "clear.png", clear))
    assert (over[:2] == 0).all() and (over[2:] == 255).all()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("name", ["cat.png", "cat.jpg"])
def test_photos_are_turned_upright(image, tmp_path, orientation, name):
    upright = image(40, 70)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that undoes what a viewer does
    stored = Image.fromarray(upright)
    if orientation in turn:
        stored = stored.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, quality=100, subsampling=0)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= (0 if name == "cat.png" else 8)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size; its pixels are not even there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(20_000, 10_000), (13_378, 13_378), (65_501, 10)])
def test_a_bomb_is_refused_by_its_header(tmp_path, size, monkeypatch):
    monkeypatch.setattr(module, "to_rgb", lambda *given: pytest.fail("decoded"))
    monkeypatch.setattr("petseg.data.decode.rgb.whole_rgb", lambda *given: pytest.fail("decoded"))
    with pytest.raises(PetsegError, match="too large"):
        read_image(bomb(tmp_path / "bomb.png", *size))


def test_the_limit_itself_is_decoded(tmp_path, recwarn):
    assert 13_377 * 13_377 <= MAX_PIXELS < 13_378 * 13_378
    with pytest.raises(PetsegError) as caught:  # for want of pixels, not for its size
        read_image(bomb(tmp_path / "big.png", 65_500, 2))
    assert "too large" not in str(caught.value) and not recwarn.list


def test_a_folder_means_the_images_directly_in_it(image, save, tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.jpg", "._a.png", "deeper/c.jpg"):
        save(tmp_path / "in" / name, image(), format="PNG")
    (tmp_path / "in" / "notes.txt").write_text("x")
    a, b = tmp_path / "in" / "a.png", tmp_path / "in" / "b.JPG"
    assert images_in([tmp_path / "in"]) == [a, b]
    assert images_in([b, tmp_path / "in", b, tmp_path / "gone.jpg"]) == [b, a, tmp_path / "gone.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PetsegError, match="no image directly in it"):
        images_in([a, tmp_path / "empty"])
    with pytest.raises(PetsegError, match="no image was named"):
        images_in([])
