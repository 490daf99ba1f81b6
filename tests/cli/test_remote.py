"""Commands on shards of a store: train, resume, score, show, verify, fetch and the cache."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from petseg import Manifest
from petseg.data.shards.place import place_of
from petseg.run.checkpoint import load_checkpoint
from tests.servers import Faults, proxy, web_server

TINY = [
    "--size", 32, "--width", 4, "--depth", 3, "--stem", 1, "--batch-size", 8, "--device", "cpu", "--amp", "off",
    "--loader", "webdataset", "--num-threads", 2, "--gallery", 2, "--compute-threads", 1,
]  # fmt: skip


@pytest.fixture
def store(packed):
    """(address, faults) of the packed pets."""
    faults = Faults()
    with web_server(packed) as inner, proxy(inner, faults) as address:
        yield address, faults


def weights(run):
    return {name: value.tolist() for name, value in load_checkpoint(run / "last.pt")["model"].items()}


def test_a_run_goes_from_a_store_to_a_copy_and_back(petseg, store, packed, tmp_path):
    address, faults = store
    cache = ["--shard-cache", tmp_path / "cache"]
    code, _, err = petseg("train", "--shards", packed, "--run-dir", "local", "--epochs", 3, *TINY)
    assert code == 0, err
    code, _, err = petseg("train", "--shards", address, *cache, "--run-dir", "away", "--epochs", 1, *TINY)
    assert code == 0, err
    code, _, err = petseg("train", "--resume", "--run-dir", "away", "--shards", packed, "--epochs", 2)
    assert code == 0, err
    code, _, err = petseg("train", "--resume", "--run-dir", "away", "--shards", address, *cache, "--epochs", 3)
    assert code == 0, err
    here = tmp_path / "cwd"
    one, other = (json.loads((here / run / "summary.json").read_text()) for run in ("local", "away"))
    assert one["samples"] == other["samples"] and weights(here / "away").keys() == weights(here / "local").keys()
    resolved = (here / "away" / "resolved.toml").read_text()
    assert f'shards = "{address}"' in resolved and "window = 0" in resolved
    tars = [request.path for request in faults.requests if request.path.endswith(".tar")]
    assert len(tars) == len(set(tars)), "no shard came twice"

    code, out, err = petseg("eval", "away", "--json")
    assert code == 0, err
    local = petseg("eval", "away", "--shards", packed, "--json")[1]
    assert json.loads(out.splitlines()[-1])["confusion"] == json.loads(local.splitlines()[-1])["confusion"]
    faults.plan = lambda request: "503"
    code, _, err = petseg("train", "--resume", "--run-dir", "away", "--offline", "--epochs", 4)
    assert code == 0, err


def test_shards_of_a_store_are_shown_verified_fetched_and_cleared(petseg, store, packed, tmp_path):
    address, faults = store
    shards = [shard for split in Manifest.load(packed).splits.values() for shard in split.shards]
    cache = ["--shard-cache", tmp_path / "cache"]
    code, out, err = petseg("fetch", address, *cache)
    assert code == 0 and f"{len(shards)} shards" in out, err
    faults.requests.clear()
    assert petseg("fetch", address, *cache)[0] == 0
    assert [request.path for request in faults.requests] == ["/manifest.json"]
    code, out, _ = petseg("cache", "list", *cache)
    assert code == 0 and f"{len(shards)} shards and 0 parts" in out
    assert petseg("cache", "verify", *cache)[0] == 0
    damaged = next((tmp_path / "cache").glob("??/*.tar"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    code, _, err = petseg("cache", "verify", *cache)
    assert code == 2 and f"{damaged} and 0 more were damaged" in err and not damaged.exists()
    code, out, _ = petseg("cache", "clear", *cache)
    assert code == 0 and f"Removed {len(shards) - 1} of {len(shards) - 1}" in out
    assert petseg("cache", "wash", *cache)[0] == 2 and petseg("fetch", packed)[0] == 2

    code, out, err = petseg("verify", address)
    assert code == 0 and "hashes, indices and every sample are as the manifest says" in out, err
    code, _, err = petseg("show", address, "--count", 4)
    assert code == 0 and (tmp_path / "cwd" / "contact-sheet.png").is_file(), err


def test_a_run_in_a_store_predicts_and_is_fetched_once(petseg, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    code, _, err = petseg("train", "--shards", packed, "--run-dir", "runs/one", "--epochs", 1, *TINY)
    assert code == 0, err
    photo = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.png")
    assert petseg("predict", "runs/one", "photo.png", "--out", "local")[0] == 0
    faults = Faults()
    with web_server(tmp_path / "cwd" / "runs") as inner, proxy(inner, faults) as address:
        for run in (f"{address}/one", f"{address}/one/best.pt"):
            code, _, err = petseg("predict", run, "photo.png", "--out", "away")
            assert code == 0, err
            masks = [(tmp_path / "cwd" / where / "photo.png").read_bytes() for where in ("local", "away")]
            assert masks[0] == masks[1]
        assert [(r.method, r.path) for r in faults.requests] == [
            ("HEAD", "/one/best.pt"), ("GET", "/one/best.pt"), ("HEAD", "/one/best.pt")
        ]  # fmt: skip
        assert petseg("eval", f"{address}/one", "--device", "cpu")[0] == 0
        code, _, err = petseg("predict", f"{address}/two", "photo.png", "--out", "x")
        assert code == 2 and "/two/best.pt: there is no such object" in err


def test_a_store_that_refuses_ends_the_command_in_a_sentence(petseg, store, tmp_path):
    address, faults = store
    faults.plan = lambda request: "403"
    code, _, err = petseg("train", "--shards", address, "--run-dir", "x", *TINY)
    assert code == 2 and "access denied" in err and "Traceback" not in err and not (tmp_path / "cwd" / "x").exists()
    faults.plan = lambda request: ""
    code, _, err = petseg("train", "--shards", address, "--shard-cache-limit", "1k", "--run-dir", "x", *TINY)
    assert code == 2 and "--shard-cache-limit" in err and "bytes)" in err and not (tmp_path / "cwd" / "x").exists()
    code, _, err = petseg("train", "--shards", address, "--shard-cache-limit", "much", "--run-dir", "x", *TINY)
    assert code == 2 and "number of bytes" in err


def test_a_window_is_made_for_a_small_cache(petseg, store, packed, tmp_path):
    address, _ = store
    split = Manifest.load(packed).split("train")
    limit = sum(sorted(shard.bytes for shard in split.shards)[-3:])
    assert limit < sum(shard.bytes for shard in split.shards), "else the test says nothing"
    code, out, err = petseg(
        "train", "--shards", address, "--shard-cache", tmp_path / "cache", "--shard-cache-limit", limit,
        "--run-dir", "x", "--epochs", 1, *TINY,
    )  # fmt: skip
    assert code == 0, err
    assert "--window 1: so many shards are in play at once" in out
    assert "window = 1" in (tmp_path / "cwd" / "x" / "resolved.toml").read_text()
    assert shutil.disk_usage(tmp_path).free and place_of(address).address == address
