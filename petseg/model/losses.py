"""Losses over class indices, in fp32 whatever the network ran in (fp16 sums over 512x512 pixels overflow)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from petseg.classes import IGNORE_INDEX


def sums_length(classes: int) -> int:
    """How many numbers `loss_sums` gives for so many classes."""
    return 2 + 3 * classes


def loss_sums(outputs: torch.Tensor, masks: torch.Tensor, *, dice: bool = True) -> torch.Tensor:
    """What the loss of a batch, or of a whole set, is made of: those of parts add up to those of the whole.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.
        dice: whether the Dice loss is asked for; else its part is zeros.

    Returns:
        f32[2 + 3 C], no host sync: cross-entropy summed over the pixels that count; how many those are; for each class
        the sum of probability inside it, the sum of probability plus true pixels, and its true pixels.
    """
    counts = (masks != IGNORE_INDEX).unsqueeze(1)
    if not dice:
        entropy = F.cross_entropy(outputs.float(), masks, ignore_index=IGNORE_INDEX, reduction="sum")
        return torch.cat([entropy.view(1), counts.sum().view(1), outputs.new_zeros(3 * outputs.shape[1]).float()])
    # One softmax for both losses: it is the largest part of either.
    logs = outputs.float().log_softmax(dim=1)
    entropy = F.nll_loss(logs, masks, ignore_index=IGNORE_INDEX, reduction="sum")
    classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, 1, 1)
    truth = (masks.unsqueeze(1) == classes).float()
    probabilities = logs.exp() * counts
    axes = (0, 2, 3)
    overlap, size = (probabilities * truth).sum(axes), (probabilities + truth).sum(axes)
    return torch.cat([entropy.view(1), counts.sum().view(1), overlap, size, truth.sum(axes)])


def combine(sums: torch.Tensor, *, dice: float) -> torch.Tensor:
    """Mean cross-entropy plus `dice` times (1 - mean soft Dice), of `loss_sums` over a batch or a whole set; a scalar.

    Dice as in Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), with p + g in the denominator. It is summed over the
    batch, so that a picture without a class does not dominate, smoothed by one pixel, and the mean is over the classes
    that are there: that the others get no probability is the cross-entropy's business, and a term for each of them
    would put a floor under the loss of a set of many classes.
    """
    loss: torch.Tensor = sums[0] / sums[1].clamp(min=1)
    if not dice:
        return loss
    overlap, size, truth = sums[2:].view(3, -1)
    here = (truth > 0).to(sums.dtype)
    lost = here * (1 - (2 * overlap + 1) / (size + 1))
    both: torch.Tensor = loss + dice * lost.sum() / here.sum().clamp(min=1)
    return both
