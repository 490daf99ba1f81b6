"""A U-Net of segmentation_models.pytorch in a plain loop, as its examples have it: fp32, flips, Adam, CE + Dice."""

import os

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from _learning import arguments, scorer, train_epochs
from PIL import Image
from torch.utils.data import DataLoader, Dataset

SIZE = 128

args = arguments()


class Pets(Dataset):
    def __init__(self, images, masks):
        self.images, self.masks = images, masks
        self.names = sorted(os.path.splitext(name)[0] for name in os.listdir(masks))

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = Image.open(self.images / f"{self.names[index]}.jpg").convert("RGB").resize((SIZE, SIZE))
        mask = Image.open(self.masks / f"{self.names[index]}.png").resize((SIZE, SIZE), Image.Resampling.NEAREST)
        image, mask = T.functional.to_tensor(image), torch.from_numpy(np.array(mask)).long() - 1
        return (image.flip(2), mask.flip(1)) if torch.rand(()) < 0.5 else (image, mask)


network = smp.Unet("resnet18", encoder_weights=None, classes=3)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
dice = smp.losses.DiceLoss("multiclass")


def step(images, masks):
    optimizer.zero_grad()
    logits = network(images)
    loss = F.cross_entropy(logits, masks) + dice(logits, masks)
    loss.backward()
    optimizer.step()
    return loss.item()


loader = DataLoader(
    Pets(args.data / "files" / "images", args.data / "files" / "masks"), batch_size=16, shuffle=True,
    num_workers=2, drop_last=True, persistent_workers=True,
)  # fmt: skip
train_epochs(args, loader, step, network, scorer(args, network, SIZE))
