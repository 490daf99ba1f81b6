"""Options that decide the bytes of a pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petseg.data.decode.rgb import Tones
from petseg.data.shards.manifest import ENCODINGS
from petseg.data.shards.plan import SPLIT_MODES
from petseg.errors import PetsegError

MASK_ORIENTATIONS = ("auto", "upright", "stored")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """Options that decide the bytes of a pack."""

    split: str = "official"
    """`official` (the source's lists) or `random` (a hash of the keys, 70/20/10)."""
    short_side: int = 256
    """Pixels that longer short sides are reduced to; 0 keeps sizes, and original bytes where they are sound."""
    quality: int = 90
    """JPEG quality of what is encoded, 1 to 100."""
    encoding: str = "jpeg"
    """A name of `ENCODINGS`."""
    mask_orientation: str = "auto"
    """Where images are turned by an EXIF orientation: masks are drawn `upright`, or in the frame that is `stored`.
    `auto` takes what masks whose size tells say of the others."""
    resize_masks: bool = False
    """Masks of another size than their image's, but of its shape, are brought to it."""
    range: tuple[float, float] | None = None
    """Values of images of more than 8 bits that become 0 and 255; None: found over all of them (`Values.range`)."""
    percentiles: tuple[float, float] | None = None
    """In place of `range`: the percentiles of all values that become 0 and 255."""
    bands: tuple[int, ...] = ()
    """Bands of images that become red, green and blue, or one that becomes grey, counted from 1; see `Tones`."""
    samples_per_shard: int = 256
    """Most samples in one shard; the shards of a split differ by one sample at most before rejects."""
    shard_bytes: int = 0
    """In place of `samples_per_shard`: about so many bytes a shard (`samples_for_bytes`); 0 for none."""
    seed: int = 0
    """Any integer; decides about val, random splits and the order of samples."""
    group: str | None = None
    """Regular expression: keys in which it finds the same stay in one split (`make_plan`)."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PackOptions:
        """Of `asdict`'s data, which may have been JSON."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)

    @property
    def tones(self) -> Tones:
        """What becomes of images of more than 8 bits or three bands."""
        return Tones.from_dict({"range": self.range, "bands": self.bands})

    def __post_init__(self) -> None:
        if self.split not in SPLIT_MODES:
            raise PetsegError(f"--split {self.split} is unknown: use {' or '.join(SPLIT_MODES)}.")
        if self.short_side != 0 and not 16 <= self.short_side <= 65_500:
            raise PetsegError(
                f"--short-side {self.short_side} is out of range: use 0 (as it is) or 16 to 65500 pixels."
            )
        if not 1 <= self.quality <= 100:
            raise PetsegError(f"--quality must be from 1 to 100, not {self.quality}.")
        if self.mask_orientation not in MASK_ORIENTATIONS:
            raise PetsegError(
                f"--mask-orientation {self.mask_orientation} is unknown: use {', '.join(MASK_ORIENTATIONS)}."
            )
        try:
            tones = self.tones
        except ValueError as error:
            raise PetsegError(f"--bands or --range: {error}; give such as --bands 1,2,3 --range 0 4095.") from error
        if tones.range and self.percentiles:
            raise PetsegError("--range: give values or percentiles, not both.")
        if self.encoding not in ENCODINGS:
            raise PetsegError(f"--encoding {self.encoding} is unknown: use {' or '.join(ENCODINGS)}.")
        if self.samples_per_shard < 1:
            raise PetsegError(f"--samples-per-shard must be at least 1, not {self.samples_per_shard}.")
        if self.shard_bytes < 0:
            raise PetsegError(f"--shard-bytes must not be negative, as {self.shard_bytes} is.")
