"""A training loop of your own over petseg's loader, on any number of ranks; it resumes inside an epoch.

torchrun --nproc-per-node 2 examples/torchrun_loop.py --shards shards/drawn
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import petseg


def main() -> None:
    """Train, and save after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("torchrun-loop.pt"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()

    # Rank and world size come from the process group. "auto" is DALI on a GPU, webdataset on a CPU.
    loader = petseg.build_loader(
        "auto", shards=args.shards, split="train", batch_size=args.batch_size, size=(args.size, args.size),
        device="auto", training=True,
    )  # fmt: skip
    network = petseg.UNet(classes=len(loader.classes)).to(loader.device, memory_format=torch.channels_last)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True, map_location=loader.device)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])  # also one that was saved inside an epoch, by another number of ranks
        first = saved["epoch"]

    for epoch in range(first, args.epochs):
        total = torch.zeros((), device=loader.device)
        for steps, batch in enumerate(loader, 1):  # noqa: B007 - it is used after the loop
            loss = F.cross_entropy(model(batch.images.permute(0, 3, 1, 2) / 255), batch.masks)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            print(f"epoch {epoch + 1}  loss {total.item() / steps / dist.get_world_size():.3f}")
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save({**state, "loader": loader.state_dict()}, args.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
