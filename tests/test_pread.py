"""Reads at an offset, with and without the system's pread."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from petseg.pread import open_file, read_at


@pytest.mark.parametrize("there", [True, False])
def test_threads_do_not_move_each_others_position(tmp_path, monkeypatch, there):
    if not there:
        monkeypatch.delattr(os, "pread")
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 64)
    file = open_file(path)
    try:
        offsets = range(0, 256 * 63, 7)
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda at: read_at(file, 256, at), offsets))
        assert all(part[0] == at % 256 and len(part) == 256 for part, at in zip(parts, offsets, strict=True))
        assert len(read_at(file, 100, 256 * 64 - 10)) == 10
    finally:
        os.close(file)
