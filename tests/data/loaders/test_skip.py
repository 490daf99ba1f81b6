"""`on_bad_sample="skip"`: a few damaged samples stop nothing, and nothing about them is silent."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from petseg import Manifest
from petseg.data.loaders.loader import LoaderPlan
from petseg.data.order import epoch_order
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError
from tests.data.loaders.ways import open_loader


def spoil(shards: Path, split: str, *indices: int) -> None:
    """Zeros inside the JPEGs of samples; their ends stay."""
    reader = ShardReader(shards, Manifest.load(shards), split, verify=False)
    for index in indices:
        image, tar = bytes(reader.read(index)[0]), reader.path(index)
        data = bytearray(tar.read_bytes())
        at = data.find(image)
        data[at + len(image) // 2 : at + len(image) - 2] = bytes(len(image) - len(image) // 2 - 2)
        tar.write_bytes(data)
    reader.close()


def load(shards: Path, split: str, name: str = "webdataset", **options):
    return open_loader(name, shards, **{"split": split, "training": False, "on_bad_sample": "skip", **options})


@pytest.mark.parametrize("name", ["webdataset", "dali", "nvimgcodec"])
@pytest.mark.parametrize("cache", ["none", "host"])
def test_training_takes_the_next_sound_sample_in_its_place(packed_copy, name, cache):
    spoil(packed_copy, "train", 17, 18)
    expected = epoch_order(Manifest.load(packed_copy).split("train").sizes, 0, 0)
    expected[(expected == 17) | (expected == 18)] = 19
    loader = load(packed_copy, "train", name, training=True, cache=cache)
    batches = list(loader)
    loader.close()
    assert torch.cat([batch.indices for batch in batches]).tolist() == expected[: 4 * len(batches)].tolist()
    by_index = {}
    for batch in batches:
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(by_index.setdefault(index, image), image)
    assert len(loader.skipped) == 2 and all(": sample " in where for where in loader.skipped)


@pytest.mark.parametrize("name", ["webdataset", "dali", "nvimgcodec"])
def test_evaluation_leaves_it_out_and_pads_as_ever(packed_copy, name):
    samples = Manifest.load(packed_copy).split("train").samples
    spoil(packed_copy, "train", 3)
    loader = load(packed_copy, "train", name)
    seen = torch.cat([batch.indices for batch in loader]).tolist()
    loader.close()
    sound = [index for index in range(samples) if index != 3]
    assert seen == sound + [-1] * (-len(sound) % 4) and len(loader.skipped) == 1


RANKS = """
import sys, torch, torch.distributed as dist
from petseg import build_loader
from petseg.errors import PetsegError

dist.init_process_group("gloo")
rank = dist.get_rank()
try:
    loader = build_loader(
        "webdataset", shards=sys.argv[1 + rank], split="train", batch_size=4, size=(32, 32), num_threads=2,
        on_bad_sample="skip",
    )
except PetsegError as error:
    said = f"refused: {error}"
else:
    seen = torch.cat([batch.indices for batch in loader]).tolist()
    said = " ".join(map(str, ["seen:", rank, *seen, len(loader.skipped)]))
sys.stdout.write(said + "\\n")  # in one piece: the other rank writes there too
sys.stdout.flush()
dist.destroy_process_group()
"""


def on_two_ranks(tmp_path, *shards) -> list[str]:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, script, *shards], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(line for line in done.stdout.splitlines() if line.startswith(("seen:", "refused:")))


@pytest.mark.slow
def test_ranks_whose_copies_differ_leave_out_the_same(packed, tmp_path):
    copies = [Path(shutil.copytree(packed, tmp_path / name)) for name in ("one", "two")]
    spoil(copies[0], "train", 0)
    spoil(copies[1], "train", 2, 8)
    said = [[int(word) for word in line.split()[2:]] for line in on_two_ranks(tmp_path, *copies)]
    assert [line.pop() for line in said] == [3, 3]
    together = sorted(said[0] + said[1])
    samples = Manifest.load(packed).split("train").samples
    assert [index for index in together if index >= 0] == [k for k in range(samples) if k not in {0, 2, 8}]
    assert len(said[0]) == len(said[1])


@pytest.mark.slow
def test_what_one_rank_finds_wrong_stops_all_of_them(packed, tmp_path):
    copies = [Path(shutil.copytree(packed, tmp_path / name)) for name in ("one", "two")]
    next(copies[1].glob("train-*.idx")).unlink()
    said = on_two_ranks(tmp_path, *copies)
    assert len(said) == 2 and all(".idx is missing" in line for line in said)


def test_ranks_that_cannot_agree_are_refused(packed):
    with pytest.raises(PetsegError, match="open a process group"):
        load(packed, "train", rank=0, world=2)


def test_a_truncated_shard_is_one_with_damaged_samples(packed_copy):
    manifest = Manifest.load(packed_copy)
    reader = ShardReader(packed_copy, manifest, "train", verify=False)
    last = len(reader) - 1
    tar, image = reader.path(last), bytes(reader.read(last)[0])
    reader.close()
    data = tar.read_bytes()
    tar.write_bytes(data[: data.find(image) + 10])
    loader = load(packed_copy, "train")
    assert len(loader.skipped) == 1 and loader.plan.bad == (last,)
    loader.close()
    with pytest.raises(PetsegError, match="is shorter than the manifest says"):
        load(packed_copy, "train", on_bad_sample="stop")


def test_sound_shards_cost_nothing(packed, monkeypatch):
    monkeypatch.setattr("petseg.data.shards.reader.check_sample", lambda *_: pytest.fail("a sound sample was decoded"))
    loader = load(packed, "train", training=True)
    assert loader.skipped == () and loader.plan.bad == ()
    loader.close()


def test_more_than_a_tenth_is_an_error(packed_copy):
    spoil(packed_copy, "train", *range(6))
    with pytest.raises(PetsegError, match=r"6 of \d+ samples are damaged, more than 10%, the first of them .*: sample"):
        load(packed_copy, "train")


def test_without_hashes_there_is_nothing_to_go_by(packed):
    with pytest.raises(PetsegError, match="leave --no-verify out"):
        load(packed, "train", verify=False)


def test_the_last_sample_is_replaced_by_the_first():
    plan = LoaderPlan(digest="", split="train", sizes=(5,), batch_size=1, seed=0, training=True, bad=(4,))
    assert sorted(plan.order(0)[:].tolist()) == [0, 0, 1, 2, 3] and plan.total == 5
