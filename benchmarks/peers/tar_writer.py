"""webdataset's ShardWriter in one process: it copies bytes, or decodes and checks them, or resizes too."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import webdataset as wds

parser = argparse.ArgumentParser()
parser.add_argument("source", type=Path, help="folder with images/ and masks/")
parser.add_argument("out", type=Path)
parser.add_argument("--work", choices=("copy", "check", "resize"), default="copy")
parser.add_argument("--short-side", type=int, default=0)
args = parser.parse_args()


def checked(image, mask):
    """Decoded, as whoever does not want to find a damaged file in the middle of a training run does."""
    pixels = simplejpeg.decode_jpeg(image)
    codes = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape[:2] == codes.shape and set(np.unique(codes)) <= {1, 2, 3}
    return pixels, codes


def resized(pixels, codes):
    height, width = codes.shape
    scale = min(1.0, args.short_side / min(height, width))
    size = round(width * scale), round(height * scale)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    codes = cv2.resize(codes, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return simplejpeg.encode_jpeg(small, quality=90), cv2.imencode(".png", codes)[1].tobytes()


args.out.mkdir(parents=True)
with wds.ShardWriter(str(args.out / "train-%06d.tar"), maxcount=256, verbose=0) as sink:
    for path in sorted((args.source / "images").iterdir()):
        image, mask = path.read_bytes(), (args.source / "masks" / f"{path.stem}.png").read_bytes()
        if args.work != "copy":
            pixels, codes = checked(image, mask)
            if args.work == "resize":
                image, mask = resized(pixels, codes)
        sink.write({"__key__": path.stem, "jpg": image, "png": mask})
