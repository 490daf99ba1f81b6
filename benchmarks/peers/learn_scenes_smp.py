"""A U-Net of segmentation_models.pytorch on CamVid in a plain loop: crops of enlarged images, fp32, Adam, CE + Dice.

The learning rate falls along a cosine over the time that it is given. Every fifth epoch is scored.
"""

import math
import os
import time

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from _learning import arguments, image_scores, train_epochs
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

HEIGHT, WIDTH, CROP, VOID, STRIDE = 360, 480, 256, 11, 32

args = arguments()
augment = v2.Compose(
    [
        v2.ScaleJitter((HEIGHT, WIDTH), (0.5, 1.5)),
        v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: VOID}),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class Streets(Dataset):
    def __init__(self, images, masks):
        self.images, self.masks = images, masks
        self.names = sorted(os.path.splitext(name)[0] for name in os.listdir(masks))

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = Image.open(self.images / f"{self.names[index]}.jpg").convert("RGB")
        mask = torch.from_numpy(np.array(Image.open(self.masks / f"{self.names[index]}.png"))).long()
        return augment(tv_tensors.Image(image), tv_tensors.Mask(mask))


network = smp.Unet("resnet18", encoder_weights=None, classes=11)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
dice = smp.losses.DiceLoss("multiclass", ignore_index=VOID)
spent = 0.0  # seconds of steps: evaluation is not of the time that is given


def step(images, masks):
    global spent
    began, passed = time.monotonic(), min(spent / args.seconds, 1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * (1 + math.cos(math.pi * passed)) / 2
    optimizer.zero_grad()
    logits = network(images)
    loss = F.cross_entropy(logits, masks, ignore_index=VOID) + dice(logits, masks)
    loss.backward()
    optimizer.step()
    spent += time.monotonic() - began
    return loss.item()


def segment(pixels):
    image = v2.functional.to_image(pixels).float() / 255
    image = v2.functional.normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    height, width = image.shape[1:]
    image = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
    return network(image[None])[0, :, :height, :width].argmax(0)


loader = DataLoader(
    Streets(args.data / "files" / "images", args.data / "files" / "masks"), batch_size=8, shuffle=True,
    num_workers=2, drop_last=True, persistent_workers=True,
)  # fmt: skip
train_epochs(args, loader, step, network, lambda: image_scores(args.data / "shards", "val", segment), every=5)
