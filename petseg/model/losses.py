"""Losses over class indices, in fp32 whatever the network ran in (fp16 sums over 512x512 pixels overflow)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from petseg.classes import CROSS_ENTROPY_IGNORES, IGNORE_INDEX

LossKind = Literal["ce", "ce+dice", "focal", "lovasz", "own"]

OwnLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A custom loss: from logits f32[N, C, H, W] and class indices i64[N, H, W] to a scalar. -100 stands where a
pixel does not count, which torch's cross-entropy passes over."""


class Objective(nn.Module):
    """The loss of a run, made of sums: those of parts of a batch or a set add up to those of the whole.

    Lovász and custom losses are not sums over pixels: there the parts' values are averaged, each by its pixels.

    Args:
        kind: `ce` (cross-entropy), `ce+dice`, `focal`, `lovasz` (with cross-entropy) or `own`.
        dice: weight of the Dice loss in `ce+dice`.
        gamma: of `focal`.
        weights: of the classes, in their order, for cross-entropy and focal; None for all alike.
        own: the loss that `own` is.
    """

    weights: torch.Tensor | None

    def __init__(
        self,
        kind: LossKind = "ce+dice",
        *,
        dice: float = 1.0,
        gamma: float = 2.0,
        weights: Sequence[float] | None = None,
        own: OwnLoss | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.dice = dice if kind == "ce+dice" else 0.0
        self.gamma = gamma if kind == "focal" else 0.0
        self._own = own if kind == "own" else None
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def forward(self, outputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The sums of a batch, as `loss_sums` gives them."""
        if self._own is not None:
            masks = masks.long()
            value = self._own(outputs.float(), masks.masked_fill(masks == IGNORE_INDEX, CROSS_ENTROPY_IGNORES))
            pixels = counted_pixels(masks, None).view(1)
            return torch.cat([value.float().view(1) * pixels, pixels, outputs.new_zeros(3 * outputs.shape[1]).float()])
        sums = loss_sums(outputs, masks, dice=self.dice > 0, weights=self.weights, gamma=self.gamma)
        if self.kind != "lovasz":
            return sums
        # A part of the first number, so that it is weighed as cross-entropy is.
        extra = lovasz(outputs.float().softmax(1), masks) * sums[1].detach()
        return torch.cat([(sums[0] + extra).view(1), sums[1:]])

    def value(self, sums: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of sums over a batch or a whole set."""
        return combine(sums, dice=self.dice)

    def count(self, masks: torch.Tensor) -> torch.Tensor:
        """The divisor of cross-entropy: the pixels of masks [N, H, W] that count, or their weights' sum."""
        return counted_pixels(masks, self.weights)

    def part(self, sums: torch.Tensor, count: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """The share of one of several batches in the loss of a step, a scalar.

        Cross-entropy as in one large batch; of Dice, which is not a sum over pixels, the mean over the batches.

        Args:
            sums: of the batch.
            count: of all batches of the step together, a scalar.
            share: 1 over their number, a scalar.
        """
        return sums[0] / count.clamp(min=1) + share * (self.value(sums) - sums[0] / sums[1].clamp(min=1))


def sums_length(classes: int) -> int:
    """How many numbers `loss_sums` gives for so many classes."""
    return 2 + 3 * classes


def loss_sums(
    outputs: torch.Tensor,
    masks: torch.Tensor,
    *,
    dice: bool = True,
    weights: torch.Tensor | None = None,
    gamma: float = 0.0,
) -> torch.Tensor:
    """Sums that make up the loss of a batch, or of a whole set: those of parts add up to those of the whole.

    Args:
        outputs: f[N, C, H, W], logits.
        masks: u8 or i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.
        dice: whether the Dice loss is asked for; else its part is zeros.
        weights: f32[C], of the classes in cross-entropy; None for all alike.
        gamma: cross-entropy is scaled by (1 - p) ** gamma, p the probability of the true class (the focal loss of Lin
            et al., ICCV 2017); 0 for not at all.

    Returns:
        f32[2 + 3 C], no host sync: cross-entropy summed over the pixels that count; how many those are (their weights'
        sum); for each class the sum of probability inside it, the sum of probability plus true pixels, and its true
        pixels.
    """
    counts = (masks != IGNORE_INDEX).unsqueeze(1)
    pixels = counted_pixels(masks, weights).view(1)
    # One softmax for both losses: it is the largest part of either.
    logs, targets = outputs.float().log_softmax(dim=1), masks.long()
    if gamma:
        plain = F.nll_loss(logs, targets, ignore_index=IGNORE_INDEX, reduction="none")
        each = F.nll_loss(logs, targets, weights, ignore_index=IGNORE_INDEX, reduction="none")
        # exp(-0) is 1, so that pixels that do not count stay at 0.
        entropy = ((1 - (-plain).exp()).clamp_min(1e-7) ** gamma * each).sum()
    else:
        entropy = F.nll_loss(logs, targets, weights, ignore_index=IGNORE_INDEX, reduction="sum")
    if not dice:
        return torch.cat([entropy.view(1), pixels, outputs.new_zeros(3 * outputs.shape[1]).float()])
    classes = torch.arange(outputs.shape[1], device=outputs.device).view(1, -1, 1, 1)
    truth = (masks.unsqueeze(1) == classes).float()
    probabilities = logs.exp() * counts
    axes = (0, 2, 3)
    overlap, size = (probabilities * truth).sum(axes), (probabilities + truth).sum(axes)
    return torch.cat([entropy.view(1), pixels, overlap, size, truth.sum(axes)])


def counted_pixels(masks: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """How many pixels of masks [N, H, W], u8 or i64, count, or the sum of their classes' weights f32[C]; a scalar."""
    counts = masks != IGNORE_INDEX
    return counts.sum() if weights is None else (weights[masks.masked_fill(~counts, 0).long()] * counts).sum()


def lovasz(probabilities: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The Lovász-Softmax loss over all pixels of a batch, the mean over its classes that occur; a scalar, no host sync.

    Berman, Triki and Blaschko, CVPR 2018, equations 8 and 9. Its sorts take most of a step on a CPU.

    Args:
        probabilities: f32[N, C, H, W].
        masks: u8 or i64[N, H, W], class indices, IGNORE_INDEX where a pixel does not count.
    """
    counted = (masks != IGNORE_INDEX).reshape(-1)
    flat = probabilities.movedim(1, 0).flatten(1)
    truth = (masks.reshape(1, -1) == torch.arange(len(flat), device=masks.device).view(-1, 1)).float()
    # Pixels that do not count have no error, so they come last, where each has a weight of its own times 0.
    errors, order = torch.sort((truth - flat).abs() * counted, dim=1, descending=True)
    hits = truth.gather(1, order)
    total = hits.sum(1, keepdim=True)
    jaccard = 1 - (total - hits.cumsum(1)) / (total + (1 - hits).cumsum(1)).clamp_min(1)
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    here = (total[:, 0] > 0).float()
    mean: torch.Tensor = ((errors * steps.detach()).sum(1) * here).sum() / here.sum().clamp_min(1)
    return mean


def combine(sums: torch.Tensor, *, dice: float) -> torch.Tensor:
    """Mean cross-entropy plus `dice` times (1 - mean soft Dice), of `loss_sums` over a batch or a whole set; a scalar.

    Dice as in Milletari, Navab and Ahmadi, "V-Net" (3DV 2016), with p + g in the denominator. It is summed over the
    batch, so that an image without a class does not dominate, smoothed by one pixel, and the mean is over the classes
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
