"""petseg's loader in an Accelerate loop.

accelerate launch examples/with_accelerate.py --shards shards/drawn
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator

import petseg


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    accelerator = Accelerator()
    # Not given to `prepare`: the loader divides the epoch among the ranks itself, and its batches are on the device.
    loader = petseg.build_loader(
        "auto", shards=args.shards, split="train", batch_size=args.batch_size, size=(args.size, args.size),
        device=accelerator.device, training=True,
    )  # fmt: skip
    network = petseg.UNet(classes=len(loader.classes))
    network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=2e-3))
    for epoch in range(args.epochs):
        for batch in loader:
            loss = F.cross_entropy(network(batch.images.permute(0, 3, 1, 2) / 255), batch.masks)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}  loss {accelerator.reduce(loss.detach(), 'mean').item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
