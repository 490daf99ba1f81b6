"""Every way from shards to pixels, for tests and for processes that tests start."""

from unittest import mock

from petseg import build_loader

WAYS = ("dali", "webdataset", "nvimgcodec")
"""Every way from shards to pixels; the last is what the webdataset loader does on a GPU, here on its CPU backend."""


def open_loader(name, shards, **options):
    """`build_loader` of one of `WAYS`, small."""
    given = {"split": "train", "batch_size": 4, "size": (32, 32), "training": True, "num_threads": 2, **options}
    if name != "nvimgcodec":
        return build_loader(name, shards=shards, **given)
    with mock.patch("petseg.data.loaders.build.decodes_with_nvimgcodec", lambda device: True):
        return build_loader("webdataset", shards=shards, **given)
