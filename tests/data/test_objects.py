"""Objects in stores: addresses, faults that pass and faults that do not, on servers of loopback."""

import hashlib
import json
import multiprocessing
import os
import time

import numpy as np
import pytest

from petseg.data import objects
from petseg.data.objects import ObjectChanged, ObjectMissing, Objects, is_remote
from petseg.errors import PetsegError
from tests.servers import Faults, proxy, s3_server, web_server

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "served"
    (made / "set" / "deep").mkdir(parents=True)
    (made / "set" / "large.tar").write_bytes(DATA)
    (made / "set" / "small.json").write_bytes(b"{}")
    return made


@pytest.fixture
def quick(monkeypatch):
    """Stalls are noticed after a second."""
    monkeypatch.setitem(objects._TIMEOUTS, "read_timeout", "1s")


@pytest.fixture(scope="module")
def s3():
    """The address of a store on loopback, with a bucket `bucket`."""
    with s3_server() as address:
        yield address


def whole(store, name, **given):
    parts = []
    meta = store.fetch(name, lambda part: parts.append(bytes(part)), **given)
    return meta, b"".join(parts)


def test_what_is_an_address():
    for text in ("s3://b/x", "S3://b", "gs://b", "gcs://b", "az://c/x", "https://h/x", "hf://datasets/u/n"):
        assert is_remote(text)
    for text in ("shards", "/a/b", "s3:/b", "C:\\x", "synthetic:100", "x://y"):
        assert not is_remote(text)
    for text in ("ftp://x/y", "s3://", "https://h/x?sig=1", "hf://alone"):
        with pytest.raises(PetsegError, match=r"address|folder|give"):
            Objects(text)


def test_a_web_server_is_read_whole_and_from_the_middle(folder):
    with web_server(folder) as address:
        store = Objects(f"{address}/set/")
        assert store.get("small.json") == b"{}"
        meta, data = whole(store, "large.tar")
        assert data == DATA and meta == store.head("large.tar") == (len(DATA), f'"{hashlib.md5(DATA).hexdigest()}"')
        assert whole(store, "large.tar", start=1_000_001, etag=meta.etag)[1] == DATA[1_000_001:]
        with pytest.raises(ObjectChanged, match="changed"):
            whole(store, "large.tar", start=5, etag='"another"')
        with pytest.raises(ObjectMissing, match=r"http://.*/set/nothing.tar: there is no such object"):
            store.get("nothing.tar")
        with pytest.raises(PetsegError, match="a web server does not list"):
            list(store.every())


@pytest.mark.parametrize("fault", ["reset", "stall", "cut", "503", "429", "408", "500"])
def test_faults_that_pass_are_waited_out_and_no_byte_comes_twice(folder, quick, fault, monkeypatch):
    faults, notes = Faults(), []
    if fault == "stall":  # after its first byte a store is known
        monkeypatch.setattr(objects, "FIRST_PATIENCE", 0.5)
    faults.plan = lambda request: fault if len(faults.requests) <= 3 else ""
    with web_server(folder) as inner, proxy(inner, faults) as address:
        store = Objects(f"{address}/set", note=notes.append)
        meta, data = whole(store, "large.tar")
        assert data == DATA and meta.size == len(DATA)
        assert len(faults.requests) == 4
        if fault in {"stall", "cut"}:
            assert faults.requests[-1].start > len(DATA) * 0.6, "it went on where it had broken off"
        elif fault.isdigit():
            waiting, again = notes
            assert waiting.startswith(f"Waiting for {address}/set/large.tar: {fault} ") and "600 seconds" in waiting
            assert again.endswith("answers again.")


def test_a_store_that_stays_away_ends_in_a_sentence(folder, monkeypatch):
    faults = Faults(plan=lambda request: "503" if "large" in request.path else "")
    with web_server(folder) as inner, proxy(inner, faults) as address:
        store = Objects(f"{address}/set", patience=1.5)
        began = time.monotonic()
        with pytest.raises(PetsegError, match=r"large.tar: nothing for \d seconds \(503 .*--remote-patience"):
            store.get("large.tar")
        assert 1 < time.monotonic() - began < 6
    monkeypatch.setattr(objects, "FIRST_PATIENCE", 0.5)
    with pytest.raises(PetsegError, match="check the name and the network"):
        Objects("http://127.0.0.1:9/set").get("x")
    with pytest.raises(PetsegError, match=r"name cannot be resolved"):
        Objects("https://no-such-host.invalid/set").get("x")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [("403", "access denied .403 Forbidden.: check"), ("401", "log in again"), ("400", "refused .400 Bad Request")],
)
def test_refusals_are_said_at_once(folder, status, sentence):
    faults = Faults(plan=lambda request: status)
    with web_server(folder) as inner, proxy(inner, faults) as address:
        with pytest.raises(PetsegError, match=sentence):
            Objects(f"{address}/set").get("small.json")
        assert len(faults.requests) == (2 if status == "401" else 1), "credentials are read anew once"


def test_an_object_that_changes_midway_is_not_mixed(folder):
    faults = Faults()

    def plan(request):
        if len(faults.requests) == 1:
            return "cut"
        (folder / "set" / "large.tar").write_bytes(DATA[::-1])
        return ""

    faults.plan = plan
    with web_server(folder) as inner, proxy(inner, faults) as address:
        with pytest.raises(ObjectChanged):
            whole(Objects(f"{address}/set"), "large.tar")
        faults.requests.clear()
        assert Objects(f"{address}/set").get("large.tar") == DATA[::-1], "small objects begin anew"


@pytest.mark.parametrize("server", [{"ranges": False}, {"etags": False}])
def test_servers_that_know_no_ranges_or_tags(folder, server):
    faults = Faults()
    faults.plan = lambda request: "cut" if len(faults.requests) == 1 else ""
    with web_server(folder, **server) as inner, proxy(inner, faults) as address:
        store = Objects(f"{address}/set")
        if server == {"ranges": False}:
            with pytest.raises(ObjectChanged, match="from the middle"):
                whole(store, "large.tar")
        assert store.get("large.tar") == DATA


def test_a_bucket_is_listed_written_and_written_once(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_PAGE", 50)
    store = Objects("s3://bucket/a/set")
    file = tmp_path / "file.bin"
    file.write_bytes(DATA[:100_000])
    store.put("big/file.bin", file)
    for number in range(203):
        store.put(f"many/{number:05}", b"x")
    assert store.get("big/file.bin") == DATA[:100_000]
    assert [each.name for each in store.every("many")] == [f"many/{number:05}" for number in range(203)]
    found = {each.name: each.meta.size for each in store.every()}
    assert len(found) == 204 and found["big/file.bin"] == 100_000
    assert store.put_new("plan.json", b"one") and store.put_new("plan.json", b"one")
    assert not store.put_new("plan.json", b"two") and store.get("plan.json") == b"one"
    with pytest.raises(ObjectMissing, match="s3://bucket/a/set/nothing: there is no such object"):
        store.get("nothing")


def test_an_answer_that_is_lost_does_not_write_twice(s3, monkeypatch):
    faults = Faults()
    with proxy(s3, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        store = Objects("s3://bucket/lost")

        def plan(request):
            if request.method == "PUT" and sum(each.method == "PUT" for each in faults.requests) == 1:
                monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
                Objects("s3://bucket/lost").put_new("plan.json", b"mine")  # it arrived, and only the answer was lost
                return "reset"
            return ""

        faults.plan = plan
        assert store.put_new("plan.json", b"mine")


def test_credentials_and_regions_are_said(s3, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    try:
        import boto3  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(PetsegError, match="pip install boto3"):
            Objects("s3://bucket")
    monkeypatch.delenv("AWS_PROFILE")
    faults = Faults(plan=lambda request: "403")
    with proxy(s3, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(PetsegError, match="AWS_SKIP_SIGNATURE=true"):
            Objects("s3://bucket").get("x")


def test_a_hugging_face_address_is_pinned_to_a_commit(tmp_path, monkeypatch):
    sha = "0123456789" * 4
    api = tmp_path / "api" / "datasets" / "user" / "name" / "revision"
    files = tmp_path / "datasets" / "user" / "name" / "resolve" / sha / "shards"
    for made in (api, files):
        made.mkdir(parents=True)
    (api / "main").write_text(json.dumps({"sha": sha}))
    (files / "manifest.json").write_text("{}")
    faults = Faults()
    with web_server(tmp_path) as inner, proxy(inner, faults) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        store = Objects("hf://datasets/user/name/shards")
        assert store.get("manifest.json") == b"{}" and store.url("x") == "hf://datasets/user/name/shards/x"
        (api / "main").unlink()
        assert Objects(f"hf://datasets/user/name@{sha}/shards").get("manifest.json") == b"{}"
        with pytest.raises(ObjectMissing):
            Objects("hf://datasets/user/name@other/shards")


def _read_in_a_fork(address, queue):
    try:
        queue.put(Objects(address).get("small.json"))
    except PetsegError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told_and_does_not_hang(folder):
    with web_server(folder) as address:
        assert Objects(f"{address}/set").get("small.json") == b"{}"
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_read_in_a_fork, args=(f"{address}/set", queue))
        child.start()
        assert "a forked process cannot read from stores" in queue.get()
        child.join(5)
        assert child.exitcode == 0 and os.getpid() != child.pid
