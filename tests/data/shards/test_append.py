"""Adding to a finished pack: what is there stays where it is, whatever happens on the way."""

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg import Manifest, RemoteShards
from petseg.classes import OXFORD, ClassTable
from petseg.data.shards import manifest as manifest_module
from petseg.data.shards.added import Base, base_of
from petseg.data.shards.adopt import adopt
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import FolderOutput, output_of
from petseg.data.shards.pack import PackReport, pack
from petseg.data.shards.parts import finish, pack_part, status
from petseg.data.shards.verify import verify
from petseg.data.sources import Source
from petseg.data.sources.files import WORK_FOLDER
from petseg.data.sources.folder import FolderSource
from petseg.data.sources.oxford import OxfordSource
from petseg.data.sources.synthetic import SyntheticSource
from petseg.errors import PetsegError, RefusedError
from tests.data.shards.test_pack import content, keys
from tests.servers import s3_server

SMALL = PackOptions(split="random", short_side=48, samples_per_shard=7)
FEW, MORE = (SyntheticSource(count, min_side=60, max_side=80) for count in (60, 90))
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("few") / "out"
    pack(FEW, out, SMALL, workers=1)
    return out


@pytest.fixture
def out(few, tmp_path) -> Path:
    return shutil.copytree(few, tmp_path / "out")


def add(source: Source, out: Path | str, options: PackOptions = SMALL, **more) -> PackReport:
    return pack(source, out, options, workers=1, base=base_of(output_of(out)), **more)


def tars(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(folder).items() if name.endswith((".tar", ".idx"))}


def homes(folder: Path) -> dict[str, str]:
    return {key: split for split in Manifest.load(folder).splits for key in keys(folder, split)}


def test_what_is_new_comes_beside_what_is_there(few, out, tmp_path):
    before = Manifest.load(out)
    report = add(MORE, out)
    after = Manifest.load(out)
    assert tars(few).items() <= tars(out).items() and after == report.manifest and verify(out, after) == []
    assert (report.there, sum(split.samples for split in after.splits.values())) == (60, 90)
    assert homes(few).items() <= homes(out).items()
    pack(MORE, tmp_path / "both", SMALL, workers=1)
    assert homes(out) == homes(tmp_path / "both"), "who is added goes where a pack of all would put them"
    both = Manifest.load(tmp_path / "both")
    assert after.pixel_counts == both.pixel_counts and after.max_height == both.max_height
    assert (after.mean, after.std) == (before.mean, before.std)
    assert after.source_digest not in {before.source_digest, both.source_digest}
    for split in before.splits:
        assert list(after.splits[split].shards)[: len(before.splits[split].shards)] == list(before.splits[split].shards)
    assert not (out / WORK_FOLDER).exists()


def test_it_can_be_added_to_again_and_again(out, tmp_path):
    for count in (70, 71, 90):
        add(replace(MORE, n=count), out)
    assert verify(out, Manifest.load(out)) == []
    pack(MORE, tmp_path / "both", SMALL, workers=1)
    assert homes(out) == homes(tmp_path / "both")
    with pytest.raises(PetsegError, match="all of its samples are in"):
        add(MORE, out)


def command(out: Path, source: str, *more: str) -> list[str]:
    return [str(Path(sys.executable).with_name("petseg-shard")), source, str(out), "--workers", "1", *more]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, environment) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "out"
    subprocess.run(command(out, "synthetic:40", "--short-side", "64", "--samples-per-shard", "4"), env=environment,
                   check=True, capture_output=True)  # fmt: skip
    return out


@pytest.mark.slow
def test_killed_at_any_moment_the_set_is_whole_and_the_same_command_resumes(drawn, tmp_path, environment):
    arguments = ("synthetic:80", "--append", "--samples-per-shard", "4")
    moments, done = random.Random(0), shutil.copytree(drawn, tmp_path / "done")
    said = subprocess.run(command(done, *arguments), env=environment, check=True, capture_output=True, text=True).stdout
    assert "40 pairs of synthetic:80 are in" in said and "40 are new" in said
    again = subprocess.run(
        command(done, *arguments), env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "0 are new" in again
    out, kills = shutil.copytree(drawn, tmp_path / "out"), 0
    for shards in (0, 1, 3, 6):
        process = subprocess.Popen(command(out, *arguments), env=environment, stdout=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(out.glob(f"{WORK_FOLDER}/*.tar.json"))) < shards:
            time.sleep(0.001)
        time.sleep(moments.random() / 100)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert verify(out, Manifest.load(out)) == [], "it can be read at any time"
        assert tars(drawn).items() <= tars(out).items()
    assert kills >= 2
    subprocess.run(command(out, *arguments), env=environment, check=True, capture_output=True)
    assert content(out) == content(done)


def test_killed_when_all_was_written_it_is_finished(out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FolderOutput, "clear", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(replace(MORE, n=70), out)
    assert (out / WORK_FOLDER).exists() and status(output_of(out)).finished
    assert verify(out, Manifest.load(out)) == [] and sum(s.samples for s in Manifest.load(out).splits.values()) == 70
    add(MORE, out)
    assert verify(out, Manifest.load(out)) == [] and not (out / WORK_FOLDER).exists()


def test_of_two_at_once_one_is_refused(out):
    late = base_of(output_of(out))
    add(replace(MORE, n=70), out)
    with pytest.raises(PetsegError, match="was added to by another run: run the same command again"):
        pack(MORE, out, SMALL, workers=1, base=late)
    assert verify(out, Manifest.load(out)) == []


def test_parts_add_too_and_say_how_far_they_are(few, out, tmp_path):
    whole = shutil.copytree(few, tmp_path / "whole")
    add(MORE, whole)
    base = base_of(output_of(out))
    pack_part(MORE, out, SMALL, (1, 2), workers=1, base=base)
    state = status(output_of(out))
    assert not state.finished and 0 < len(state.missing) < state.shards
    with pytest.raises(PetsegError, match="unfinished pack of what is added to it"):
        pack(MORE, out, SMALL, workers=1)
    with pytest.raises(PetsegError, match="shards are missing"):
        finish(MORE, out, SMALL, base=base)
    pack_part(MORE, out, SMALL, (2, 2), workers=1, base=base)
    finish(MORE, out, SMALL, base=base)
    assert content(out) == content(whole) and status(output_of(out)).finished


def test_a_store_is_added_to(out, tmp_path):
    add(MORE, out)
    store = "s3://bucket/set"
    with s3_server():
        pack(FEW, store, SMALL, workers=1)
        report = add(MORE, store)
        assert report.manifest == Manifest.load(out)
        assert verify(RemoteShards(store, tmp_path / "cache"), report.manifest) == []


def test_columns_are_replaced_when_the_manifest_is(few, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "COLUMNS_FROM", 3)
    out = tmp_path / "out"
    pack(FEW, out, SMALL, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(FolderOutput, "remove", lambda _, names: (_ for _ in names and ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(replace(MORE, n=70), out)
    assert len(list(out.glob("shards-*.npz"))) == 2 and verify(out, Manifest.load(out)) == []
    add(MORE, out)
    assert verify(out, Manifest.load(out)) == []
    assert len(list(out.glob("shards-*.npz"))) == 2, "the one that a kill left, and its own"


OTHER = ClassTable.from_dict({"codes": [1, 2, 3], "names": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"short_side": 128}, "--short-side 128: .* was packed with 48"),
        ({"encoding": "ppm"}, "--encoding ppm: .* was packed with jpeg"),
        ({"quality": 50}, "--quality 50: .* was packed with 90"),
        ({"seed": 5}, "--seed 5: .* was packed with 0"),
        ({"group": r"\d"}, r"--group \\d: .* was packed with None"),
        ({"bands": (1,)}, r"--bands \(1,\): "),
        ({"percentiles": (1.0, 99.0)}, "--range: .* has one already"),
    ],
)
def test_what_would_not_fit_is_refused(few, out, change, words):
    with pytest.raises(PetsegError, match=words):
        add(MORE, out, replace(SMALL, **change))
    assert content(out) == content(few)


def test_what_is_no_finished_pack_is_refused(out, tmp_path, oxford):
    with pytest.raises(PetsegError, match="holds no finished pack"):
        add(MORE, tmp_path / "nothing")
    tars_alone = tmp_path / "tars"
    tars_alone.mkdir()
    shutil.copyfile(next(out.glob("train-*.tar")), tars_alone / "of-others.tar")
    adopt(tars_alone, OXFORD)
    with pytest.raises(PetsegError, match="were made by another tool"):
        add(MORE, tars_alone)
    folders = FolderSource(oxford / "images", oxford / "annotations" / "trimaps", OTHER)
    with pytest.raises(PetsegError, match="has the classes pet, background, border, what is added a, b, c"):
        add(folders, out)


def test_one_that_loses_too_much_leaves_the_set_as_it_is(few, out, oxford_copy):
    for image in (oxford_copy / "images").glob("*.jpg"):
        image.write_bytes(b"nothing")
    options = replace(SMALL, split="official")
    with pytest.raises(RefusedError, match="no pair is left to pack"):
        add(OxfordSource(oxford_copy), out, options)
    assert content(out) == content(few)
    add(MORE, out)
    assert verify(out, Manifest.load(out)) == [] and not (out / WORK_FOLDER).exists()


@pytest.mark.parametrize("mode", ["official", "random"])
def test_a_patient_stays_in_one_split(tmp_path, mode):
    """Also where lists dealt the first of them out by number, not by a hash."""

    def scans(root: Path, each: range) -> FolderSource:
        for patient in range(24):
            for number in each:
                for kind in ("images", "masks"):
                    folder = "test" if mode == "official" and patient % 4 == 0 else "train"
                    path = root / kind / folder / f"p{patient:02d}_{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels = np.full((20, 20), patient % 3 + 1, np.uint8)
                    Image.fromarray(pixels if kind == "masks" else np.dstack([pixels * 60] * 3)).save(path)
        return FolderSource(root / "images", root / "masks", OXFORD)

    options, out = PackOptions(split=mode, short_side=0, samples_per_shard=5, group="p[0-9]+"), tmp_path / "out"
    pack(scans(tmp_path / "first", range(3)), out, options, workers=1)
    add(scans(tmp_path / "second", range(2, 6)), out, options)
    of_patient: dict[str, set[str]] = {}
    for key, split in homes(out).items():
        of_patient.setdefault(key.split("-")[-1].split("_")[0], set()).add(split)
    assert len(of_patient) == 24 and all(len(splits) == 1 for splits in of_patient.values())
    assert len(homes(out)) == 24 * 6 and len({*map(frozenset, of_patient.values())}) == 3


def test_a_set_of_an_older_version_says_nothing_of_seeds(out):
    older = replace(Manifest.load(out), dealt=None)
    older.save(out)
    assert isinstance(base_of(output_of(out)), Base)
    add(MORE, out, replace(SMALL, seed=5))
    assert verify(out, Manifest.load(out)) == [] and Manifest.load(out).dealt is None
