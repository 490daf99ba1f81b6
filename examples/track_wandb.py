"""A run of petseg, logged to Weights & Biases; without an account, offline.

WANDB_MODE=offline python examples/track_wandb.py --shards shards/drawn
"""

from __future__ import annotations

import argparse

import wandb

import petseg


def main() -> None:
    """Train, and log it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--run-dir", default="runs/wandb")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", default="128")
    args = parser.parse_args()
    options = {"shards": args.shards, "epochs": args.epochs, "size": args.size, "run_dir": args.run_dir}
    with wandb.init(project="petseg", config=options) as run:
        result = petseg.train(options, callbacks=[run.log])  # called with each epoch's record
        run.summary["test_mean_iou"] = result.summary["mean_iou"]


if __name__ == "__main__":
    main()
