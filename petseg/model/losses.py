"""Losses over class indices, in fp32 whatever the network ran in (fp16 sums over 512x512 pixels overflow)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from petseg.classes import IGNORE_INDEX


def cross_entropy_sum(outputs: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy summed over the pixels that count, and how many those are.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.

    Returns:
        (f32 scalar, i64 scalar), no host sync.
    """
    total = F.cross_entropy(outputs.float(), masks, ignore_index=IGNORE_INDEX, reduction="sum")
    return total, (masks != IGNORE_INDEX).sum()


def dice_sums(outputs: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerator and denominator of the soft Dice coefficient of each class; arguments as for `cross_entropy_sum`.

    Returns:
        (f32[C] sum of probability inside the class, f32[C] sum of probability plus true pixels), no host sync.
    """
    classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, 1, 1)
    truth = (masks.unsqueeze(1) == classes).float()
    probabilities = outputs.float().softmax(dim=1) * (masks != IGNORE_INDEX).unsqueeze(1)
    return (probabilities * truth).sum(dim=(0, 2, 3)), (probabilities + truth).sum(dim=(0, 2, 3))


def combine(
    ce_sum: torch.Tensor, pixels: torch.Tensor, overlap: torch.Tensor, size: torch.Tensor, *, dice: float
) -> torch.Tensor:
    """Mean cross-entropy plus `dice` times (1 - mean soft Dice), of the sums above over a batch or a whole set.

    Dice as in Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), with p + g in the denominator. It is summed over the
    batch, so that a picture without a class does not dominate, and smoothed by one pixel, so that an absent class
    gives a loss of 0.
    """
    loss = ce_sum / pixels.clamp(min=1)
    return loss + dice * (1 - ((2 * overlap + 1) / (size + 1)).mean()) if dice else loss


def segmentation_loss(outputs: torch.Tensor, masks: torch.Tensor, *, dice: float = 1.0) -> torch.Tensor:
    """Cross-entropy plus `dice` times the Dice loss of a batch; f32 scalar, 0 if no pixel counts."""
    ce_sum, pixels = cross_entropy_sum(outputs, masks)
    if not dice:
        return combine(ce_sum, pixels, ce_sum, ce_sum, dice=0.0)
    return combine(ce_sum, pixels, *dice_sums(outputs, masks), dice=dice)
