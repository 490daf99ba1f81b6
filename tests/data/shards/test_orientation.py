"""Images that EXIF turns: masks that were drawn upright, or in the stored frame, and what tells which."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg import Manifest
from petseg.classes import ClassTable
from petseg.cli.app import run, shard_app
from petseg.data.decode.image_files import turned
from petseg.data.shards.options import PackOptions
from petseg.data.shards.pack import pack
from petseg.data.shards.reader import ShardReader
from petseg.data.sources.folder import FolderSource
from petseg.errors import PetsegError

CLASSES = ClassTable.from_dict({"codes": [0, 1]})


def drawing(height: int, width: int) -> np.ndarray:
    """A mask that looks another way after any turn or flip."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 3] = 1
    mask[: height // 4, : width // 2] = 1
    return mask


def write(root: Path, key: str, orientation: int, size: tuple[int, int], frame: str, *, tagged: bool = False) -> None:
    """An image with an orientation whose upright image has `drawing` as its mask, saved in one of the frames."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    upright = drawing(*size)
    stored = turned(upright, back)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.repeat(stored[..., None] * 200, 3, axis=2)).save(root / "images" / f"{key}.jpg", exif=exif)
    mask = Image.fromarray(upright if frame == "upright" else stored)
    mask.save(root / "masks" / f"{key}.png", **({"exif": exif} if tagged else {}))


def packed(root: Path, **options) -> dict[str, np.ndarray]:
    """Masks by key, once each image was found to show what its mask does."""
    source = FolderSource(root / "images", root / "masks", CLASSES)
    pack(source, root / "shards", PackOptions(split="random", short_side=0, **options), workers=1)
    manifest, found = Manifest.load(root / "shards"), {}
    for split in manifest.splits:
        reader = ShardReader(root / "shards", manifest, split)
        for index in range(len(reader)):
            image, codes = reader.decoded(index)
            assert ((image[..., 0] > 100) == codes).mean() > 0.97, f"{reader.key(index)} is turned another way"
            found[reader.key(index)] = codes
        reader.close()
    return found


@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_pairs_whose_size_tells_speak_for_the_others(tmp_path, frame):
    write(tmp_path, "plain", 1, (40, 60), "upright")
    write(tmp_path, "tells", 6, (40, 60), frame)
    for orientation in (2, 3, 4):
        write(tmp_path, f"same-{orientation}", orientation, (40, 60), frame)
    for orientation in (5, 6, 7, 8):
        write(tmp_path, f"square-{orientation}", orientation, (50, 50), frame)
    found = packed(tmp_path)
    assert len(found) == 9
    assert all(np.array_equal(codes, drawing(*codes.shape)) for codes in found.values())


@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_where_nothing_tells_it_is_asked(tmp_path, frame, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, (orientation, size) in enumerate([(3, (40, 60)), (6, (50, 50))] * 5):
        write(tmp_path, f"p{number}", orientation, size, frame)
    (tmp_path / "classes.toml").write_text("codes = [0, 1]\n")
    command = [str(tmp_path), "out", "--classes", "classes.toml", "--short-side", "0", "--workers", "1"]
    assert run(shard_app, "petseg-shard", command) == 2
    said = capsys.readouterr().err
    assert "p0 is turned by its EXIF orientation" in said and "no other pair of the set tells" in said
    assert "--mask-orientation upright (drawn on what a viewer shows) or stored" in said
    assert not (tmp_path / "out").exists()
    assert run(shard_app, "petseg-shard", [*command, "--mask-orientation", frame]) == 0
    assert len(packed(tmp_path, mask_orientation=frame)) == 10


def test_pairs_that_contradict_each_other_are_named(tmp_path):
    write(tmp_path, "one", 6, (40, 60), "upright")
    write(tmp_path, "two", 8, (40, 60), "stored")
    assert len(packed(tmp_path)) == 2  # each tells for itself
    write(tmp_path, "three", 3, (40, 60), "stored")
    (tmp_path / "shards").rename(tmp_path / "before")
    words = r"three is turned.*the mask of one is drawn on the upright image, that of two in the stored frame"
    with pytest.raises(PetsegError, match=words):
        packed(tmp_path)


def test_a_masks_own_exif_tells(tmp_path):
    for orientation in (2, 3, 4):
        write(tmp_path, f"p{orientation}", orientation, (40, 60), "stored", tagged=True)
    write(tmp_path, "untagged", 3, (40, 60), "stored")
    assert len(packed(tmp_path)) == 4


def test_a_header_that_is_longer_than_the_head_is_read_in_full(tmp_path, monkeypatch):
    write(tmp_path, "tells", 6, (40, 60), "upright")
    write(tmp_path, "p", 3, (40, 60), "upright")
    monkeypatch.setattr("petseg.data.sources.files.HEADER_BYTES", 40)
    assert len(packed(tmp_path)) == 2
