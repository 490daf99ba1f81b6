"""Masks in colours and in other ways of writing codes, and the class map that they ask for."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.decode.masks import decode_mask
from petseg.data.shards.normalise import RejectError, normalise
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.scan import scan_masks
from petseg.data.sources.folder import FolderSource
from petseg.errors import PetsegError

COLOURS = ((0, 0, 0), (128, 64, 128), (255, 255, 255), (70, 70, 70))
STREET = ClassTable.from_dict({
    "codes": [0, 7, 9], "colours": [list(rgb) for rgb in COLOURS[:3]],
    "ignored": [255], "ignored_colours": [list(COLOURS[3])],
})  # fmt: skip
CODES = np.array([0, 7, 9, 255], np.uint8)
BINARY = ClassTable.from_dict({"codes": [0, 1], "ignored": [255]})


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def codes_in_shard(mask: bytes, classes: ClassTable, shape: tuple[int, int]) -> np.ndarray:
    photo = simplejpeg.encode_jpeg(np.full((*shape, 3), 90, np.uint8))
    return decode_mask(normalise(photo, mask, classes=classes, short_side=0, quality=90).mask)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 3)))
def test_colours_become_the_codes_of_their_classes(which):
    mask = Image.fromarray(np.array(COLOURS, np.uint8)[which])
    for kind in ("PNG", "BMP", "TIFF"):
        found = codes_in_shard(saved(mask, kind), STREET, which.shape)
        assert np.array_equal(found, CODES[which])
    mask.putalpha(255)
    assert np.array_equal(codes_in_shard(saved(mask), STREET, which.shape), CODES[which])


@given(hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 255])))
def test_codes_in_other_modes_are_read_as_they_stand(codes):
    grey = Image.fromarray(codes)
    ways = [grey.convert("RGB"), grey.convert("LA"), grey.convert("RGBA"), Image.fromarray(codes.astype(np.uint16))]
    for image in ways:
        assert np.array_equal(codes_in_shard(saved(image), BINARY, codes.shape), codes), image.mode
    bits = codes == 1
    assert np.array_equal(codes_in_shard(saved(Image.fromarray(bits)), BINARY, codes.shape), bits.astype(np.uint8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)),
            r"colour \(1, 2, 3\) in column 1, row 0",
        ),
        (lambda: Image.new("RGB", (2, 1), (5, 5, 5)), "unknown codes 5"),
        (lambda: Image.new("RGBA", (2, 1), (0, 0, 0, 9)), "transparent in part"),
        (lambda: Image.new("LA", (2, 1), (0, 0)), "transparent in part"),
        (lambda: Image.fromarray(np.array([[0, 300]], np.uint16)), "codes over 255"),
        (lambda: Image.new("CMYK", (2, 1)), "CMYK, neither one code nor one colour a pixel"),
    ],
)
def test_what_has_no_class_is_named(make, words):
    image = make()
    with pytest.raises(RejectError, match=words):
        codes_in_shard(saved(image, "TIFF" if image.mode == "CMYK" else "PNG"), STREET, (1, 2))


def test_a_colour_that_two_classes_have_stands_for_none():
    twice = ClassTable.from_dict({"codes": [3, 4], "colours": [[9, 8, 7], [9, 8, 7]]})
    with pytest.raises(RejectError, match="which no class has"):
        codes_in_shard(saved(Image.new("RGB", (2, 1), (9, 8, 7))), twice, (1, 2))


def test_void_needs_a_colour_each():
    with pytest.raises(PetsegError, match="2 ignored codes have 1 colours"):
        ClassTable.from_dict({"codes": [0, 1], "ignored": [254, 255], "ignored_colours": [[1, 2, 3]]})
    assert ClassTable.from_dict(STREET.to_dict()) == STREET
    assert "ignored_colours" not in BINARY.to_dict()


# --- the class map to start from


def scan(*masks: Image.Image):
    return scan_masks((f"{n}.png", saved(mask)) for n, mask in enumerate(masks))


def test_masks_of_0_and_255_are_background_and_foreground():
    found = scan(Image.fromarray(np.array([[0, 255, 255]], np.uint8)), Image.new("L", (1, 1)))
    assert found.to_toml() == 'codes = [0, 255]\nnames = ["background", "foreground"]\n'
    assert found.files == 2 and found.values[0,].pixels == 2 and found.values[0,].files == 2


def test_255_beside_others_is_void():
    found = scan(Image.fromarray(np.array([[0, 3, 255, 7]], np.uint8)))
    made = ClassTable.from_dict(found.class_map())
    assert made.codes == (0, 3, 7) and made.ignored == (255,) and made.names[0] == "background"


@given(hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 3)).filter(lambda which: len(np.unique(which)) > 1))
def test_the_class_map_of_masks_in_colours_takes_them_all(which):
    colours = np.array([(3, 200, 7), *COLOURS[1:]], np.uint8)[which]
    mask = Image.fromarray(colours)
    if (colours == colours[..., :1]).all():
        return  # grey: these are codes
    made = ClassTable.from_dict(scan(mask).class_map())
    found = codes_in_shard(saved(mask), made, which.shape)
    assert np.array_equal(np.array(made.colours, np.uint8)[found], colours)


def test_black_masks_do_not_make_masks_in_colours_grey():
    found = scan(Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (0, 200, 0)), Image.new("RGB", (1, 1)))
    assert found.class_map() == {
        "codes": [0, 1], "names": ["background", "foreground"], "colours": [[0, 0, 0], [0, 200, 0]]
    }  # fmt: skip


def test_what_makes_no_class_map():
    with pytest.raises(PetsegError, match=r"0\.png has one code a pixel, but 1\.png is in colours"):
        scan(Image.new("L", (2, 2)), Image.new("RGB", (2, 2), (0, 200, 0)))
    with pytest.raises(PetsegError, match="1 different codes"):
        scan(Image.new("L", (2, 2))).class_map()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with pytest.raises(PetsegError, match=r"different colours.*photographs are no masks"):
        scan(Image.fromarray(noise)).class_map()


def test_a_pack_that_lacks_its_class_map_prints_one(tmp_path):
    for n in range(4):
        for name, array in (
            ("i", np.full((20, 20, 3), n, np.uint8)),
            ("m", np.full((20, 20), 255 * (n % 2), np.uint8)),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / name / f"{n}.png")
    source = FolderSource(tmp_path / "i", tmp_path / "m", ClassTable.from_dict({"codes": [1, 2]}))
    with pytest.raises(PetsegError) as caught:
        pack(source, tmp_path / "out", PackOptions(split="random", short_side=0), workers=1)
    said = str(caught.value)
    assert "all 4 were rejected, 0 because mask holds unknown codes 0" in said
    assert f"`petseg classes {tmp_path / 'm'} --out classes.toml`" in said
    toml = said.partition("\n")[2]
    (tmp_path / "classes.toml").write_text(toml)
    right = FolderSource(tmp_path / "i", tmp_path / "m", ClassTable.from_toml(tmp_path / "classes.toml"))
    report = pack(right, tmp_path / "out", PackOptions(split="random", short_side=0), workers=1)
    assert report.manifest.classes.names == ("background", "foreground") and not report.rejected
