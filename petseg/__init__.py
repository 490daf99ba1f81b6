"""petseg: pack pictures and masks once, load them fast and in one order, train segmentation networks on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petseg.data.loaders.build import build_loader
    from petseg.data.loaders.loader import Batch
    from petseg.data.loaders.samples import OrderedSamples
    from petseg.data.shards.manifest import Manifest
    from petseg.model.networks import UNet

__all__ = ["Batch", "Manifest", "OrderedSamples", "UNet", "build_loader"]

_HOMES = {
    "Batch": "petseg.data.loaders.loader",
    "Manifest": "petseg.data.shards.manifest",
    "OrderedSamples": "petseg.data.loaders.samples",
    "UNet": "petseg.model.networks",
    "build_loader": "petseg.data.loaders.build",
}


def __getattr__(name: str) -> Any:
    # Looked up when first used: `petseg --help` and packing's workers need no torch, which takes seconds to import.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
