import numpy as np
import pytest
import torch
import torch.nn.functional as F

from petseg.model.losses import Objective, combine, loss_sums, lovasz


def segmentation_loss(outputs, masks, *, dice=1.0):
    """As a training step has it."""
    return combine(loss_sums(outputs, masks, dice=dice > 0), dice=dice)


def sample(seed=0, n=2, classes=3, side=9):
    g = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, side, side, generator=g) * 3
    masks = torch.randint(0, classes, (n, side, side), generator=g)
    masks[torch.rand(masks.shape, generator=g) < 0.2] = 255
    return outputs, masks


def test_cross_entropy_is_torchs():
    outputs, masks = sample()
    expected = F.cross_entropy(outputs, masks, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(outputs, masks, dice=0.0), expected)
    for dice in (True, False):
        total, pixels, *_ = loss_sums(outputs, masks, dice=dice)
        torch.testing.assert_close(total / pixels, expected)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_the_plain_formula(seed):
    outputs, masks = sample(seed)
    x, m = outputs.double().numpy(), masks.numpy()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    scores = []
    for c in range(3):
        counted = m != 255
        inside = p[:, c][counted & (m == c)].sum()
        scores.append((2 * inside + 1) / (p[:, c][counted].sum() + (m == c).sum() + 1))
    expected = F.cross_entropy(outputs, masks, ignore_index=255).item() + 0.7 * (1 - np.mean(scores))
    assert segmentation_loss(outputs, masks, dice=0.7).item() == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_have_no_gradient_and_no_weight():
    outputs, masks = sample()
    outputs.requires_grad_()
    loss = segmentation_loss(outputs, masks)
    loss.backward()
    ignored = (masks == 255).unsqueeze(1).expand_as(outputs)
    assert (outputs.grad[ignored] == 0).all()
    assert (outputs.grad[~ignored] != 0).all()
    other = torch.where(ignored, torch.full_like(outputs, 50.0), outputs)
    torch.testing.assert_close(segmentation_loss(other, masks), loss)


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_nothing_counted_is_a_finite_zero(dice):
    outputs = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(outputs, torch.full((2, 4, 4), 255), dice=dice)
    loss.backward()
    assert loss.item() == 0
    assert (outputs.grad == 0).all()


@pytest.mark.parametrize(("classes", "present"), [(3, 3), (21, 3), (150, 2)])
def test_a_class_that_is_absent_puts_no_floor_under_the_loss(classes, present):
    masks = torch.arange(present).repeat_interleave(1200 // present).view(1, 30, 40)
    sure = torch.full((classes,), 0.01 / (classes - 1)).log()
    outputs = torch.where(F.one_hot(masks, classes).permute(0, 3, 1, 2).bool(), np.log(0.99), sure.view(1, -1, 1, 1))
    entropy = segmentation_loss(outputs, masks, dice=0.0).item()
    assert 0.004 < segmentation_loss(outputs, masks).item() - entropy < 0.012


def test_sums_of_parts_are_those_of_the_whole():
    outputs, masks = sample(3, n=6, classes=5)
    parts = sum(loss_sums(outputs[i : i + 2], masks[i : i + 2]) for i in (0, 2, 4))
    torch.testing.assert_close(combine(parts, dice=1.0), segmentation_loss(outputs, masks))


def test_fp16_outputs_of_512_px_do_not_overflow():
    masks = torch.zeros(4, 512, 512, dtype=torch.int64)
    outputs = torch.full((4, 3, 512, 512), 4.0, dtype=torch.float16)
    loss = segmentation_loss(outputs, masks)
    assert loss.dtype == torch.float32
    # p = 1/3 everywhere: class 0 has Dice 2/3 / (1/3 + 1) = 0.5, the absent ones do not count.
    assert loss.item() == pytest.approx(np.log(3) + 0.5, rel=1e-3)
    overlap, size, _ = loss_sums(outputs, masks)[2:].view(3, -1)
    assert overlap[0].item() == pytest.approx(4 * 512 * 512 / 3, rel=1e-4)
    assert size[1].item() == pytest.approx(4 * 512 * 512 / 3, rel=1e-4)


def test_weights_and_focal_are_the_plain_formulas():
    outputs, masks = sample(5, classes=4)
    weights = torch.tensor([0.2, 3.0, 1.0, 0.0])
    weighted = Objective("ce", weights=weights.tolist())
    expected = F.cross_entropy(outputs, masks, weights, ignore_index=255)
    torch.testing.assert_close(weighted.value(weighted(outputs, masks)), expected)
    probabilities = outputs.softmax(1)
    counted = masks != 255
    true = probabilities.movedim(1, 3)[counted].gather(1, masks[counted].view(-1, 1))[:, 0]
    for given in (None, weights.tolist()):
        focal = Objective("focal", gamma=1.5, weights=given)
        each = -true.log() * (1 - true) ** 1.5
        of = torch.ones(4) if given is None else weights
        wanted = (each * of[masks[counted]]).sum() / of[masks[counted]].sum()
        torch.testing.assert_close(focal.value(focal(outputs, masks)), wanted)
    plain = Objective("focal", gamma=0.0)
    torch.testing.assert_close(plain.value(plain(outputs, masks)), F.cross_entropy(outputs, masks, ignore_index=255))


def lovasz_by_hand(probabilities, masks):
    """Berman et al., algorithm 1 and equation 9, class by class and pixel by pixel."""
    found = []
    for c in range(probabilities.shape[1]):
        counted = (masks != 255).ravel()
        p = probabilities[:, c].ravel()[counted]
        truth = (masks == c).ravel()[counted]
        if not truth.any():
            continue
        errors = np.where(truth, 1 - p, p)
        order = np.argsort(-errors, kind="stable")
        before, loss, hits, misses = 0.0, 0.0, 0, 0
        for i in order:
            hits, misses = hits + truth[i], misses + (not truth[i])
            jaccard = 1 - (truth.sum() - hits) / (truth.sum() + misses)
            loss, before = loss + errors[i] * (jaccard - before), jaccard
        found.append(loss)
    return np.mean(found)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_the_papers(seed):
    outputs, masks = sample(seed, classes=4, side=7)
    masks[masks == 3] = 0  # a class that does not occur
    wanted = lovasz_by_hand(outputs.double().softmax(1).numpy(), masks.numpy())
    assert lovasz(outputs.softmax(1), masks).item() == pytest.approx(wanted, rel=1e-5)
    objective = Objective("lovasz")
    both = objective.value(objective(outputs, masks))
    assert both.item() == pytest.approx(wanted + F.cross_entropy(outputs, masks, ignore_index=255).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["ce", "ce+dice", "focal", "lovasz"])
def test_every_loss_passes_over_ignored_pixels_and_falls_along_its_gradient(kind):
    outputs, masks = sample(7)
    objective = Objective(kind, weights=[1.0, 2.0, 0.5])
    outputs.requires_grad_()
    value = objective.value(objective(outputs, masks))
    value.backward()
    ignored = (masks == 255).unsqueeze(1).expand_as(outputs)
    assert (outputs.grad[ignored] == 0).all() and outputs.grad.isfinite().all()
    with torch.no_grad():
        assert objective.value(objective(outputs - 5 * outputs.grad, masks)) < value
        nothing = objective.value(objective(outputs, torch.full_like(masks, 255)))
    assert nothing.item() == 0


def test_a_loss_of_ones_own_sees_what_torchs_passes_over():
    outputs, masks = sample()
    objective = Objective("own", own=F.cross_entropy)
    torch.testing.assert_close(
        objective.value(objective(outputs, masks)), F.cross_entropy(outputs, masks, ignore_index=255)
    )
