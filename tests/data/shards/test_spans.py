"""The rows of all samples, in one file for all processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from petseg.data.shards.spans import COLUMNS, SpanTable

ROWS = np.arange(1, 3 * COLUMNS + 1).reshape(3, COLUMNS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "petseg" / "spans"


@pytest.mark.parametrize("name", ["", "a set"])
def test_what_is_filled_is_known(name, cache):
    table = SpanTable(10, name)
    assert table.rows.shape == (10, COLUMNS) and not table.known(4, 7)
    table.fill(4, ROWS)
    assert (table.rows[4:7] == ROWS).all() and table.known(4, 7) and table.known(5, 6) and not table.known(4, 8)
    assert not table.rows[:4].any() and not table.rows[7:].any()
    table.close()
    table.close()
    assert (table.rows[4:7] == ROWS).all()
    assert cache.exists() == bool(name)


def test_processes_share_them_and_the_next_run_finds_them():
    one, other = SpanTable(10, "a set"), SpanTable(10, "a set")
    one.fill(4, ROWS)
    assert other.known(4, 7) and (other.rows[4:7] == ROWS).all()
    code = "from petseg.data.shards.spans import SpanTable; print(SpanTable(10, 'a set').rows[4:7].tolist())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(ROWS.tolist())
    assert not SpanTable(10, "another set").known(4, 7) and not SpanTable(11, "a set").known(4, 7)


def test_without_room_they_are_ones_own():
    """A full disk, here a limit on the size of files: nothing is lost, and nobody dies of a signal."""
    code = """
import resource, signal, numpy as np
from petseg.data.shards.spans import SpanTable
table = SpanTable(1000, "a set")
table.fill(0, np.ones((10, 5), int))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
table.fill(500, np.full((10, 5), 7))
print(table.known(500, 510), table.known(0, 10), table.rows[505].tolist(), table.known(0, 11))
print(SpanTable(1000, "beyond the limit").rows.shape)
"""
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout
    assert said.splitlines() == ["True True [7, 7, 7, 7, 7] False", "(1000, 5)"]


def test_without_a_cache_folder_they_are_ones_own(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    table = SpanTable(10, "a set")
    table.fill(4, ROWS)
    assert table.known(4, 7)


def test_files_that_nobody_uses_go(cache):
    SpanTable(10, "old")
    (old,) = cache.iterdir()
    os.utime(old, (0, 0))
    SpanTable(10, "new")
    assert old not in cache.iterdir() and len(list(cache.iterdir())) == 1
