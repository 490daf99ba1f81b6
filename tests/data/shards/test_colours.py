"""Masks in colours and in other ways of writing codes, and the class map that they ask for."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFilter

from petseg import Manifest
from petseg.classes import ClassTable
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_nearest
from petseg.data.shards.mask_files import RejectError
from petseg.data.shards.normalise import normalise
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
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


# --- palettes


def palette_of(which: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    """Indices u8[H, W] under a palette."""
    image = Image.fromarray(which, "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (200, 0, 0)
BY_COLOUR = ClassTable.from_dict({"codes": [0, 1], "colours": [list(BLACK), list(WHITE)]})


@given(hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 2)), st.permutations([BLACK, WHITE, RED]))
def test_with_colours_in_the_class_map_the_order_of_a_palette_does_not_matter(which, order):
    three = ClassTable.from_dict({"codes": [0, 4, 9], "colours": [list(BLACK), list(WHITE), list(RED)]})
    expected = np.array([{BLACK: 0, WHITE: 4, RED: 9}[colour] for colour in order], np.uint8)[which]
    for kind in ("PNG", "GIF", "TIFF"):
        assert np.array_equal(codes_in_shard(saved(palette_of(which, order), kind), three, which.shape), expected)


def test_void_without_a_colour_of_its_own_is_known_by_its_index():
    which = np.array([[0, 1, 255]], np.uint8)
    table = ClassTable.from_dict({"codes": [0, 1], "colours": [list(BLACK), list(RED)], "ignored": [255]})
    mask = palette_of(which, [BLACK, RED, *[(224, 224, 192)] * 254])
    assert np.array_equal(codes_in_shard(saved(mask), table, which.shape), which)


def test_a_palettes_colour_without_a_class_is_named():
    mask = saved(palette_of(np.array([[0, 1]], np.uint8), [BLACK, (1, 2, 3)]))
    with pytest.raises(RejectError, match=r"colour \(1, 2, 3\), index 1 of its palette, which no class has"):
        codes_in_shard(mask, BY_COLOUR, (1, 2))


def test_a_grey_palette_is_read_by_what_fits():
    mask = saved(palette_of(np.array([[0, 1]], np.uint8), [BLACK, WHITE]))
    assert codes_in_shard(mask, ClassTable.from_dict({"codes": [0, 255]}), (1, 2)).tolist() == [[0, 255]]
    assert codes_in_shard(mask, ClassTable.from_dict({"codes": [0, 1]}), (1, 2)).tolist() == [[0, 1]]
    with pytest.raises(
        RejectError, match=r"indices \(0, 1\) and greys \(0, 255\) are both codes: name the classes' col"
    ):
        codes_in_shard(mask, BINARY, (1, 2))


@pytest.fixture
def folder(tmp_path):
    """Writes masks beside images; gives the source of them under a class map."""

    def make(masks: list[Image.Image], table: ClassTable, kind: str = "png") -> FolderSource:
        for n, mask in enumerate(masks):
            for name in ("images", "masks"):
                (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", mask.size, (n, 90, 90)).save(tmp_path / "images" / f"{n}.jpg")
            mask.save(tmp_path / "masks" / f"{n}.{kind}")
        return FolderSource(tmp_path / "images", tmp_path / "masks", table)

    return make


def packed_codes(source: FolderSource, out, **options) -> dict[str, np.ndarray]:
    pack(source, out, PackOptions(split="random", short_side=0, **options), workers=1)
    manifest, found = Manifest.load(out), {}
    for split in manifest.splits:
        reader = ShardReader(out, manifest, split)
        found |= {reader.key(index): reader.decoded(index)[1] for index in range(len(reader))}
        reader.close()
    return found


@pytest.mark.parametrize("samples_per_shard", [1, 100])
def test_palettes_that_disagree_are_refused_and_the_two_masks_named(folder, tmp_path, samples_per_shard):
    which = np.indices((20, 20))[0].astype(np.uint8) % 2
    masks = [palette_of(which ^ (n % 2), [BLACK, RED] if n % 2 == 0 else [RED, BLACK]) for n in range(6)]
    source = folder(masks, ClassTable.from_dict({"codes": [0, 1]}))
    with pytest.raises(
        PetsegError, match=r"palettes of the masks disagree: index [01] is .* in .*\d\.png and .*\d\.png"
    ):
        packed_codes(source, tmp_path / "out", samples_per_shard=samples_per_shard)
    found = scan(*masks)
    assert found.class_map()["colours"] == [list(BLACK), list(RED)]
    assert "The palettes disagree: index 0 is" in found.remarks()[0] and "1.png" in found.remarks()[0]
    right = folder(masks, ClassTable.from_dict(found.class_map()))
    packed = packed_codes(right, tmp_path / "right", samples_per_shard=samples_per_shard)
    assert len(packed) == 6 and all(np.array_equal(codes, which) for codes in packed.values())


def test_palettes_are_compared_where_they_are_used_alone(folder, tmp_path):
    which = np.indices((20, 20))[0].astype(np.uint8) % 2
    masks = [palette_of(which, [BLACK, RED, (n, n, n)]) for n in range(4)]
    assert len(packed_codes(folder(masks, ClassTable.from_dict({"codes": [0, 1]})), tmp_path / "out")) == 4


# --- other values than codes


def soft_masks(n: int = 6) -> tuple[list[Image.Image], list[np.ndarray]]:
    """(blurred masks of 0 and 255, what they were)."""
    rng = np.random.default_rng(0)
    hard = [np.kron(rng.integers(0, 2, (4, 4)), np.ones((12, 12))).astype(np.uint8) * 255 for _ in range(n)]
    return [Image.fromarray(each).filter(ImageFilter.GaussianBlur(1.2)) for each in hard], hard


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_soft_edges_are_said_and_a_threshold_takes_them(folder, tmp_path, kind):
    masks, hard = soft_masks()
    found = scan(*masks)
    assert found.to_toml() == 'codes = [0, 255]\nnames = ["background", "foreground"]\nthreshold = 128\n'
    assert found.remarks()[0].startswith("0 and 255 with soft edges")
    packed = packed_codes(folder(masks, ClassTable.from_dict(found.class_map()), kind), tmp_path / "out")
    assert len(packed) == len(hard)
    for key, codes in packed.items():
        expected = np.asarray(masks[int(key)]) >= 128
        assert (codes != 255 * expected).mean() < (0.03 if kind == "jpg" else 1e-9)
    if kind == "png":
        with pytest.raises(PetsegError, match="soft edges\\? threshold = 128 in the class map takes them"):
            packed_codes(folder(masks, ClassTable.from_dict({"codes": [0, 255]})), tmp_path / "other")


def test_a_pack_that_lost_a_class_says_so(folder, tmp_path):
    masks, _ = soft_masks()
    empty = [Image.new("L", (48, 48)) for _ in range(14)]
    source = folder([*masks, *empty], ClassTable.from_dict({"codes": [0, 255], "names": ["sound", "defect"]}))
    words = "no mask that was packed holds defect, and 6 were rejected, . because mask holds unknown codes"
    with pytest.raises(PetsegError, match=words) as caught:
        packed_codes(source, tmp_path / "out")
    assert "threshold = 128" in str(caught.value) and "--allow-rejects" in str(caught.value)
    right = folder([*masks, *empty], ClassTable.from_dict({"codes": [0, 255], "threshold": 128}))
    assert len(packed_codes(right, tmp_path / "right")) == 20
    pack(source, tmp_path / "out", PackOptions(split="random", short_side=0), workers=1, allow_rejects=True)
    assert len(Manifest.load(tmp_path / "out").rejected) == 6


def test_many_classes_are_not_soft_edges():
    rng = np.random.default_rng(0)
    masks = [
        np.kron(rng.choice([0, 0, 0, *range(1, 20), 255], (6, 6)), np.ones((8, 8))).astype(np.uint8) for _ in range(9)
    ]
    found = scan(*map(Image.fromarray, masks))
    assert not found.soft and found.void() == 255 and len(found.class_map()["codes"]) == 20


def test_a_threshold_is_for_two_grey_classes():
    table = ClassTable.from_dict({"codes": [3, 7], "threshold": 100})
    grey = Image.fromarray(np.array([[0, 99, 100, 255]], np.uint8))
    for image in (grey, grey.convert("RGB"), palette_of(np.array([[0, 0, 1, 1]], np.uint8), [(99,) * 3, (100,) * 3])):
        assert codes_in_shard(saved(image), table, (1, 4)).tolist() == [[3, 3, 7, 7]]
    with pytest.raises(RejectError, match="mask is in colours, and the class map's threshold is for shades of grey"):
        codes_in_shard(saved(Image.new("RGB", (2, 1), RED)), table, (1, 2))
    for wrong in (
        {"codes": [0, 1, 2]},
        {"ignored": [9]},
        {"threshold": 0},
        {"threshold": "half"},
        {"values": [[0], [1]]},
    ):
        with pytest.raises(PetsegError, match="threshold is"):
            ClassTable.from_dict({"codes": [0, 1], "threshold": 128, **wrong})


@given(hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 251, 255])))
def test_several_values_may_mean_one_class(values):
    table = ClassTable.from_dict({"codes": [0, 1], "values": [[0], [1, 251, 255]]})
    grey = Image.fromarray(values)
    for image in (grey, grey.convert("RGB"), palette_of(values, [(k, 0, 0) for k in range(256)])):
        assert np.array_equal(codes_in_shard(saved(image), table, values.shape), (values > 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0]], "one list for each of the 2 codes"), ([[0], []], "one list"), ([[0], [0, 1]], "occurs twice"),
        ([[0], [255]], "occurs twice"), ([[0], [256]], "from 0 to 255"),
    ],
)  # fmt: skip
def test_values_are_checked(values, words):
    with pytest.raises(PetsegError, match=words):
        ClassTable.from_dict({"codes": [0, 1], "ignored": [255], "values": values})


def test_the_manifest_does_not_keep_how_masks_were_read():
    table = ClassTable.from_dict({"codes": [0, 1], "values": [[0], [1, 255]]})
    assert "values" not in table.to_dict() and ClassTable.from_dict(table.to_dict()) == table


def test_0_and_1_in_some_and_0_and_255_in_others_are_two_classes():
    zero_one, zero_255 = (Image.fromarray(np.array([[0, value]], np.uint8)) for value in (1, 255))
    found = scan(zero_one, zero_255)
    assert found.class_map() == {
        "codes": [0, 1], "names": ["background", "foreground"], "values": [[0], [1, 255]]
    }  # fmt: skip
    assert "others 0 and 255" in found.remarks()[0]


def test_255_is_void_only_beside_another_foreground():
    apart = scan(*(Image.fromarray(np.array([[0, value]], np.uint8)) for value in (3, 7, 255)))
    assert apart.void() is None and apart.class_map()["codes"] == [0, 3, 7, 255]
    beside = scan(Image.fromarray(np.array([[0, 3, 255]], np.uint8)), Image.fromarray(np.array([[0, 7]], np.uint8)))
    assert beside.void() == 255


# --- files of several pages, and masks of another size


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_a_file_of_several_pages_is_refused(kind):
    page, other = (Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (0, 255))
    buffer = io.BytesIO()
    page.convert("RGB" if kind == "WEBP" else "L").save(buffer, kind, save_all=True, append_images=[other])
    with pytest.raises(RejectError, match="mask holds 2 pages: save each as a file of its own"):
        codes_in_shard(buffer.getvalue(), BINARY, (9, 9))
    with pytest.raises(RejectError, match="image holds 2 pages"):
        normalise(buffer.getvalue(), saved(page), classes=BINARY, short_side=0, quality=90)


def test_a_preview_behind_an_image_is_not_a_page():
    page = Image.fromarray(np.ones((16, 16), np.uint8))
    buffer = io.BytesIO()
    preview = page.resize((4, 4))
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(buffer, "TIFF", save_all=True, append_images=[preview])
    with Image.open(buffer) as image:
        image.seek(1)
        if image.tag_v2.get(254) != 1:
            pytest.skip("this Pillow does not write the tag")
    assert codes_in_shard(buffer.getvalue(), BINARY, (16, 16)).all()


@pytest.mark.parametrize(("size", "fits"), [((40, 60), True), ((160, 240), True), ((53, 80), True), ((40, 64), False)])
def test_masks_of_another_size_are_brought_to_it_when_asked(size, fits):
    codes = np.random.default_rng(0).integers(0, 2, size, dtype=np.uint8)
    photo = saved(Image.new("RGB", (120, 80)))

    def mask_of(*, resize_masks: bool) -> np.ndarray:
        given = {"classes": BINARY, "short_side": 0, "quality": 90, "resize_masks": resize_masks}
        return decode_mask(normalise(photo, saved(Image.fromarray(codes)), **given).mask)

    with pytest.raises(RejectError, match="mask is .*, its image 120x80" + ("; --resize-masks" if fits else "$")):
        mask_of(resize_masks=False)
    if fits:
        assert np.array_equal(mask_of(resize_masks=True), resize_nearest(codes, 80, 120))
    else:
        with pytest.raises(RejectError, match=r"its image 120x80$"):
            mask_of(resize_masks=True)


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
    with pytest.raises(PetsegError, match=r"different colours.*photographs are not masks"):
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
