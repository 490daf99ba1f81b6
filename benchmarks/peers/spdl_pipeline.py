# /// script
# requires-python = ">=3.11"
# dependencies = ["spdl==0.8.*", "numpy>=2,<3"]
# ///
"""SPDL: its pipeline of threads, its batch decoder (FFmpeg) for images and masks, as its documentation builds them."""

import random
import sys

import spdl.io
from _serve import arguments, endless, serve
from spdl.pipeline import PipelineBuilder

args = arguments()
files = args.data / "files"
pairs = list(zip(*(sorted(map(str, (files / kind).iterdir())) for kind in ("images", "masks")), strict=True))


def decode(paths, flags, pix_fmt):
    # A filter of our own: by width and height alone it would keep the aspect ratio and pad.
    scale = f"scale=width={args.size}:height={args.size}:flags={flags},format=pix_fmts={pix_fmt}"
    loaded = spdl.io.load_image_batch(list(paths), width=None, height=None, pix_fmt=None, filter_desc=scale)
    return spdl.io.to_numpy(loaded)


def load(batch):
    images, masks = zip(*batch, strict=True)
    return decode(images, "bilinear", "rgb24"), decode(masks, "neighbor", "gray")[..., 0]


def epoch():
    random.shuffle(pairs)
    pipeline = (
        PipelineBuilder()
        .add_source(pairs)
        .aggregate(args.batch, drop_last=True)
        .pipe(load, concurrency=args.workers)
        .add_sink(3)
        .build(num_threads=args.workers)
    )
    with pipeline.auto_stop():
        yield from pipeline


try:
    spdl.io.demux_image(pairs[0][0])
except RuntimeError:
    sys.exit("SPDL finds no shared libraries of FFmpeg 4 to 9 (Debian: apt-get install ffmpeg)")
serve(endless(epoch), "spdl")
