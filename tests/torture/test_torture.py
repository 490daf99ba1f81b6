"""The fast part of the torture; `python -m tests.torture` is the long one."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from petseg.data.shards.options import PackOptions
from tests.torture.cluster import torture_cluster
from tests.torture.fuzz import SHARES, fuzz
from tests.torture.kill import TRAIN, differences, kill_packs, kill_trainings, outcome, run_petseg
from tests.torture.nodes import train_on_two_nodes
from tests.torture.ranks import kill_ranks
from tests.torture.remote import KINDS, torture_stores


@pytest.mark.slow
def test_packs_that_are_killed_resume_to_the_same_bytes(tmp_path, environment, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    tally = kill_packs(tmp_path, random.Random(5), lambda tally: tally.kills >= 2)
    assert tally.kills >= 2 and not tally.faults


@pytest.mark.slow
def test_runs_that_are_killed_resume_to_the_same_bits(tmp_path):
    tally = kill_trainings(tmp_path, random.Random(5), lambda tally: tally.kills >= 6)
    assert tally.kills >= 6 and not tally.faults


@pytest.mark.slow
def test_ranks_that_are_killed_are_started_again_and_resume(tmp_path):
    tally = kill_ranks(tmp_path, random.Random(1), lambda tally: tally.kills >= 1)
    assert tally.kills >= 1 and not tally.faults


@pytest.mark.slow
def test_two_nodes_learn_what_two_ranks_of_one_do(tmp_path):
    """Network namespaces are the nodes."""
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("needs root and iproute2")
    try:
        run = train_on_two_nodes(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here ({error})")
    one = tmp_path / "one"
    run_petseg(["train", "--shards", str(tmp_path / "shards"), "--run-dir", str(one), *TRAIN, "--ranks", "2"])
    assert json.loads((run / "summary.json").read_text())["ranks"] == 2
    assert not differences(outcome(one), outcome(run))


def test_altered_bytes_end_in_a_correct_result_or_one_sentence(tmp_path):
    tally = fuzz(tmp_path, random.Random(3), lambda tally: sum(tally.cases.values()) >= 200)
    assert not tally.faults and tally.cases.keys() == SHARES.keys()
    assert sum(tally.refused.values()) > 100


@pytest.mark.slow
def test_stores_that_fail_and_readers_that_are_killed_leave_every_byte_right(tmp_path):
    tally = torture_stores(
        tmp_path, random.Random(7), lambda tally: tally.kills >= 50 and sum(tally.injected.values()) >= 300
    )
    assert not tally.faults, tally.faults
    assert tally.injected.keys() == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["synthetic:20000", "pets"])
def test_a_cluster_whose_workers_and_node_are_killed_packs_the_same_bytes(tmp_path, source, request):
    if source == "pets":
        pets = request.config.getoption("--pets")
        if not pets:
            pytest.skip("needs --pets FOLDER")
        source, options = str(pets), PackOptions(split="official", short_side=256, samples_per_shard=4)
    else:
        options = PackOptions(split="random", short_side=64, samples_per_shard=100)
    tally = torture_cluster(tmp_path, random.Random(3), source, options, kills=10)
    assert not tally.faults, tally.faults
    assert (tally.workers_killed, tally.nodes_killed) == (10, 1) and tally.samples > 490


@pytest.mark.parametrize("case", ["shard", pytest.param("train", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_or_read_only_is_one_sentence_and_room_resumes(case, packed, tmp_path):
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*unshare, sys.executable, "-m", "tests.torture.disk", case, str(disk), str(packed)],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for state, words in (("read-only", "Read-only file system"), ("full", "No space left on device")):
        found = seen[state]
        assert found["code"] == 2 and words in found["err"], found
        assert found["err"].startswith("error: ") and len(found["err"].strip().splitlines()) == 1
        assert not [name for name in found["files"] if "partial" in name]
    assert seen["read-only"]["files"] == {}
    assert seen["full"]["files"], "it had not even begun: the case shows nothing"
    assert (seen["room"]["code"], seen["room"]["err"]) == (0, "")
    final = {"shard": "out/manifest.json", "train": "run/summary.json"}[case]
    assert final in seen["room"]["files"] and final not in seen["full"]["files"]
