"""Losses over class indices, in fp32 whatever the network ran in (fp16 sums over 512x512 pixels overflow)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from petseg.classes import IGNORE_INDEX


def loss_sums(
    outputs: torch.Tensor, masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the loss of a batch, or of a whole set, is made of.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.

    Returns:
        (f32 scalar, cross-entropy summed over the pixels that count; i64 scalar, how many those are; f32[C], numerator
        of each class's soft Dice coefficient: the sum of probability inside it; f32[C], its denominator: the sum of
        probability plus true pixels), no host sync.
    """
    # One softmax for both losses: it is the largest part of either.
    logs = outputs.float().log_softmax(dim=1)
    entropy = F.nll_loss(logs, masks, ignore_index=IGNORE_INDEX, reduction="sum")
    counts = (masks != IGNORE_INDEX).unsqueeze(1)
    classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, 1, 1)
    truth = (masks.unsqueeze(1) == classes).float()
    probabilities = logs.exp() * counts
    axes = (0, 2, 3)
    overlap, size = (probabilities * truth).sum(axes), (probabilities + truth).sum(axes)
    return entropy, counts.sum(), overlap, size


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
    if dice:
        return combine(*loss_sums(outputs, masks), dice=dice)
    total = F.cross_entropy(outputs.float(), masks, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (masks != IGNORE_INDEX).sum().clamp(min=1)
