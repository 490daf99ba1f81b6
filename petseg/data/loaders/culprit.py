"""Which sample a loader stumbled over."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError


def name_culprit(reader: ShardReader, pulls: Iterable[np.ndarray], error: Exception) -> PetsegError:
    """The error to raise for a batch that could not be decoded, naming the first sample at fault.

    Batch decoders stop at one bad sample without saying which, so the samples under way are decoded one by one.

    Args:
        reader: where the samples came from.
        pulls: indices of the batches that were under way.
        error: what the decoder said.
    """
    for indices in pulls:
        for index in indices.tolist():
            try:
                reader.decoded(index)
            except PetsegError as fault:
                return fault
    text = str(error).strip()
    return PetsegError(f"the decoder failed on {reader.folder}, though every sample of the batch decodes here: {text}")
