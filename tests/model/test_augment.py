import torch

from petseg.model.augment import Policy, augment, uniforms

NONE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
EPOCH = torch.tensor(3)


def some_images(n=6, side=48):
    masks = torch.randint(0, 3, (n, 4, 4), generator=torch.Generator().manual_seed(0))
    masks = masks.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    return (masks.unsqueeze(1) / 2).repeat(1, 3, 1, 1).float(), masks


def test_uniforms_are_even_and_differ():
    u = uniforms(torch.arange(20000), EPOCH, 5, 4)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.01
    assert (u.T.corrcoef() - torch.eye(4)).abs().max() < 0.03
    for other in (uniforms(torch.arange(20000), EPOCH + 1, 5, 4), uniforms(torch.arange(20000), EPOCH, 5 + 2**32, 4)):
        assert (u == other).float().mean() < 0.001


def test_uniforms_are_what_they_have_always_been():
    """Of resumed runs, and compiled or not: the definition, in whole numbers of Python."""

    def mix(x):
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0x735A2D97 % 2**32
        return x ^ x >> 15

    def number(index, epoch, seed, stream):
        key = mix(mix((epoch + 0x51ED27) % 2**32) ^ seed % 2**32) ^ seed >> 32
        sample = mix(index % 2**32 ^ mix(key))
        return (mix((sample + stream * 0x9E3779B9) % 2**32) >> 8) * 2**-24

    indices, seed = [0, 1, 7, 3679, -1, 2**31], 5 + 3 * 2**32
    expected = [[number(index, 3, seed, stream) for stream in range(1, 9)] for index in indices]
    assert uniforms(torch.tensor(indices), EPOCH, seed, 8).tolist() == expected


def test_a_sample_moves_alike_in_any_batch():
    x, masks = some_images()
    whole = augment(x, masks, torch.arange(6), EPOCH, seed=1, policy=Policy())
    pick = torch.tensor([4, 1])
    part = augment(x[pick], masks[pick], pick, EPOCH, seed=1, policy=Policy())
    torch.testing.assert_close(whole[0][pick], part[0])
    assert torch.equal(whole[1][pick], part[1])


def test_the_mask_moves_with_its_image():
    x, masks = some_images()
    moved, after = augment(x, masks, torch.arange(6), EPOCH, seed=1, policy=Policy(**NONE))
    assert not torch.equal(after, masks)
    assert ((moved[:, 0] * 2).round().long() == after).float().mean() > 0.95
    sure = (moved[:, 0] * 2 - (moved[:, 0] * 2).round()).abs() < 1e-3
    assert ((moved[:, 0] * 2).round().long() == after)[sure].float().mean() > 0.995


def test_labels_survive_and_the_range_holds():
    x, masks = some_images()
    masks[masks == 2] = 255
    moved, after = augment(x, masks, torch.arange(6), EPOCH, seed=1, policy=Policy())
    assert set(after.unique().tolist()) == {0, 1, 255}
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_no_amounts_change_nothing():
    x, masks = some_images()
    still = Policy(flip=False, degrees=0, zoom=0, shift=0, **NONE)
    moved, after = augment(x, masks, torch.arange(6), EPOCH, seed=1, policy=still)
    torch.testing.assert_close(moved, x, atol=1e-4, rtol=0)
    assert torch.equal(after, masks)


STILL = {"flip": False, "degrees": 0, "zoom": 0, "shift": 0, **NONE}


def orbit(x):
    """A square image turned and mirrored in all eight ways."""
    turns = [torch.rot90(x, k, (-2, -1)) for k in range(4)]
    return turns + [turn.flip(-1) for turn in turns]


def test_right_angles_and_both_mirror_images_are_all_met_and_nothing_else():
    n = 400
    x, masks = torch.rand(1, 3, 16, 16).expand(n, -1, -1, -1), torch.arange(256).view(1, 16, 16).expand(n, -1, -1)
    cases = {"flip": [0, 4], "flip_rows": [0, 6], "right_angles": [0, 1, 2, 3]}
    for name, ways in cases.items():
        moved, after = augment(x, masks, torch.arange(n), EPOCH, seed=1, policy=Policy(**{**STILL, name: True}))
        choices = torch.stack([orbit(masks[0])[way] for way in ways])
        which = (after.unsqueeze(1) == choices).flatten(2).all(2)
        assert (which.sum(1) == 1).all()
        assert (which.float().mean(0) - 1 / len(ways)).abs().max() < 0.1
        images_ = torch.stack([orbit(x[0])[way] for way in ways])
        torch.testing.assert_close(moved, images_[which.int().argmax(1)], atol=1e-4, rtol=0)
    every = Policy(**{**STILL, "flip": True, "flip_rows": True, "right_angles": True})
    _, after = augment(x, masks, torch.arange(n), EPOCH, seed=1, policy=every)
    assert {tuple(one.flatten().tolist()) for one in after} == {
        tuple(one.flatten().tolist()) for one in orbit(masks[0])
    }


def test_what_is_new_in_a_policy_moves_nobody_elses_images():
    """Pinned before there were right angles: a resumed run gets the images that it would have got."""
    x, masks = some_images()
    moved, after = augment(x, masks, torch.arange(6), EPOCH, seed=1, policy=Policy())
    assert after.sum().item() == 14958
    assert abs(moved.double().sum().item() - 20959.56) < 0.5
