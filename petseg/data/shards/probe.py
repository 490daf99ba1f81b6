"""Whether this machine writes the same bytes as another: a digest of fixed images, packed."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from petseg.classes import OXFORD
from petseg.data.decode.rgb import Tones
from petseg.data.order import keyed_hash
from petseg.data.shards.normalise import normalise
from petseg.errors import PetsegError

# Other versions of these may write other bytes; a pack that was begun with one is not finished with another.
_ENCODERS = ("deflate", "numpy", "opencv-python-headless", "pillow", "simplejpeg")

_SIZES = ((375, 500), (129, 171), (161, 999))
_SHORT_SIDES = (0, 100, 128, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What decides about the bytes that a machine writes."""

    versions: dict[str, str]
    """Of petseg and of what encodes."""
    probe: str
    """The result of `probe`."""

    @classmethod
    @functools.cache
    def this(cls) -> Machine:
        """The one that this runs on."""
        return cls(
            versions={name: importlib.metadata.version(name) for name in ("petseg", *_ENCODERS)},
            probe=probe(),
        )

    def refuse_other(self, other: Machine) -> None:
        """Refuse a machine that would write other bytes into the same pack.

        Raises:
            PetsegError: it would.
        """
        for name, version in self.versions.items():
            if other.versions.get(name) != version:
                raise PetsegError(
                    f"the pack was begun with {name} {version}, and this machine has {other.versions.get(name)}, which "
                    f"may write other bytes: install {name}=={version} here."
                )
        if other.probe != self.probe:
            raise PetsegError(
                "this machine makes other bytes of the same pixels than the one that began the pack, with the same "
                "versions; so its CPU differs: pack on machines of one kind."
            )


@functools.cache
def probe() -> str:
    """SHA-256, hexadecimal, of what packing makes of noise, stripes and a ramp, at several sizes and by every kernel.

    It enters the plan of a pack. Another CPU, or other versions of what resizes and encodes, may write other bytes;
    then it differs, and no pack mixes the two.
    """
    found = hashlib.sha256()

    def add(image: bytes, mask: bytes, *, short_side: int = 0, **options: Any) -> None:
        sample = normalise(image, mask, classes=OXFORD, short_side=short_side, quality=90, **options)
        for part in (sample.image, sample.mask, sample.pixels.tobytes()):
            found.update(part)

    for height, width in _SIZES:
        noise = (keyed_hash(np.arange(height * width), height, width) >> np.uint64(32)).astype(np.uint32)
        pixels = noise.view(np.uint8).reshape(height, width, 4)[..., :3].copy()
        pixels[: height // 3] = (np.arange(width) % 2 * 255)[None, :, None]
        pixels[height // 3 : height // 2] = (np.arange(width) * 255 // width)[None, :, None]
        mask = (noise % np.uint32(3) + np.uint32(1)).astype(np.uint8).reshape(height, width)
        small = mask[::2, ::2].copy()
        deep = (noise >> np.uint32(16)).astype(np.uint16).reshape(height, width)
        image, codes = _encoded(pixels, "BMP"), _encoded(mask, "PNG")
        for short_side in _SHORT_SIDES:
            add(image, codes, short_side=short_side)
        add(_encoded(pixels, "JPEG", quality=85), codes)
        add(_encoded(pixels, "JPEG", quality=85, progressive=True), codes, short_side=96, encoding="ppm")
        add(_encoded(deep, "PNG"), codes, short_side=96, tones=Tones(range=(300.0, 60_000.0)))
        add(image, _encoded(small, "PNG"), resize_masks=True)
    return found.hexdigest()


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
