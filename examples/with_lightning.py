"""petseg's loaders in a Lightning module.

python examples/with_lightning.py --shards shards/drawn --devices 2
"""

from __future__ import annotations

import argparse

import lightning
import torch
import torch.nn.functional as F

import petseg


class Segmentation(lightning.LightningModule):
    """A U-Net on the shards of a folder."""

    def __init__(self, shards: str, size: int, batch_size: int) -> None:
        super().__init__()
        self.options = {"shards": shards, "size": (size, size), "batch_size": batch_size}
        classes = petseg.Manifest.load(shards).classes
        self.network = petseg.UNet(classes=len(classes))

    # The hooks run when the process group is there, so each rank's loader takes its own share.
    def train_dataloader(self) -> petseg.Loader:
        """The train split, shuffled."""
        return petseg.build_loader("auto", split="train", training=True, device=self.device, **self.options)

    def val_dataloader(self) -> petseg.Loader:
        """The val split."""
        return petseg.build_loader("auto", split="val", training=False, device=self.device, **self.options)

    def transfer_batch_to_device(self, batch: petseg.Batch, device: torch.device, _index: int) -> petseg.Batch:
        """Batches are made on the device."""
        return batch

    def loss(self, batch: petseg.Batch) -> tuple[torch.Tensor, int]:
        """Cross-entropy, and of how many pixels it is the mean.

        Void pixels and padding rows are -100, which is ignored. The last batch of val may be padding alone on one of
        several ranks, so the mean is taken here.
        """
        logits = self.network(batch.images.permute(0, 3, 1, 2) / 255)
        pixels = int((batch.masks >= 0).sum())
        return F.cross_entropy(logits, batch.masks, reduction="sum") / max(1, pixels), pixels

    def training_step(self, batch: petseg.Batch, _index: int) -> torch.Tensor:
        """One step."""
        loss, pixels = self.loss(batch)
        self.log("loss", loss, batch_size=pixels, prog_bar=True)
        return loss

    def validation_step(self, batch: petseg.Batch, _index: int) -> None:
        """The loss on a batch of val."""
        loss, pixels = self.loss(batch)
        self.log("val_loss", loss, batch_size=pixels, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args()
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        devices=args.devices,
        accelerator="auto",
        strategy="ddp" if args.devices > 1 else "auto",
        use_distributed_sampler=False,  # the loader divides the epoch among the ranks itself
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Segmentation(args.shards, args.size, args.batch_size))
    if trainer.is_global_zero:
        print(f"val loss {trainer.callback_metrics['val_loss'].item():.3f}")


if __name__ == "__main__":
    main()
