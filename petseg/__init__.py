"""petseg: pack images and masks once, load them fast and in one order, train segmentation networks on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petseg.api import evaluate, load, predict, train, write_report
    from petseg.classes import ClassTable
    from petseg.config import TrainConfig
    from petseg.data.decode.boxes import Fit
    from petseg.data.loaders.build import build_loader
    from petseg.data.loaders.loader import Batch, Loader
    from petseg.data.loaders.samples import OrderedSamples
    from petseg.data.shards.manifest import Manifest
    from petseg.data.shards.place import RemoteShards
    from petseg.errors import PetsegError
    from petseg.inference.export import export
    from petseg.inference.segment import Segmenter
    from petseg.model.networks import UNet
    from petseg.training.conclude import FitResult
    from petseg.training.reporter import Reporter

__all__ = [
    "Batch", "ClassTable", "Fit", "FitResult", "Loader", "Manifest", "OrderedSamples", "PetsegError",
    "RemoteShards", "Reporter", "Segmenter", "TrainConfig", "UNet", "build_loader", "evaluate", "export", "load",
    "predict", "train", "write_report",
]  # fmt: skip

_HOMES = {
    "Batch": "petseg.data.loaders.loader",
    "ClassTable": "petseg.classes",
    "Fit": "petseg.data.decode.boxes",
    "FitResult": "petseg.training.conclude",
    "Loader": "petseg.data.loaders.loader",
    "Manifest": "petseg.data.shards.manifest",
    "OrderedSamples": "petseg.data.loaders.samples",
    "PetsegError": "petseg.errors",
    "RemoteShards": "petseg.data.shards.place",
    "Reporter": "petseg.training.reporter",
    "Segmenter": "petseg.inference.segment",
    "TrainConfig": "petseg.config",
    "UNet": "petseg.model.networks",
    "build_loader": "petseg.data.loaders.build",
    "evaluate": "petseg.api",
    "export": "petseg.inference.export",
    "load": "petseg.api",
    "predict": "petseg.api",
    "train": "petseg.api",
    "write_report": "petseg.api",
}


def __getattr__(name: str) -> Any:
    # Looked up when first used: `petseg --help` and packing's workers need no torch, which takes seconds to import.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
