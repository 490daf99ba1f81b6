"""Folders as people have them: split folders, lists, groups, names that differ, and one folder for both."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petseg.classes import ClassTable
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.plan import make_plan
from petseg.data.sources import TRAINVAL, Listing, Pair
from petseg.data.sources.files import KEY, fit_key
from petseg.data.sources.folder import FolderSource
from petseg.data.sources.lists import ListedSource
from petseg.data.sources.pairing import pair_names
from petseg.data.sources.pattern import PairPattern, match_all
from petseg.data.sources.resolve import resolve_source
from petseg.errors import PetsegError

BINARY = ClassTable.from_dict({"codes": [0, 1], "names": ["rest", "thing"], "ignored": [255]})


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.as_posix().encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.array([0, 1, 255], np.uint8), (20, 10))).save(path)
    return path


def splits_of(listing: Listing) -> dict[str, str | None]:
    return {pair.key: pair.split for pair in listing.pairs}


def reasons(listing: Listing) -> dict[str, str]:
    return {each.key: each.reason for each in listing.rejected}


# --- split folders


@pytest.mark.parametrize(
    "layout", ["images/{split}/{n}.jpg masks/{split}/{n}.png", "{split}/images/{n}.jpg {split}/masks/{n}.png"]
)
@pytest.mark.parametrize("named", ["{root}", "folder:{root}"])
def test_split_folders_are_the_splits(tmp_path, layout, named):
    of_image, of_mask = layout.split()
    for split, count in (("train", 6), ("Val", 3), ("test", 2)):
        for n in range(count):  # the same names in every split
            image(tmp_path / of_image.format(split=split, n=n)), mask(tmp_path / of_mask.format(split=split, n=n))
    source = resolve_source(named.format(root=tmp_path), classes=BINARY)
    report = pack(source, tmp_path / "out", PackOptions(split="official", short_side=0), workers=1)
    assert {name: split.samples for name, split in report.manifest.splits.items()} == {"train": 6, "val": 3, "test": 2}
    assert report.split_by == "folders" and not report.manifest.rejected
    assert splits_of(source.listing())["Val-2"] == "val"


def test_two_folders_with_split_folders_inside(tmp_path):
    for split in ("train", "val"):
        for n in range(3):
            image(tmp_path / "i" / split / f"{n}.jpg"), mask(tmp_path / "m" / split / f"{n}.png")
    listing = resolve_source(f"folder:{tmp_path}/i,{tmp_path}/m", classes=BINARY).listing()
    assert splits_of(listing) == {f"{s}-{n}": s for s in ("train", "val") for n in range(3)}


def test_without_a_val_folder_a_part_of_train_becomes_it(tmp_path):
    for split in ("train", "test"):
        image(tmp_path / "images" / split / "a.jpg"), mask(tmp_path / "masks" / split / "a.png")
    assert splits_of(resolve_source(str(tmp_path)).listing()) == {"train-a": TRAINVAL, "test-a": "test"}


def test_folders_of_which_some_name_no_split_name_none(tmp_path):
    for folder in ("train", "berlin"):
        image(tmp_path / "images" / folder / "a.jpg"), mask(tmp_path / "masks" / folder / "a.png")
    assert set(splits_of(resolve_source(str(tmp_path)).listing()).values()) == {None}


def test_pairs_outside_of_split_folders_are_left_out_and_named(tmp_path):
    for name in ("train/a", "val/b", "c"):
        image(tmp_path / "images" / f"{name}.jpg"), mask(tmp_path / "masks" / f"{name}.png")
    listing = resolve_source(str(tmp_path), classes=BINARY).listing()
    assert splits_of(listing) == {"train-a": "train", "val-b": "val", "c": None} and listing.unlisted == ("c",)


# --- lists


def listed(root: Path, **lists: str) -> ListedSource:
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text)
    source = FolderSource(root / "i", root / "m", BINARY)
    return ListedSource(source, tuple((name, root / f"{name}.txt") for name in lists))


@pytest.fixture
def six(tmp_path):
    for name in ("a", "b", "c", "city/d", "e f", "x.1"):
        image(tmp_path / "i" / f"{name}.jpg"), mask(tmp_path / "m" / f"{name}_mask.png")
    return tmp_path


def test_lists_name_pairs_by_key_or_file(six):
    train = "# made by hand\na\n/gone/i/b.jpg /gone/m/b_mask.png\n\ncity/d.jpg\n"
    listing = listed(six, train=train, val="e f\nx-1\n", test="c_mask\n").listing()
    assert splits_of(listing) == {
        "a": "train",
        "b": "train",
        "city-d": "train",
        "e-f": "val",
        "x-1": "val",
        "c": "test",
    }
    assert listing.split_by == "lists" and not listing.unlisted and not listing.rejected


def test_who_is_on_no_list_is_left_out_and_who_is_not_there_is_named(six):
    listing = listed(six, train="a\nb\nnobody\n").listing()
    assert splits_of(listing)["a"] == TRAINVAL  # a tenth becomes val
    assert listing.unlisted == ("c", "city-d", "e-f", "x-1")
    assert reasons(listing) == {"nobody": "it is on train.txt, but there is no such pair"}


def test_a_line_with_a_folder_never_means_another_folders_file(tmp_path):
    image(tmp_path / "i" / "rome" / "3.jpg"), mask(tmp_path / "m" / "rome" / "3.png")
    image(tmp_path / "i" / "rome" / "4.jpg"), mask(tmp_path / "m" / "rome" / "4.png")
    listing = listed(tmp_path, train="oslo/3\n4\n").listing()
    assert splits_of(listing) == {"rome-3": None, "rome-4": TRAINVAL}
    why = "it is on train.txt, but there is no such pair (rome-3 has that name, in another folder)"
    assert reasons(listing) == {"oslo/3": why}


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "a\n", "val": "a\n"}, r"a is on .*train\.txt and on .*val\.txt"),
        ({"train": "a\n", "val": "q\nr\n"}, r"val\.txt names no pair of .*such as 'q'"),
        ({"train": "\n"}, r"train\.txt names no pair"),
    ],
)
def test_bad_lists(six, lists, words):
    with pytest.raises(PetsegError, match=words):
        listed(six, **lists).listing()


def test_a_list_that_cannot_be_read(six):
    (six / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes.txt", "none.txt"):
        source = ListedSource(FolderSource(six / "i", six / "m", BINARY), (("train", six / name),))
        with pytest.raises(PetsegError, match=f"{name} cannot be read"):
            source.listing()


# --- groups


def keys_listing(keys, split=None) -> Listing:
    return Listing(pairs=tuple(Pair(key=k, image="", mask="", size=1, split=split) for k in sorted(keys)))


def shard_keys(plan, name) -> list[str]:
    return [pair.key for pair in plan.members(name)]


@given(
    st.dictionaries(st.integers(0, 99), st.integers(1, 30), min_size=1, max_size=30),
    st.integers(0, 5),
    st.sampled_from([None, TRAINVAL]),
)
def test_a_group_stays_in_one_split(patients, seed, split):
    keys = [f"p{patient}_{n}" for patient, count in patients.items() for n in range(count)]
    mode = "random" if split is None else "official"
    plan = make_plan(keys_listing(keys, split), mode, seed, 7, r"p(\d+)_")
    home = {}
    for name in plan.sizes:
        for key in shard_keys(plan, name):
            assert home.setdefault(key.split("_")[0], name.split("-")[0]) == name.split("-")[0]
    assert sorted(key for name in plan.sizes for key in shard_keys(plan, name)) == sorted(keys)


def test_groups_keep_the_shares_roughly():
    keys = [f"p{patient}_{n}" for patient in range(200) for n in range(patient % 7 + 1)]
    plan = make_plan(keys_listing(keys), "random", 0, 64, r"p\d+")
    shares = [len(plan.orders[split]) / len(keys) for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.06)


def test_bad_groups():
    for group, words in (("q", "finds nothing in the key a"), ("(", "not a regular expression")):
        with pytest.raises(PetsegError, match=f"--group .*{words}"):
            make_plan(keys_listing("abc"), "random", 0, 8, group)


# --- names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("img_1", "mask_1"), ("img1", "mask1"), ("x_image", "x_label"), ("x", "x_L"), ("x", "x_mask"), ("x", "x-gt"),
        ("0001_sat", "0001_mask"), ("a/b_leftImg8bit", "a/b_gtFine_labelIds"), ("IMG_7", "IMG_7_seg"), ("x", "mask_x"),
        ("IMG_8", "img_8"), ("x", "x.jpg"), ("x_image_1", "x_mask_1"), ("img_3_111", "mask_3_111"),
        ("a (4)", "a (4)_mask_1"),
    ],
)  # fmt: skip
def test_names_that_pair(one, other):
    assert pair_names([one], [other]) == ({one: [other]}, {})


@pytest.mark.parametrize(
    ("one", "other"), [("imgur_1", "1"), ("PIXEL", "PIXE"), ("a/x", "b/x_mask"), ("x1", "x2"), ("unmask", "un")]
)
def test_names_that_do_not(one, other):
    found, left_out = pair_names([one], [other])
    assert not found and left_out == {one: "image without a mask", other: "mask without an image"}


def test_several_masks_of_one_image_are_all_its_own():
    assert pair_names(["a", "b"], ["a_mask", "a_gt", "b_mask"]) == ({"a": ["a_gt", "a_mask"], "b": ["b_mask"]}, {})
    assert pair_names(["a"], ["a", "a_mask", "a_mask_1"]) == ({"a": ["a", "a_mask", "a_mask_1"]}, {})


def test_masks_that_could_belong_to_two_images_are_left_out():
    found, left_out = pair_names(["a_image", "img_a", "b"], ["a_mask", "b"])
    assert found == {"b": ["b"]} and "more than one way" in left_out["a_mask"] and len(left_out) == 3


@given(st.sets(st.text("ab_1L", min_size=1, max_size=4)), st.sets(st.text("ab_1L", min_size=1, max_size=4)))
def test_every_name_is_paired_once_or_said(images, masks):
    found, left_out = pair_names(images, masks)
    assert set(found) | (set(left_out) & images) == images
    paired = [mask for its in found.values() for mask in its]
    assert set(paired) | (set(left_out) & masks) == masks
    assert len(set(paired)) == len(paired) and all(found.values())


def test_a_pattern_pairs_the_rest(tmp_path):
    for day in ("mon", "tue"):
        for n in range(2):
            image(tmp_path / "raw" / day / f"cam{n}.jpg"), mask(tmp_path / "truth" / day / f"cam{n}.final.png")
    image(tmp_path / "raw" / "mon" / "cam9.jpg")
    source = resolve_source(str(tmp_path), classes=BINARY, pair=["raw/**/cam*.jpg=truth/**/cam*.final.png"])
    listing = source.listing()
    assert [p.key for p in listing.pairs] == [f"{day}-{n}" for day in ("mon", "tue") for n in range(2)]
    assert reasons(listing) == {"raw/mon/cam9": "image without a mask"}


def paired(*patterns: str, files: str) -> dict[str, list[str]]:
    return match_all([PairPattern(pattern) for pattern in patterns], files.split()).masks


@pytest.mark.parametrize(
    ("pattern", "files", "masks"),
    [
        ("**/a?.jpg=m/**/?.png", "x/y/a1.jpg m/x/y/1.png m/x/1.png", {"x/y/a1.jpg": ["m/x/y/1.png"]}),
        ("i/*.jpg=m/*.png", "i/x/a.jpg m/x/a.png", {}),
        # Wildcards of one side alone: the mask's folder, the image's ending, an annotator.
        ("*/images/*_*.tif=*/manual/*_manual1.gif", "t/images/1_t.tif t/manual/1_manual1.gif t/manual/2_manual1.gif",
         {"t/images/1_t.tif": ["t/manual/1_manual1.gif"]}),
        ("**/*.jpg=masks/*.png", "a/b/x.jpg c/y.jpg masks/x.png masks/y.png",
         {"a/b/x.jpg": ["masks/x.png"], "c/y.jpg": ["masks/y.png"]}),
        ("*.jpg=*_*.png", "x.jpg x_1stHO.png x_2ndHO.png", {"x.jpg": ["x_1stHO.png", "x_2ndHO.png"]}),
        # Braces: any suffix, and the same folder on both sides.
        ("i/*.{jpg,png}=m/*.{jpg,png}", "i/a.jpg i/b.png m/a.png m/b.png",
         {"i/a.jpg": ["m/a.png"], "i/b.png": ["m/b.png"]}),
        ("{train,val}/i/*.jpg={train,val}/m/*.png", "train/i/a.jpg val/i/a.jpg train/m/a.png val/m/a.png",
         {"train/i/a.jpg": ["train/m/a.png"], "val/i/a.jpg": ["val/m/a.png"]}),
    ],
)  # fmt: skip
def test_patterns(pattern, files, masks):
    assert paired(pattern, files=files) == masks


def test_several_patterns_and_keys_that_would_clash():
    patterns = [PairPattern(f"{split}/*.jpg={split}_m/*.png") for split in ("train", "val")]
    files = ["train/1.jpg", "train_m/1.png", "val/1.jpg", "val_m/1.png", "val/2.jpg", "val_m/2.png"]
    assert match_all(patterns, files).names == {"train/1.jpg": "train/1", "val/1.jpg": "val/1", "val/2.jpg": "2"}


def test_a_file_that_is_a_mask_is_no_image_without_one():
    files = ["train/a.png", "train/b.png", "trainannot/a.png", "trainannot/c.png"]
    found = match_all([PairPattern("*/*.png=*annot/*.png")], files)
    assert found.masks == {"train/a.png": ["trainannot/a.png"]}
    assert found.images_alone == ["train/b.png"] and found.masks_alone == ["trainannot/c.png"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("a.jpg", "give IMAGES=MASKS"), ("a.jpg=a.png", "a wildcard"), ("*/a.jpg=a.png", "a wildcard")],
)
def test_bad_patterns(tmp_path, pattern, words):
    image(tmp_path / "a.jpg")
    with pytest.raises(PetsegError, match=f"--pair .*{words}"):
        resolve_source(str(tmp_path), pair=[pattern])


def test_a_pattern_for_a_source_without_choice(oxford):
    with pytest.raises(PetsegError, match="--pair: synthetic:3 has no choice"):
        resolve_source("synthetic:3", pair=["*.jpg=*.png"])


# --- one folder for both


def test_images_and_masks_side_by_side_in_one_folder(tmp_path):
    image(tmp_path / "a.jpg"), mask(tmp_path / "a.png")
    image(tmp_path / "b.png"), mask(tmp_path / "b_mask.png")
    image(tmp_path / "c.jpg"), image(tmp_path / "d.png")
    for text in (f"folder:{tmp_path},{tmp_path}", f"folder:{tmp_path}"):
        listing = resolve_source(text, classes=BINARY).listing()
        assert {p.key: Path(p.mask).name for p in listing.pairs} == {"a": "a.png", "b": "b_mask.png"}
        assert reasons(listing) == {"c": "image without a mask", "d": "image without a mask"}


def test_one_folder_by_its_full_path_and_the_other_from_here(tmp_path, monkeypatch):
    image(tmp_path / "here" / "i" / "a.jpg"), mask(tmp_path / "m" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    for images, masks in (("i", f"{tmp_path}/m"), (f"{tmp_path}/here/i", "../m"), ("i", "../m")):
        (pair,) = resolve_source(f"folder:{images},{masks}", classes=BINARY).listing().pairs
        assert pair.key == "a" and Path(pair.image).is_file() and Path(pair.mask).is_file()


def test_masks_below_the_images(tmp_path):
    image(tmp_path / "a.png"), mask(tmp_path / "truth" / "a.png")
    listing = FolderSource(tmp_path, tmp_path / "truth", BINARY).listing()
    assert [(p.key, Path(p.mask).parent.name) for p in listing.pairs] == [("a", "truth")] and not listing.rejected


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image(tmp_path / "i" / "a.jpg"), mask(tmp_path / "m" / "a.png")
    assert [p.key for p in resolve_source("folder:~/i,~/m").listing().pairs] == ["a"]


def test_where_nothing_pairs_the_sentence_helps(tmp_path):
    image(tmp_path / "i" / "dog.jpg"), mask(tmp_path / "m" / "cat.png")
    with pytest.raises(PetsegError, match=r"1 images, 1 masks\): such as dog and cat, .*--pair"):
        FolderSource(tmp_path / "i", tmp_path / "m", BINARY).listing()
    image(tmp_path / "j" / "dog.jpg")
    with pytest.raises(PetsegError, match=r"masks in \.bmp.*no JPEG, whose compression changes codes"):
        FolderSource(tmp_path / "i", tmp_path / "j", BINARY).listing()


# --- too many rejects


def test_more_than_half_rejected_is_no_pack(tmp_path):
    for n in range(5):
        image(tmp_path / "i" / f"{n}.jpg")
        (mask if n < 2 else image)(tmp_path / "m" / f"{n}.png")
    source, options = FolderSource(tmp_path / "i", tmp_path / "m", BINARY), PackOptions(split="random", short_side=0)
    with pytest.raises(PetsegError, match=r"3 of 5 were rejected, 2 because .*--allow-rejects"):
        pack(source, tmp_path / "out", options, workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()
    other = PackOptions(split="random", short_side=16)  # what was refused makes way for another try
    with pytest.raises(PetsegError, match="3 of 5 were rejected"):
        pack(source, tmp_path / "out", other, workers=1)
    report = pack(source, tmp_path / "out", options, workers=1, allow_rejects=True)
    assert len(report.rejected) == 3


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=130)


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_names_of_any_script_and_length_have_fit_keys_of_their_own(names):
    names = list({unicodedata.normalize("NFC", name): name for name in names}.values())
    keys = {name: fit_key(name) for name in names}
    assert all(KEY.fullmatch(key) for key in keys.values())
    odd = [key for name, key in keys.items() if not name.isascii() or len(name) > 96]
    assert len(set(odd)) == len(odd)


def test_a_name_has_one_key_in_either_unicode_form():
    assert fit_key("café") == fit_key(unicodedata.normalize("NFD", "café")) and fit_key("café").startswith("cafe-")
    assert fit_key("左0") != fit_key("右0")
    assert fit_key("a/b c") == "a-b-c" and len(fit_key("x" * 200)) == 96


def test_photos_named_in_another_script_pair_and_are_kept(tmp_path):
    for name in ("北京", "上海", "x" * 120):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("L", (20, 20)).save(tmp_path / kind / f"{name}.{suffix}")
    listing = FolderSource(tmp_path / "images", tmp_path / "masks", ClassTable.from_dict({"codes": [0, 1]})).listing()
    assert len(listing.pairs) == 3 and not listing.rejected
    assert {Path(pair.image).stem for pair in listing.pairs} == {"北京", "上海", "x" * 120}
