"""Losses over class indices, in fp32 whatever the network ran in (fp16 sums over 512x512 pixels overflow)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from petseg.classes import IGNORE_INDEX


def cross_entropy(outputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count; 0 where none does.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.

    Returns:
        f32 scalar, no host sync.
    """
    total = F.cross_entropy(outputs.float(), masks, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (masks != IGNORE_INDEX).sum().clamp(min=1)


def dice_loss(outputs: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """1 - the soft Dice coefficient, averaged over classes, each summed over the whole batch.

    Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), with p + g in the denominator; summing over the batch keeps a
    picture without a class from dominating.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.
        smooth: pixels added to both sides of the fraction, so that an absent class gives a loss of 0.

    Returns:
        f32 scalar in 0-1, no host sync.
    """
    classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, 1, 1)
    truth = (masks.unsqueeze(1) == classes).float()
    probabilities = outputs.float().softmax(dim=1) * (masks != IGNORE_INDEX).unsqueeze(1)
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    size = (probabilities + truth).sum(dim=(0, 2, 3))
    return 1 - ((2 * overlap + smooth) / (size + smooth)).mean()


def segmentation_loss(outputs: torch.Tensor, masks: torch.Tensor, *, dice: float = 1.0) -> torch.Tensor:
    """Cross-entropy plus `dice` times the Dice loss; shapes as for `cross_entropy`."""
    loss = cross_entropy(outputs, masks)
    return loss + dice * dice_loss(outputs, masks) if dice else loss
