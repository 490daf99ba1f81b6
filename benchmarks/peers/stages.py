"""Where a sample's time goes: each stage of petseg's thread engine by itself, on one thread, and OpenCV's beside it."""

import time

import cv2
import numpy as np
import torch
from _serve import arguments, serve

from petseg.data.decode.images import decode_image
from petseg.data.decode.masks import decode_mask
from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.reader import ShardReader

args = arguments()
torch.set_num_threads(1)
cv2.setNumThreads(1)
shards = args.data / "shards"
reader = ShardReader(shards, Manifest.load(shards), "train")
size, chosen = args.size, range(min(256, len(reader)))
image_out = np.empty((args.batch, size, size, 3), np.uint8)
codes_out = np.empty((args.batch, size, size), np.uint8)


def into(rows, call):
    """`call` writes into the rows of a batch, in turn."""
    return lambda i, x: call(x, rows[i % args.batch])


def area(image, row):
    cv2.resize(image, (size, size), dst=row, interpolation=cv2.INTER_AREA)


def timed(inputs, call):
    start = time.perf_counter()
    made = [call(i, x) for i, x in enumerate(inputs)]
    found.append(1e6 * (time.perf_counter() - start) / len(made))
    return made


STAGES = (
    "read", "decode the image", "OpenCV: decode the image", "resize the image into the batch",
    "OpenCV: resize the image by area", "decode the mask", "OpenCV: decode the mask", "resize the mask into the batch",
)  # fmt: skip


def passes():
    while True:
        found.clear()
        pairs = timed(chosen, lambda _, index: reader.read(index))
        images, masks = ([np.frombuffer(pair[part], np.uint8) for pair in pairs] for part in (0, 1))
        decoded = timed([image for image, _ in pairs], lambda _, data: decode_image(data))
        timed(images, lambda _, data: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
        timed(decoded, into(image_out, lambda pixels, row: resize_image(pixels, size, size, row)))
        timed(decoded, into(image_out, area))
        codes = timed([mask for _, mask in pairs], lambda _, data: decode_mask(data))
        timed(masks, lambda _, data: cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
        timed(codes, into(codes_out, lambda mask, row: resize_nearest(mask, size, size, row)))
        yield chosen, chosen


found = []
serve(passes(), "petseg", "torch", facts=lambda: {"stages": dict(zip(STAGES, found, strict=True))})
