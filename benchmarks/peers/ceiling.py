"""Decoding and resizing on plain threads, straight into the batch: no order, no files, no pipeline to pay for."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import simplejpeg
import torch
from _serve import arguments, serve

from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_image

args = arguments(("--decoder", "cv2"))
cv2.setNumThreads(1)
torch.set_num_threads(1)
files = args.data / "files"
samples = [
    (np.fromfile(image, np.uint8), np.fromfile(mask, np.uint8))
    for image, mask in zip(
        sorted((files / "images").iterdir()), sorted((files / "masks").iterdir()), strict=True
    )
]  # fmt: skip
size = (args.size, args.size)
rng = np.random.default_rng(0)


def decode(data):
    if args.decoder == "cv2":
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return simplejpeg.decode_jpeg(data)


def fill(order, images, codes):
    for row, index in enumerate(order):
        image = decode(samples[index][0])
        # Linear alone keeps the loader contract's bound for small reductions only.
        if min(image.shape[:2]) < 1.5 * args.size:
            cv2.resize(image, size, dst=images[row], interpolation=cv2.INTER_LINEAR)
        else:
            resize_image(image, *size, out=images[row])
        mask = decode_mask(memoryview(samples[index][1]))
        cv2.resize(mask, size, dst=codes[row], interpolation=cv2.INTER_NEAREST_EXACT)


def stream():
    ahead = []
    with ThreadPoolExecutor(args.workers) as pool:
        while True:
            order = rng.permutation(len(samples))
            for first in range(0, len(order) - args.batch + 1, args.batch):
                images = np.empty((args.batch, args.size, args.size, 3), np.uint8)
                codes = np.empty((args.batch, args.size, args.size), np.uint8)
                part = -(-args.batch // args.workers)
                cuts = [slice(at, at + part) for at in range(0, args.batch, part)]
                chosen = order[first : first + args.batch]
                ahead.append((images, codes, [pool.submit(fill, chosen[c], images[c], codes[c]) for c in cuts]))
                if len(ahead) > 2:
                    images, codes, tasks = ahead.pop(0)
                    for task in tasks:
                        task.result()
                    yield images, codes


serve(stream(), "opencv-python-headless", "simplejpeg", "numpy")
