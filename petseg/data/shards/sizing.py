"""How many samples make a shard of so many bytes, measured on a few of them before the pack is planned."""

from __future__ import annotations

import contextlib

from petseg.data.shards.mask_files import RejectError
from petseg.data.shards.normalise import normalise
from petseg.data.shards.options import PackOptions
from petseg.data.shards.plan import first_by_hash
from petseg.data.sources import Source
from petseg.data.sources.pairs import Pairs
from petseg.errors import PetsegError

_MEASURED = 64
_MOST_TRIED = 4 * _MEASURED
"""Samples that are looked at where many are rejects."""

_BLOCK = 512


def samples_for_bytes(source: Source, pairs: Pairs, options: PackOptions) -> int:
    """Samples a shard, so that shards come to about `options.shard_bytes`; at least 1.

    The samples that are measured go by a hash of their keys, so that the answer depends on source and options alone.

    Raises:
        PetsegError: none of them can be packed.
    """
    sizes: list[int] = []
    for pair in first_by_hash(pairs, options.seed, _MOST_TRIED):
        with contextlib.suppress(RejectError, OSError):
            sample = normalise(
                *source.read(pair),
                classes=source.classes,
                short_side=options.short_side,
                quality=options.quality,
                encoding=options.encoding,
                mask_orientation="stored" if options.mask_orientation == "auto" else options.mask_orientation,
                resize_masks=options.resize_masks,
                tones=options.tones,
            )
            sizes.append(sum(_BLOCK - (-len(part) // _BLOCK) * _BLOCK for part in (sample.image, sample.mask)))
        if len(sizes) == _MEASURED:
            break
    if not sizes:
        raise PetsegError("--shard-bytes: no sample could be measured; give --samples-per-shard.")
    return max(1, options.shard_bytes * len(sizes) // sum(sizes))
