"""Data sets as people have them, packed as a newcomer would: right, or one sentence that says what to give."""

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from petseg import Manifest, load

BINARY = 'codes = [0, 255]\nnames = ["rest", "thing"]\n'
INDEXED = 'codes = [0, 1]\nnames = ["rest", "thing"]\nignored = [255]\n'


def photo(path: str | Path, seed: int = 0, *, grey: bool = False) -> None:
    """An image that no other has."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    save(path, pixels[..., 0] if grey else pixels)


def shape(seed: int, value: int = 255) -> np.ndarray:
    """A mask with a rectangle whose place depends on the seed."""
    codes = np.zeros((24, 32), np.uint8)
    codes[seed % 12 : seed % 12 + 6, seed * 3 % 20 : seed * 3 % 20 + 8] = value
    return codes


def save(path: str | Path, pixels: np.ndarray) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def masks_in(shards: str | Path) -> dict[str, np.ndarray]:
    """Packed masks by key."""
    found = {}
    for tar in sorted(Path(shards).glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if member.name.endswith(".png"):
                    found[member.name[:-4]] = np.asarray(Image.open(io.BytesIO(file.extractfile(member).read())))
    return found


@pytest.fixture
def pack(petseg):
    """Packs `SOURCE` as it stands into `shards`; returns (exit code, what was said)."""

    def call(source, classes, *options):
        Path("classes.toml").write_text(classes)
        args = ("shard", source, "shards", "--classes", "classes.toml", "--short-side", 0, "--workers", 1, *options)
        code, out, err = petseg(*args)
        return code, " ".join((out + err).split())

    return call


def pairs_of(said: str) -> list[str]:
    """The --pair options of the last proposal in what was said."""
    options: list[str] = []
    for value in re.findall(r"--pair '([^']*)'", said):
        options += ["--pair", value]
    return options


# --- several series of masks


def drive() -> None:
    for split in ("training", "test"):
        for n in range(1, 5):
            photo(f"src/{split}/images/{n:02d}_{split}.tif", n)
            save(f"src/{split}/1st_manual/{n:02d}_manual1.gif", shape(n))
            save(f"src/{split}/mask/{n:02d}_{split}_mask.gif", np.full((24, 32), 255, np.uint8))


def test_a_field_of_view_is_no_truth_in_silence(pack):
    drive()
    code, said = pack("src", BINARY)
    assert code == 2 and not Path("shards").exists()
    assert "could be test/mask/01_test_mask.gif, as its name says, or test/1st_manual/01_manual1.gif" in said
    manual = [option for option in pairs_of(said) if "1st_manual" in option]
    code, said = pack("src", BINARY, *(arg for value in manual for arg in ("--pair", value)))
    assert code == 0 and "split by folders" not in said.replace("│", "")
    assert {key: mask.tolist() for key, mask in masks_in("shards").items()} == {
        f"{split}-images-{n:02d}_{split}": shape(n).tolist() for split in ("training", "test") for n in range(1, 5)
    }


def test_two_annotators(pack):
    for n in range(4):
        (
            photo(f"src/images/{n}.jpg", n),
            save(f"src/masks/{n}_anno1.png", shape(n)),
            save(f"src/masks/{n}_anno2.png", shape(n + 1)),
        )
    code, said = pack("src", BINARY)
    assert code == 2 and "0.jpg has 2 masks (masks/0_anno1.png, masks/0_anno2.png), and 3 more images" in said
    first = pairs_of(said)[:2]
    assert "anno1" in first[1]
    assert pack("src", BINARY, *first)[0] == 0
    assert all((masks_in("shards")[str(n)] == shape(n)).all() for n in range(4))


def cityscapes(*kinds: str) -> None:
    for city, split in (("aachen", "train"), ("zurich", "train"), ("ulm", "val")):
        for n in range(2):
            stem = f"{city}_{n:06d}_000019"
            photo(f"src/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", n)
            for kind in kinds:
                save(f"src/gtFine/{split}/{city}/{stem}_gtFine_{kind}.png", shape(n, 1))


def test_cityscapes_images_for_the_eye_are_left_over(pack):
    cityscapes("labelIds", "instanceIds", "color")
    photo("src/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    code, said = pack("src", INDEXED, "--strict")
    assert code == 0 and "train 4 samples" in said.replace("│ ", "") and len(masks_in("shards")) == 6
    assert "4 files in gtFine/train/aachen, such as aachen_000000_000019_gtFine_color.png: single objects" in said
    assert "1 file in leftImg8bit/test/berlin" in said


def test_two_kinds_of_codes_in_one_folder_are_asked_for(pack):
    cityscapes("labelIds", "labelTrainIds")
    code, said = pack("src", INDEXED)
    assert code == 2 and "has 2 masks" in said and "and 5 more images have several" in said
    chosen = [value for value in pairs_of(said) if value.endswith("labelTrainIds.png")]
    assert chosen == ["leftImg8bit/*/*/*_leftImg8bit.png=gtFine/*/*/*_gtFine_labelTrainIds.png"]
    assert pack("src", INDEXED, "--pair", chosen[0])[0] == 0
    assert {key.split("-")[0] for key in masks_in("shards")} == {"train", "val"}


# --- several masks of one image


def test_several_masks_of_an_image_are_united_or_asked_about(pack):
    for n in range(4):
        photo(f"src/benign/benign ({n}).png", n)
        save(f"src/benign/benign ({n})_mask.png", shape(n))
    save("src/benign/benign (2)_mask_1.png", shape(9))
    code, said = pack("folder:src", BINARY)
    assert code == 2 and not Path("shards").exists()
    assert "benign (2).png has 2 masks (benign/benign (2)_mask.png, benign/benign (2)_mask_1.png)" in said
    assert pack("folder:src", BINARY, "--merge-masks")[0] == 0
    masks = masks_in("shards")
    assert len(masks) == 4 and (masks["benign-benign-2-"] == np.maximum(shape(2), shape(9))).all()


def test_a_folder_of_masks_for_each_image(pack):
    for sample in ("4f2a", "91bc"):
        photo(f"src/{sample}/images/{sample}.png", 1)
        for n, nucleus in enumerate(("aa", "bb", "cc")):
            save(f"src/{sample}/masks/{sample}{nucleus}.png", shape(n * 3))
    code, said = pack("src", BINARY)
    assert code == 2 and "has 3 masks" in said and "--merge-masks" in said
    assert pack("src", BINARY, "--merge-masks", "--allow-rejects")[0] == 0
    united = np.maximum.reduce([shape(n * 3) for n in range(3)])
    assert all((mask == united).all() for mask in masks_in("shards").values())


@pytest.mark.parametrize(("source", "folder"), [("src", "masks"), ("folder:src", "images")])
def test_one_class_a_file_is_united_or_asked_about(pack, source, folder):
    for n in range(5):
        photo(f"src/images/{n}.jpg", n), save(f"src/{folder}/{n}-seg.png", shape(n, 1))
    save(f"src/{folder}/3-fish.png", shape(9, 2))  # of few images: no series
    classes = "codes = [0, 1, 2]\n"
    if folder == "images":
        Path("src/images").rename("src/side")
    code, said = pack(source, classes)
    assert code == 2 and "3.jpg has 2 masks" in said and "3-fish.png" in said
    assert pack(source, classes, "--merge-masks")[0] == 0
    (key,) = (key for key in masks_in("shards") if key.endswith("3"))
    fish, seg = shape(9, 2), shape(3, 1)
    assert (masks_in("shards")[key] == np.where(fish > 0, fish, seg)).all()


def test_masks_that_disagree_are_no_union(pack):
    for n in range(3):
        photo(f"src/images/{n}.jpg", n), save(f"src/masks/{n}_mask.png", shape(n, 1))
    save("src/masks/0_mask_1.png", shape(0, 2))
    code, said = pack("src", "codes = [0, 1, 2]\n", "--merge-masks", "--allow-rejects")
    assert code == 0 and "rejected 0: masks disagree: in column 0, row 0 they hold 1 and 2" in said


# --- what is left over, lists that are there, and looking before packing


def voc() -> None:
    for n in range(12):
        photo(f"src/JPEGImages/2007_{n:06d}.jpg", n)
        if n < 5:
            save(f"src/SegmentationClass/2007_{n:06d}.png", shape(n, 1))
            save(f"src/SegmentationObject/2007_{n:06d}.png", shape(n, 1))
    lists = Path("src/ImageSets/Segmentation")
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000000\n2007_000001\n2007_000002\n")
    (lists / "val.txt").write_text("2007_000003\n2007_000011\n")


def test_voc_packs_by_its_own_lists(pack):
    voc()
    code, said = pack("src", INDEXED, "--strict")
    assert code == 0 and "in train 3, val 1 (lists)" in said
    assert "ImageSets/Segmentation/train.txt" in said
    assert "7 files in JPEGImages, such as 2007_000005.jpg: image without a mask" in said
    assert "5 files in SegmentationObject, such as 2007_000000.png: single objects" in said
    assert "1 file in val.txt, such as 2007_000011: on this list, but there is no such pair" in said
    manifest = Manifest.load(Path("shards"))
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    assert not manifest.rejected


def test_a_random_split_does_not_ask_lists_that_were_found(pack):
    voc()
    assert pack("src", INDEXED, "--split", "random")[0] == 0
    assert len(masks_in("shards")) == 5


def test_a_dry_run_says_what_pairs_and_packs_nothing(pack):
    for n in range(3):
        photo(f"src/images/{n}.jpg", n), save(f"src/masks/{n}.png", shape(n, 1))
    photo("src/images/alone.jpg"), save("src/masks/widow.png", shape(1))
    code, said = pack("src", INDEXED, "--dry-run")
    assert code == 0 and not Path("shards").exists()
    assert "Found 3 pairs by name: images in src/images (3) masks in src/masks (3) 0: src/images/0.jpg with" in said
    assert "Left over: 1 file in images, such as alone.jpg: image without a mask" in said
    assert "Without a partner, or with an unusable name: 1, such as widow: mask without an image" in said


def soft() -> None:
    for n in range(6):
        photo(f"src/images/{n}.jpg", n)
        save(f"src/masks/{n}.png", np.asarray(Image.fromarray(shape(n)).filter(ImageFilter.GaussianBlur(1.2))))


def deep() -> None:
    for n in range(4):
        save(f"src/images/{n}.png", stripes(n, 4080).astype(np.uint16)), save(f"src/masks/{n}.png", shape(n))


def lost() -> None:
    for n in range(6):
        photo(f"src/images/{n}.jpg", n), save(f"src/masks/{n}.png", np.zeros((24, 32), np.uint8))


@pytest.mark.parametrize(
    ("draw", "code", "words"),
    [
        (soft, 2, "are these soft edges? threshold = 128 in the class map takes them"),
        (deep, 0, "Images of more than 8 bits: values 0 to 4095 are mapped to 0 to 255"),
        (drive, 2, "could be test/mask/01_test_mask.gif, as its name says, or test/1st_manual/01_manual1.gif"),
        (lost, 2, "no mask holds thing, which the class map has"),
    ],
    ids=["masks", "images", "pairs", "lost"],
)
def test_a_process_of_its_own(draw, code, words):
    draw()
    Path("classes.toml").write_text(BINARY)
    command = [Path(sys.executable).with_name("petseg-shard"), "src", "shards", "--classes", "classes.toml"]
    done = subprocess.run([*command, "--short-side", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert words in " ".join((done.stdout + done.stderr).split()) and "Traceback" not in done.stderr
    assert Path("shards/manifest.json").exists() == (code == 0)


def test_a_layout_that_no_rule_knows_gets_an_option_that_works(pack):
    for n in range(4):
        (
            photo(f"src/ISIC_Input/ISIC_{n:07d}.jpg", n),
            save(f"src/ISIC_GroundTruth/ISIC_{n:07d}_segmentation.png", shape(n)),
        )
    code, said = pack("src", BINARY)
    assert code == 2 and "has no folders named images and masks; these fit together" in said
    assert pairs_of(said) == ["--pair", "ISIC_Input/*.jpg=ISIC_GroundTruth/*_segmentation.png"]
    assert pack("src", BINARY, *pairs_of(said))[0] == 0 and len(masks_in("shards")) == 4


def test_camvids_layout_gets_options_that_work_together(pack):
    for split in ("train", "val"):
        for n in range(3):
            photo(f"src/{split}/{split}{n}.png", n), save(f"src/{split}annot/{split}{n}.png", shape(n, 1))
    code, said = pack("src", INDEXED)
    assert code == 2 and pairs_of(said)[1::2] == ["train/*.png=trainannot/*.png", "val/*.png=valannot/*.png"]
    code, said = pack("src", INDEXED, *pairs_of(said))
    assert code == 0 and "in train 3, val 3 (folders)" in said


def test_images_side_by_side_get_the_word_that_packs_them(pack):
    for n in range(3):
        photo(f"src/a/{n}.jpg", n), save(f"src/a/{n}.png", shape(n))
    code, said = pack("src", BINARY)
    assert code == 2 and "folder:src pairs 3 of its files" in said
    assert pack("folder:src", BINARY)[0] == 0


def test_one_series_beside_its_images_gets_an_option_that_works(pack):
    for n in range(4):
        photo(f"src/im{n}.png", n), save(f"src/im{n}_truth.png", shape(n))
    code, said = pack("folder:src", BINARY)
    assert code == 2
    assert pack("folder:src", BINARY, *pairs_of(said))[0] == 0
    assert all((masks_in("shards")[key] == shape(int(key[-1]))).all() for key in masks_in("shards"))


def test_links_to_folders_are_followed_but_not_in_circles(pack):
    for n in range(3):
        photo(f"disk/x/{n}.jpg", n), save(f"disk/y/{n}.png", shape(n))
    Path("src").mkdir()
    Path("src/images").symlink_to("../disk/x", target_is_directory=True)
    Path("src/masks").symlink_to("../disk/y", target_is_directory=True)
    Path("disk/x/again").symlink_to(".", target_is_directory=True)
    code, said = pack("src", BINARY)
    assert code == 0 and "Found 3 pairs" in said


# --- tars made elsewhere


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def sample(n: int) -> tuple[bytes, bytes]:
    """(JPEG, mask)."""
    return encoded(np.random.default_rng(n).integers(0, 256, (24, 32, 3), dtype=np.uint8), "JPEG"), encoded(shape(n))


def tar_of(path: str, *members: tuple[str, bytes | str]) -> None:
    """A tar of files; a member of text is a hard link to the member of that name."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.LNKTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_members_of_a_sample_need_not_stand_together(pack):
    files = [sample(n) for n in range(4)]
    jpegs, masks = ([(f"{n}.{e}", pair[i]) for n, pair in enumerate(files)] for i, e in enumerate(("jpg", "png")))
    tar_of("src/a.tar", *jpegs, *masks)
    code, said = pack("tars:src/*.tar", BINARY, "--strict")
    assert code == 0 and "Found 4 pairs" in said
    assert all((mask == shape(int(key))).all() for key, mask in masks_in("shards").items())


def test_tars_in_split_folders_and_keys_that_restart(pack):
    for number, (folder, count) in enumerate({"train/0": 3, "train/1": 3, "test/0": 2}.items()):
        files = [
            (f"{n:03d}.{e}", sample(10 * number + n)[i]) for n in range(count) for i, e in enumerate(("jpg", "png"))
        ]
        tar_of(f"src/{folder}.tar", *files)
    code, said = pack("tars:src/*/*.tar", BINARY)
    assert code == 0 and "in trainval 6, test 2 (names of tars)" in said and "stand before keys" in said
    masks = masks_in("shards")
    assert len(masks) == 8 and (masks["train-1-002"] == shape(12)).all() and (masks["test-0-001"] == shape(21)).all()


def test_a_sample_that_stands_in_two_tars_is_taken_once(pack):
    members = [(f"{n}.{e}", sample(n)[i]) for n in range(4) for i, e in enumerate(("jpg", "png"))]
    tar_of("src/a.tar", *members), tar_of("src/b.tar", *members[:2])
    code, said = pack("tars:src/*.tar", BINARY)
    assert code == 0 and "Found 4 pairs" in said and "b.tar:0: its key occurs twice (also in src/a.tar)" in said


def test_odd_members_are_taken_right_or_named(pack):
    jpeg, mask = zip(*(sample(n) for n in range(6)), strict=True)
    tar_of(
        "src/a.tar",
        *((f"scan.{n}.{e}", data[n]) for n in (0, 1) for e, data in (("jpg", jpeg), ("png", mask))),
        ("2.jpg", jpeg[2]), ("2.png", mask[2]), ("2.jpg", jpeg[3]),
        ("4.jpg", jpeg[4]), ("4.png", mask[4]), ("5.jpg", jpeg[5]), ("5.png", "4.png"),
    )  # fmt: skip
    code, said = pack("tars:src/*.tar", BINARY)
    assert code == 0 and "a.tar:2: it holds 2.jpg twice" in said
    masks = masks_in("shards")
    assert {key: mask.tolist() for key, mask in masks.items()} == {
        "scan-0": shape(0).tolist(), "scan-1": shape(1).tolist(), "4": shape(4).tolist(), "5": shape(4).tolist()
    }  # fmt: skip


# --- images of more than 8 bits, or of other bands


def stripes(n: int, top: float) -> np.ndarray:
    """An image whose values reach from 0 to its top."""
    y, x = np.mgrid[:24, :32]
    return ((x * 8 + y * 3 + n * 40) % 256) / 255 * top


def image_in(shards: str, key: str) -> np.ndarray:
    """A packed image."""
    for tar in sorted(Path(shards).glob("*.tar")):
        with tarfile.open(tar) as file:
            if f"{key}.jpg" in file.getnames():
                return np.asarray(Image.open(io.BytesIO(file.extractfile(f"{key}.jpg").read())))
    raise KeyError(key)


@pytest.mark.parametrize(("top", "kind"), [(4080, np.uint16), (0.5, np.float32), (1000, np.int32), (65535, np.uint16)])
def test_deep_images_keep_their_contrast_and_the_range_is_said(pack, top, kind):
    for n in range(4):
        save(f"src/images/{n}.tif", (stripes(n, top) * (0.3 if n == 3 else 1)).astype(kind))
        save(f"src/masks/{n}.png", shape(n))
    code, said = pack("src", BINARY)
    assert code == 0 and "Images of more than 8 bits: values 0 to " in said
    low, high = Manifest.load(Path("shards")).encoding.tones.range
    assert low == 0 and top <= high <= 1.05 * top
    for n in range(4):  # one range for all: the dark one stays dark
        wanted = stripes(n, 255) * (0.3 if n == 3 else 1)
        assert np.abs(image_in("shards", str(n))[..., 0] - wanted).mean() < 8


def test_the_range_is_the_sets_own_for_any_workers(pack):
    for n in range(4):
        save(f"src/images/{n}.png", stripes(n, 4000 - 900 * n).astype(np.uint16)), save(f"src/masks/{n}.png", shape(n))
    assert pack("src", BINARY)[0] == 0
    Path("shards").rename("first")
    assert pack("src", BINARY, "--workers", 2)[0] == 0
    for path in Path("first").iterdir():
        assert (Path("shards") / path.name).read_bytes() == path.read_bytes()
    Path("shards").rename("second")
    code, said = pack("src", BINARY, "--range", "p1", "p99")
    assert code == 0, said
    assert Manifest.load(Path("shards")).encoding.tones.range != (0, 4000)
    Path("shards").rename("third")
    assert pack("src", BINARY, "--range", 0, 8000)[0] == 0
    assert image_in("shards", "0").max() < 140
    assert pack("src", BINARY, "--range", 5, "p9")[0] == 2


def test_a_fourth_band_is_asked_about(pack):
    for n in range(3):
        four = np.random.default_rng(n).integers(0, 256, (24, 32, 4), dtype=np.uint8)
        save(f"src/images/{n}.tif", four), save(f"src/masks/{n}.png", shape(n))
    code, said = pack("src", BINARY)
    assert code == 2 and "has 4 bands: give --bands" in said
    code, said = pack("src", BINARY, "--bands", "1,2,3", "--quality", 100)
    assert code == 0 and Manifest.load(Path("shards")).encoding.tones.bands == (1, 2, 3)
    four = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    assert abs(image_in("shards", "0").mean() - four[..., :3].mean()) < 3


def test_prediction_scales_deep_photos_as_packing_did(pack, petseg):
    for n in range(6):
        save(f"src/images/{n}.png", stripes(n, 4000).astype(np.uint16)), save(f"src/masks/{n}.png", shape(n))
    assert pack("src", BINARY, "--range", 0, 4000)[0] == 0
    options = "--size 32 --width 4 --depth 2 --batch-size 2 --epochs 1 --amp off --device cpu --gallery 0 --run-dir run"
    assert petseg("train", "--shards", "shards", *options.split())[0] == 0
    segmenter = load("run", device="cpu")
    eight = np.repeat(np.rint(stripes(1, 4000).astype(np.uint16) / 4000 * 255).astype(np.uint8)[..., None], 3, axis=2)
    for image in ("src/images/1.png", Image.open("src/images/1.png")):
        assert (segmenter.probabilities(image) == segmenter.probabilities(eight)).all()


# --- copies


def test_copies_in_two_splits_are_named_with_the_group_that_keeps_them_together(pack):
    for n in range(12):
        smooth = np.asarray(
            Image.fromarray(np.random.default_rng(n).integers(0, 256, (6, 8), np.uint8)).resize((64, 48))
        )
        save(f"src/train/image/{n}.png", smooth), save(f"src/train/label/{n}.png", np.resize(shape(n), (48, 64)))
        (
            save(f"src/train/aug/image_{n}_1.png", smooth[:, ::-1]),
            save(f"src/train/aug/mask_{n}_1.png", np.resize(shape(n), (48, 64))),
        )
        save(f"src/test/{n}.png", smooth)
    code, said = pack("src", BINARY)
    assert (
        code == 0 and "10 files in test" not in said and "12 files in test, such as 0.png: image without a mask" in said
    )
    assert (
        "Copies of one image (as it is, flipped, or augmented by name) stand in two splits" in said
        and "--group '(\\d+)' keeps them" in said
    )
    Path("shards").rename("first")
    code, said = pack("src", BINARY, "--group", r"(\d+)")
    assert code == 0 and "Copies of" not in said


# --- packs that lose something


def many(count: int, broken: Callable[[int], bool], kind: str) -> None:
    """Pairs of which some are broken in one way: a code that no class has, another size, or half a file."""
    for n in range(count):
        photo(f"src/images/{n:03d}.jpg", n), save(f"src/masks/{n:03d}.png", shape(n, 1))
        if not broken(n):
            continue
        if kind == "code":
            save(f"src/masks/{n:03d}.png", shape(n, 7))
        elif kind == "size":
            save(f"src/masks/{n:03d}.png", np.zeros((9, 9), np.uint8))
        else:
            path = Path(f"src/masks/{n:03d}.png")
            path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("code", r"nearly all for one reason, 000 because mask holds unknown codes 7: give a class map"),
        ("size", r"nearly all for one reason, 000 because mask is 9x9, its image 32x24"),
        ("half", r"nearly all for one reason, 000 because mask is damaged .*: fetch or copy the masks again"),
    ],
)
def test_many_rejects_of_one_kind_stop_a_pack(pack, kind, words):
    many(99, lambda n: n % 8 == 0, kind)
    code, said = pack("src", INDEXED)
    assert code == 2 and re.search("13 of 99 were rejected, " + words, said), said
    assert not Path("shards/manifest.json").exists()
    code, _ = pack("src", INDEXED, "--allow-rejects")
    assert code == 0 and len(masks_in("shards")) == 86


def test_the_first_shards_are_judged_and_what_was_packed_stays(pack):
    many(240, lambda n: n % 3 != 0, "code")
    code, said = pack("src", INDEXED, "--samples-per-shard", 40)
    assert code == 2 and re.search(
        r"after 1\d\d of 240 samples, \d+ of 1\d\d were rejected, .* because mask holds", said
    )
    shards = sorted(path.name for path in Path("shards").glob("*.tar"))
    assert 2 <= len(shards) < 6
    code, said = pack("src", INDEXED, "--samples-per-shard", 40, "--allow-rejects")
    assert code == 0 and f"{len(shards)} shards were finished by an earlier run" in said


def test_a_refused_pack_makes_way_for_another_try(pack):
    many(30, lambda n: n % 2 == 0, "code")
    save("src/masks/029.png", shape(1, 7))
    assert pack("src", INDEXED)[0] == 2
    assert pack("src", "codes = [0, 1, 7]\n", "--samples-per-shard", 5)[0] == 0
    assert len(masks_in("shards")) == 30 and not Path("shards/.packing").exists()


def test_one_class_of_files_that_is_all_rejected_is_named(pack):
    for n in range(40):
        photo(f"src/images/{n:03d}.{'png' if n < 5 else 'jpg'}", n), save(f"src/masks/{n:03d}.png", shape(n, 1))
    for n in range(5):
        save(f"src/images/{n:03d}.png", np.random.default_rng(n).integers(0, 256, (24, 32, 4), dtype=np.uint8))
    code, said = pack("src", INDEXED)
    assert code == 2 and "all 5 images that end in .png were rejected, 000 because image has a fourth band" in said
    assert pack("src", INDEXED, "--bands", "1,2,3")[0] == 0 and len(masks_in("shards")) == 40


def test_a_class_without_a_pixel_is_no_pack_unless_it_is_allowed(pack):
    many(6, lambda n: False, "code")
    classes = 'codes = [0, 1, 2]\nnames = ["rest", "thing", "gone"]\n'
    code, said = pack("src", classes)
    assert code == 2 and "no mask holds gone, which the class map has" in said
    assert pack("src", classes, "--allow-rejects")[0] == 0 and len(masks_in("shards")) == 6


def test_structures_that_become_too_thin_are_said(pack):
    for n in range(4):
        vessels = np.zeros((400, 600), np.uint8)
        vessels[:, 20 + n :: 97] = 1
        vessels[30 + n :: 101] = 1
        save(f"src/masks/{n}.png", vessels)
        save(f"src/images/{n}.jpg", np.random.default_rng(n).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    code, said = pack("src", INDEXED)
    assert code == 0 and "--short-side" not in said
    Path("shards").rename("whole")
    code, said = pack("src", INDEXED, "--short-side", 64)
    assert code == 0 and re.search(
        r"--short-side 64 thins thing: 1\.\d+% of the pixels before and .* its mean width is now 0\.\d+ pixels", said
    ), said


# --- names of classes


def test_class_maps_take_names_from_annotation_tools(petseg):
    save("cvat/SegmentationClass/a.png", np.array([[[0, 0, 0], [250, 50, 83], [51, 221, 255]]], np.uint8))
    Path("cvat/labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n"
    )
    code, out, _ = petseg("classes", "cvat/SegmentationClass")
    assert code == 0 and 'names = ["background", "dog", "cat"]' in out and "3 names of classes come from" in out
    save("flow/train/x_mask.png", np.array([[0, 1, 2]], np.uint8))
    Path("flow/train/_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, leaf\n9, rare\n")
    code, out, _ = petseg("classes", "flow")
    assert code == 0 and 'names = ["ground", "leaf", "class 2"]' in out and "2 names of classes" in out
    save("camvid/labels/x.png", np.array([[[64, 128, 64], [192, 0, 128]]], np.uint8))
    Path("camvid/label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\t\tArchway\n")
    assert 'names = ["Animal", "Archway"]' in petseg("classes", "camvid/labels")[1]
    Path("camvid/label_colors.txt").unlink()
    Path("camvid/class_dict.csv").write_text("name,r,g,b\nAnimal,64,128,64\nArchway,192,0,128\n")
    assert 'names = ["Animal", "Archway"]' in petseg("classes", "camvid/labels")[1]
