"""A contact sheet: samples of a split with their masks."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petseg.data.decode.resize import resize_image, resize_nearest
from petseg.data.order import keyed_hash
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.data.shards.reader import ShardReader
from petseg.drawing import INK, PAPER, legend
from petseg.errors import PetsegError
from petseg.system import write_atomic

TILE = 160
"""Longest side of an image on the sheet, in pixels."""

_GAP, _TEXT, _COLUMNS = 8, 16, 4


def contact_sheet(folder: Place, out: Path, *, split: str = "train", count: int = 24) -> int:
    """Write a PNG of samples, each beside its mask in the classes' colours, with its key and a legend.

    Args:
        folder: shard folder.
        out: PNG to write.
        split: which split.
        count: how many samples, drawn by a hash: the same ones every time.

    Returns:
        How many samples are on it.

    Raises:
        PetsegError: no such folder or split, a damaged sample, or a file that cannot be written.
    """
    if out.is_dir() or not out.name:
        raise PetsegError(f"--out: {out} is a folder; give the name of a PNG file.")
    if count < 1:
        raise PetsegError(f"--count: {count} is out of range; give at least 1.")
    manifest = Manifest.load(folder)
    reader = ShardReader(folder, manifest, split, verify=False)  # people look at shards to see what is wrong
    try:
        indices = np.arange(len(reader))
        chosen = sorted(indices[np.argsort(keyed_hash(indices, 5), kind="stable")][:count].tolist())
        tiles = [_tile(reader, index, manifest) for index in chosen]
    finally:
        reader.close()
    sheet = _sheet(tiles, manifest)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        write_atomic(out, buffer.getvalue())
    except OSError as error:
        raise PetsegError(f"--out: {out} could not be written ({error.strerror}); choose another file.") from error
    return len(tiles)


def _tile(reader: ShardReader, index: int, manifest: Manifest) -> tuple[str, Image.Image]:
    image, codes = reader.decoded(index)
    scale = TILE / max(image.shape[:2])
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[list(manifest.classes.codes)] = manifest.classes.palette()
    pair = Image.new("RGB", (2 * TILE, TILE), PAPER)
    for column, pixels in enumerate((resize_image(image, *size), colours[resize_nearest(codes, *size)])):
        corner = column * TILE + (TILE - size[1]) // 2, (TILE - size[0]) // 2
        pair.paste(Image.fromarray(np.ascontiguousarray(pixels)), corner)
    return reader.key(index), pair


def _sheet(tiles: list[tuple[str, Image.Image]], manifest: Manifest) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    step_x, step_y = 2 * TILE + _GAP, TILE + _TEXT + _GAP
    width = columns * step_x + _GAP
    names = legend(manifest.classes.names, manifest.classes.colours, width, _TEXT - 4)
    start = names.height if names else _GAP
    sheet = Image.new("RGB", (width, start + rows * step_y + _GAP), PAPER)
    if names:
        sheet.paste(names)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (key, pair) in enumerate(tiles):
        left, top = _GAP + number % columns * step_x, start + number // columns * step_y
        draw.text((left, top), key, fill=INK, font=font)
        sheet.paste(pair, (left, top + _TEXT))
    return sheet
