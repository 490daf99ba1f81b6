import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
)

from petseg.classes import OXFORD
from petseg.model.metrics import confusion_matrices, constant_answer_mean_iou, mean_iou, metrics_from


def sample(seed):
    g = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (4, 13, 17), generator=g)
    predictions = torch.where(
        torch.rand(masks.shape, generator=g) < 0.6, masks, torch.randint(0, 3, masks.shape, generator=g)
    )
    masks[torch.rand(masks.shape, generator=g) < 0.2] = 255
    return predictions, masks


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_torchmetrics_and_brute_force(seed):
    predictions, masks = sample(seed)
    each = confusion_matrices(predictions, masks, 3).numpy()
    found = metrics_from(each.sum(0), OXFORD)

    def reference(kind, average):
        return kind(3, average=average, ignore_index=255)(predictions, masks).numpy()

    assert list(found["iou"].values()) == pytest.approx(reference(MulticlassJaccardIndex, "none"))
    assert list(found["dice_per_class"].values()) == pytest.approx(reference(MulticlassF1Score, "none"))
    assert list(found["class_accuracy"].values()) == pytest.approx(reference(MulticlassAccuracy, "none"))
    assert list(found["precision"].values()) == pytest.approx(reference(MulticlassPrecision, "none"))
    assert found["mean_iou"] == pytest.approx(reference(MulticlassJaccardIndex, "macro"))
    assert found["pixel_accuracy"] == pytest.approx(reference(MulticlassAccuracy, "micro"))
    counted = masks != 255
    for name, group in (("{1}", [0]), ("{1,3}", [0, 2])):
        p, t = (torch.isin(v, torch.tensor(group)) & counted for v in (predictions, masks))
        assert found["foreground_iou"][name] == pytest.approx(((p & t).sum() / (p | t).sum()).item())
    for i in range(4):
        one = MulticlassJaccardIndex(3, ignore_index=255)(predictions[i], masks[i]).item()
        assert mean_iou(each[i]) == pytest.approx(one)


def test_absent_classes_and_empty_sets():
    found = metrics_from(np.diag([0, 5, 0]), OXFORD)
    assert found["iou"] == {"pet": None, "background": 1.0, "border": None}
    assert (found["mean_iou"], found["dice"]) == (1.0, 1.0)
    assert found["foreground_iou"] == {"{1}": None, "{1,3}": None}
    nothing = metrics_from(np.zeros((3, 3), np.int64), OXFORD)
    assert nothing["mean_iou"] is nothing["dice"] is nothing["pixel_accuracy"] is None
    with pytest.raises(ValueError, match="3x3"):
        metrics_from(np.eye(2, dtype=np.int64), OXFORD)


def test_constant_answer_is_what_its_own_matrix_scores():
    confusion = np.array([[3, 1, 0], [2, 9, 4], [0, 0, 5]])
    constant = np.zeros((3, 3), np.int64)
    constant[:, 1] = confusion.sum(1)
    assert constant_answer_mean_iou(confusion) == pytest.approx(metrics_from(constant, OXFORD)["mean_iou"])
    assert constant_answer_mean_iou(np.zeros((3, 3))) == 0
