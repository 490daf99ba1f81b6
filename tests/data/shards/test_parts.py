"""Packing on several machines, and into stores: the bytes of one machine's pack, whatever happens on the way."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petseg import Manifest, RemoteShards
from petseg.data.objects import Objects
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import PLAN_NAME, StoreOutput, output_of
from petseg.data.shards.pack import pack
from petseg.data.shards.parts import finish, pack_part, status
from petseg.data.shards.verify import verify
from petseg.data.sources.files import WORK_FOLDER
from petseg.data.sources.oxford import OxfordSource
from petseg.errors import PetsegError, RefusedError
from tests.data.shards.test_pack import OFFICIAL, content
from tests.servers import Faults, proxy, s3_server

SHARDS = 7
"""Of `oxford` with these options."""


@pytest.fixture(scope="module")
def reference(oxford, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert len(list(out.glob("*.tar"))) == SHARDS
    return out


@pytest.fixture(scope="module")
def s3():
    with s3_server() as address:
        yield address


def part(oxford, out, number, count, **more):
    return pack_part(OxfordSource(oxford), out, OFFICIAL, (number, count), workers=1, **more)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(st.tuples(st.integers(1, 3), st.just(3)) | st.tuples(st.integers(1, 2), st.just(2)), max_size=4),
    order=st.permutations([(1, 3), (2, 3), (3, 3)]),
)
def test_parts_in_any_order_and_number_are_one_pack(oxford, reference, tmp_path_factory, calls, order):
    out = tmp_path_factory.mktemp("parts") / "out"
    for number, count in [*calls, *order]:
        part(oxford, out, number, count)
    report = finish(OxfordSource(oxford), out, OFFICIAL)
    assert content(out) == content(reference)
    assert report.manifest == Manifest.load(reference) and report.resumed_shards == 0


def test_what_is_missing_is_said_and_any_command_packs_it(oxford, reference, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PetsegError, match="holds no pack that was begun"):
        status(output_of(out))
    with pytest.raises(PetsegError, match="7 of 7 shards are missing"):
        finish(OxfordSource(oxford), out, OFFICIAL)
    first = part(oxford, out, 1, 3)
    assert (first.shards, first.of, first.resumed_shards) == (3, SHARDS, 0) and first.samples > 0
    assert part(oxford, out, 1, 3).resumed_shards == 3
    assert len(status(output_of(out)).missing) == 4 and not status(output_of(out), (1, 3)).missing
    with pytest.raises(PetsegError, match=r"4 of 7 shards are missing \(.*\.tar, .*\): pack their parts again"):
        finish(OxfordSource(oxford), out, OFFICIAL)
    next(iter(out.glob("*.tar"))).unlink()
    assert len(status(output_of(out)).missing) == 5
    report = pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    assert report.resumed_shards == 2 and content(out) == content(reference)
    assert status(output_of(out)).finished
    with pytest.raises(PetsegError, match="already holds a finished pack"):
        part(oxford, out, 1, 3)


@pytest.mark.parametrize("bad", [(0, 3), (4, 3), (1, 0)])
def test_parts_are_counted_from_one(oxford, tmp_path, bad):
    with pytest.raises(PetsegError, match="parts are counted from 1, so give 1/"):
        part(oxford, tmp_path / "out", *bad)


def test_a_part_of_another_pack_is_refused(oxford, tmp_path):
    out = tmp_path / "out"
    part(oxford, out, 1, 3)
    with pytest.raises(PetsegError, match=r"other options \(--quality: 90 there, 80 here\)"):
        pack_part(
            OxfordSource(oxford), out, PackOptions(short_side=64, samples_per_shard=4, quality=80), (2, 3), workers=1
        )


def command(source: Path, out: Path | str, *more: str, environment) -> subprocess.Popen:
    return subprocess.Popen(
        [Path(sys.executable).with_name("petseg-shard"), source, str(out), "--split", "official", "--short-side", "64",
         "--samples-per-shard", "4", "--workers", "1", *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_parts_at_once_one_of_them_twice_and_one_killed(oxford, reference, tmp_path, environment):
    out = tmp_path / "out"
    running = [command(oxford, out, "--part", f"{number}/2", environment=environment) for number in (1, 2, 2)]
    deadline = time.monotonic() + 60
    while not list(out.glob(f"{WORK_FOLDER}/*.tar.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    running[0].send_signal(signal.SIGKILL)
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running[1:]] == [0, 0], errors
    assert not status(output_of(out), (2, 2)).missing
    again = command(oxford, out, "--part", "1/2", environment=environment)
    assert again.communicate(timeout=60)[1] == "" and again.returncode == 0
    finish(OxfordSource(oxford), out, OFFICIAL)
    assert content(out) == content(reference)


def test_the_end_waits_for_nobody_and_leaves_a_part_alone(oxford, tmp_path):
    out, inside, go = tmp_path / "out", threading.Event(), threading.Event()

    def wait(_):
        inside.set()
        go.wait(20)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(part, oxford, out, 1, 1, progress=wait)
        assert inside.wait(20)
        with pytest.raises(PetsegError, match="is being packed by another process"):
            finish(OxfordSource(oxford), out, OFFICIAL)
        assert list(out.glob(".*.partial-*")), "what a part has begun to write stays"
        go.set()
        running.result()


def test_a_pack_that_lost_too_much_is_refused_at_the_end(oxford_copy, tmp_path):
    for number in range(3, 24):
        (oxford_copy / "images" / f"Drawn_{number}.jpg").write_bytes(b"nothing")
    source, out = OxfordSource(oxford_copy), tmp_path / "out"
    for number in (1, 2):
        pack_part(source, out, OFFICIAL, (number, 2), workers=1, allow_rejects=True)
    with pytest.raises(RefusedError, match="rejected"):
        finish(source, out, OFFICIAL)
    report = finish(source, out, OFFICIAL, allow_rejects=True)
    assert len(report.rejected) == 21 and verify(out, Manifest.load(out)) == []


# --- stores


def fetched(address: str, into: Path) -> Path:
    """All objects of an address as files."""
    store = Objects(address)
    for each in store.every():
        path = into / each.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(each.name))
    return into


def test_a_pack_into_a_store_is_the_local_one(oxford, reference, s3, tmp_path):
    out = "s3://bucket/whole"
    report = pack(OxfordSource(oxford), out, OFFICIAL, workers=2)
    assert report.manifest == Manifest.load(reference)
    assert content(fetched(out, tmp_path / "got")) == content(reference)
    assert Manifest.load(RemoteShards(out, tmp_path / "cache")).splits == report.manifest.splits
    with pytest.raises(PetsegError, match="already holds a finished pack"):
        pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    Objects("s3://bucket/other").put("thesis.tex", b"words")
    with pytest.raises(PetsegError, match=r"s3://bucket/other already holds something else \(thesis.tex\)"):
        pack(OxfordSource(oxford), "s3://bucket/other", OFFICIAL, workers=1)


def test_parts_in_a_store_at_once_resumed_and_replaced(oxford, reference, s3, tmp_path):
    out = "s3://bucket/parts"

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part(oxford, out, 1, 2, progress=stop)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: part(oxford, out, number, 2), (1, 2, 2)))
    place = StoreOutput(out)
    assert not status(place).missing
    tar = sorted(name for name in place.sizes() if name.endswith(".tar"))[0]
    store = Objects(out)
    data = bytearray(store.get(tar))
    data[700] ^= 1
    store.put(tar, bytes(data))
    store.remove([next(name for name in place.sizes() if name.endswith(".idx") and name[:-4] != tar[:-4])])
    reports = [part(oxford, out, number, 2) for number in (1, 2)]
    assert sum(report.shards - report.resumed_shards for report in reports) == 2, "what was changed is packed again"
    finish(OxfordSource(oxford), out, OFFICIAL)
    assert content(fetched(out, tmp_path / "got")) == content(reference)


def test_a_store_that_fails_now_and_then_is_packed_into(oxford, reference, s3, tmp_path, monkeypatch):
    out, counted = "s3://bucket/faults", itertools.count()
    kinds = ("", "503", "", "reset", "", "cut")
    faults = Faults(plan=lambda request: kinds[next(counted) % len(kinds)])
    with proxy(s3, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        pack(OxfordSource(oxford), out, OFFICIAL, workers=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert content(fetched(out, tmp_path / "got")) == content(reference)


def test_a_plan_is_put_once(s3, tmp_path):
    for place in (output_of(tmp_path / "out"), output_of("s3://bucket/plans")):
        (tmp_path / "out" / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda number, place=place: place.create(PLAN_NAME, b"%d" % number), range(8)))
        assert len(found) == 1 and found == {place.read(PLAN_NAME)}
        place.remove([PLAN_NAME, "nothing"])
        assert place.read(PLAN_NAME) is None
        place.write(PLAN_NAME, b"x")
        place.clear()
        assert place.top() == set()
