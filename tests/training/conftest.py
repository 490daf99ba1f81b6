"""Runs that take a second: a tiny network on the packed pets."""

import pytest

TINY = {
    "size": "32", "width": 4, "depth": 3, "stem": 1, "batch_size": 8, "epochs": 2, "device": "cpu", "amp": "off",
    "compile": "off", "loader": "webdataset", "num_threads": 2,
}  # fmt: skip


@pytest.fixture
def train(train_with):
    """Runs `fit`; returns (result, listener)."""
    return train_with(TINY)
