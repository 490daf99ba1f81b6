"""A loop over a loader as a notebook's cell has it, interrupted again and again; `test_interrupts` starts this program.

Arguments: the shards, and how often each loader is interrupted. It says `go` when it is inside a loop and may be
interrupted, and at the end prints how often that was inside the loader.
"""

import itertools
import os
import sys
import traceback

import torch

from petseg.data.order import epoch_order
from tests.data.loaders.ways import WAYS, open_loader

CONFIGURATIONS = list(itertools.product(WAYS, ("none", "host"), (True, False)))
BATCH = 4


class Follower:
    """Checks each batch: its pixels by its indices, and that its place follows from the last one's."""

    def __init__(self, way, shards, cache, training):
        with_all = open_loader(way, shards, training=False, batch_size=7)
        parts = list(with_all)
        with_all.close()
        order = torch.cat([part.indices for part in parts]).argsort()
        order = order[(torch.cat([part.indices for part in parts]) < 0).sum() :]
        self.images = torch.cat([part.images for part in parts])[order]
        self.codes = torch.cat([part.codes for part in parts])[order]
        self.loader = open_loader(way, shards, cache=cache, training=training)
        self.training = training
        self.batches = len(self.loader)
        self.seen = -1  # number of the last batch, counted through all epochs
        self.interrupts = 0  # since it was received
        self.missing = 0

    def expected(self, number):
        """i64[BATCH]: the indices of a batch."""
        epoch, step = divmod(number, self.batches)
        n = len(self.images)
        order = torch.from_numpy(epoch_order([n], 0, epoch)) if self.training else torch.arange(n)
        rows = order[step * BATCH : (step + 1) * BATCH]
        return torch.cat([rows, torch.full((BATCH - len(rows),), -1)])

    def check(self, batch):
        real = batch.indices >= 0
        assert torch.equal(batch.images[real], self.images[batch.indices[real]]), "pixels of another sample"
        assert torch.equal(batch.codes[real], self.codes[batch.indices[real]]), "codes of another sample"
        number, missing = self.seen + 1, 0
        while missing < self.interrupts and not torch.equal(batch.indices, self.expected(number)):
            number, missing = number + 1, missing + 1  # the batch that was in hand
        assert torch.equal(batch.indices, self.expected(number)), (number, batch.indices, self.expected(number))
        # In this order: an interrupt may come in between.
        self.seen, self.interrupts = number, 0
        self.missing += missing


def inside(error):
    """Whether an exception came up in the loader."""
    return any("/petseg/data/" in frame.filename for frame in traceback.extract_tb(error.__traceback__))


def follow(follower, interrupts):
    """Go on until a loop was interrupted so often; how often that was inside the loader."""
    caught, within, kept = 0, 0, None
    while caught < interrupts:
        try:
            os.write(1, b"go\n")  # print may write twice what a signal came upon
            while True:
                for batch in follower.loader:
                    follower.check(batch)
        except KeyboardInterrupt as error:
            os.write(1, b"caught\n")
            kept = error  # as sys.last_value is kept
            caught, within = caught + 1, within + inside(error)
            follower.interrupts += 1
    assert kept is not None
    for _ in range(2):
        for batch in follower.loader:
            follower.check(batch)
    return within


def main():
    shards, interrupts = sys.argv[1], int(sys.argv[2])
    within, missing = 0, 0
    for way, cache, training in CONFIGURATIONS:
        follower = Follower(way, shards, cache, training)
        within += follow(follower, interrupts)
        missing += follower.missing
        follower.loader.close()
    os.write(1, f"end {within} {missing}".encode())


if __name__ == "__main__":
    main()
