"""First weights from another run: its head stays, or gets new weights."""

from pathlib import Path

import pytest
import torch

from petseg.classes import OXFORD, ClassTable
from petseg.errors import PetsegError
from petseg.model.networks import OwnNetwork, SeedUNet, UNet
from petseg.model.transfer import take_over

WHERE = Path("theirs/best.pt")
FIVE = ClassTable(codes=(1, 2, 3, 4, 5), names=("a", "b", "c", "d", "e"), colours=tuple((i, i, i) for i in range(5)))
OTHERS = ClassTable(codes=(1, 2, 3), names=("a", "b", "c"), colours=tuple((i, i, i) for i in range(3)))


def own(classes):
    return OwnNetwork(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, classes, 1)))


MAKERS = {
    "unet": lambda n: UNet(classes=n, width=4, depth=2),
    "seed": lambda n: SeedUNet(classes=n),
    "own": own,
}


def names_that_differ(one, other):
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


@pytest.mark.parametrize("kind", MAKERS)
def test_another_number_of_classes_gives_the_head_new_weights(kind):
    theirs, ours = MAKERS[kind](3), MAKERS[kind](5)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    note = take_over(ours, theirs.state_dict(), WHERE, source=OXFORD, target=FIVE, head="auto")
    assert "its head has new weights, for 5 classes" in note
    head = {name for name, value in before.items() if theirs.state_dict()[name].shape != value.shape}
    body = before.keys() - head
    assert head and all(torch.equal(ours.state_dict()[name], theirs.state_dict()[name]) for name in body)
    assert all(torch.equal(ours.state_dict()[name], before[name]) for name in head)


@pytest.mark.parametrize("kind", ["unet", "seed"])
def test_the_same_number_of_other_classes_needs_a_decision(kind):
    theirs, ours = MAKERS[kind](3), MAKERS[kind](3)
    with pytest.raises(PetsegError, match=r"--init-from: .*pet \(1\).* a \(1\).*--init-head keep .* --init-head new"):
        take_over(ours, theirs.state_dict(), WHERE, source=OXFORD, target=OTHERS, head="auto")
    assert take_over(ours, theirs.state_dict(), WHERE, source=OXFORD, target=OTHERS, head="keep") == ""
    assert not names_that_differ(ours.state_dict(), theirs.state_dict())
    ours = MAKERS[kind](3)
    assert "new weights" in take_over(ours, theirs.state_dict(), WHERE, source=OXFORD, target=OTHERS, head="new")
    differing = names_that_differ(ours.state_dict(), theirs.state_dict())
    assert differing and all(name.startswith("head.") for name in differing)


def test_what_cannot_be_taken_over():
    with pytest.raises(PetsegError, match=r"--init-head: .* has 3 classes and these shards 5"):
        take_over(own(5), own(3).state_dict(), WHERE, source=OXFORD, target=FIVE, head="keep")
    with pytest.raises(PetsegError, match="petseg cannot tell which layers of your own network are its head"):
        take_over(own(3), own(3).state_dict(), WHERE, source=OXFORD, target=OTHERS, head="new")
    with pytest.raises(PetsegError, match="another architecture"):
        take_over(UNet(classes=5, width=8), UNet(width=4).state_dict(), WHERE, source=OXFORD, target=FIVE, head="auto")
