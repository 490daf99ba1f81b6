"""A trained network as one file that other programs run, checked against the network before it appears."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import nn

from petseg.data.decode.resize import resize_image
from petseg.data.decode.rgb import Tones
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import shards_for
from petseg.data.shards.reader import ShardReader
from petseg.errors import PetsegError
from petseg.inference.inputs import read_image
from petseg.inference.trained import TrainedModel, load_trained

Format = Literal["onnx", "torch-export"]

TOLERANCE = 1e-4
"""Largest difference of a probability between the file and the network."""

INPUT, OUTPUT = "images", "probabilities"
METADATA = "petseg.json"
"""Name of the metadata inside a torch-export file (`extra_files`); ONNX has them as `metadata_props`."""

_SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
_Runner = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """An exported file, and how near it comes to the network."""

    path: Path
    format: Format
    size: tuple[int, int]
    """Height and width in pixels of what it takes; any number of images at once."""
    multiple: int
    """Where it takes other sizes too: their sides are multiples of this, from twice that on; else 0."""
    bytes: int
    max_abs_difference: float
    """Largest difference of a probability over everything that was tried."""
    argmax_agreement: float
    """Share of pixels whose likeliest class is the same, 0 to 1."""
    image: str
    """What it was tried on."""
    metadata: dict[str, str]
    """What the file says about itself."""


class Deployable(nn.Module):
    """The network with its input's normalisation before it and probabilities behind it."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.network = trained.network
        self.transform = trained.transform

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f32[N, C, H, W] in 0-1 of f32[N, 3, H, W], RGB in 0-1."""
        return self.network.probabilities(self.network(self.transform.scale(images)))


def export(
    run: Path | str,
    fmt: Format = "onnx",
    out: Path | str | None = None,
    *,
    network: nn.Module | None = None,
    image: Path | str | None = None,
    dynamic_size: bool = False,
) -> ExportReport:
    """Write a trained network as ONNX or as a torch.export program, and prove that the file computes the same.

    The file takes `images`, f32[N, 3, H, W] in RGB from 0 to 1 (any N; H and W are the run's), and gives
    `probabilities`, f32[N, C, H, W]. It is loaded again and run on one image and on two, and where it takes any size
    on two sizes, before it gets its name.

    Args:
        run: run folder or checkpoint.
        fmt: `onnx` or `torch-export`.
        network: one of the same kind, where the run trained a network of your own; it stays as it is.
        out: file to write, or a folder for `model.onnx` or `model.pt2`; default: the run's folder.
        image: image to try it on; default: a sample of the run's shards, or a drawn pet if they are gone.
        dynamic_size: take any H and W that are multiples of the network's stride, from twice that on. Objects are still
            found best in the size that they had in training.

    Raises:
        PetsegError: bad input, packages that are missing, or a file that does not compute what the network does.

    Examples:
        >>> petseg.export("runs/mine", "onnx").path  # doctest: +SKIP
        PosixPath('runs/mine/model.onnx')
    """
    if fmt not in get_args(Format):
        raise PetsegError(f"--format: unknown format '{fmt}'; choose {' or '.join(get_args(Format))}.")
    if fmt == "onnx":
        _require_onnx()
    trained = load_trained(Path(run), torch.device("cpu"), network=network)
    path = _target(trained, fmt, Path(out) if out else None)
    multiple = trained.network.stride if dynamic_size else 0
    size, other = _sizes(trained.config.height_width, multiple)
    tried, pixels = (str(image), _read(Path(image), trained.tones)) if image else _sample(trained)
    model = Deployable(trained).eval()
    metadata = _metadata(trained, multiple)
    # Exporters look at the suffix, so the unfinished file keeps it.
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # a link of that name would be followed
            with _quiet():
                _save(fmt, model, size, multiple, partial, metadata)
        except OSError as error:
            raise PetsegError(
                f"--out: {path} could not be written ({error.strerror or error}); free some space or choose another."
            ) from error
        with _quiet():
            run_file = _load(fmt, partial)
            found = [_compare(model, run_file, _squashed(pixels, each)) for each in dict.fromkeys((size, other))]
        # Unlike max(), NumPy's hands a NaN on.
        difference, agreement = float(np.max([d for d, _ in found])), min(a for _, a in found)
        # Written so that NaN fails too.
        if not difference <= TOLERANCE:
            raise PetsegError(
                f"the exported {path.name} differs from {trained.path} by {difference:.2g} in a probability (at most "
                f"{TOLERANCE:g} is allowed), so it was not kept: try the other --format, or another version of torch."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return ExportReport(
        path=path,
        format=fmt,
        size=size,
        multiple=multiple,
        bytes=path.stat().st_size,
        max_abs_difference=difference,
        argmax_agreement=agreement,
        image=tried,
        metadata=metadata,
    )


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise PetsegError(f"--format onnx needs {', '.join(missing)}: pip install 'petseg[export]'.")


def _target(trained: TrainedModel, fmt: Format, out: Path | None) -> Path:
    suffix = _SUFFIX[fmt]
    if out is None or out.is_dir():
        return (out or trained.path.parent) / f"model{suffix}"
    if out.suffix != suffix:
        raise PetsegError(f"--out: {out} must end in {suffix} for --format {fmt}.")
    return out


def _sizes(size: tuple[int, int], multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that a file is made with, and another one that it has to take: the same where `multiple` is 0."""
    if not multiple:
        return size, size
    height, width = (multiple * max(2, math.ceil(side / multiple)) for side in size)
    return (height, width), (height + multiple, width + 2 * multiple)


def _metadata(trained: TrainedModel, multiple: int) -> dict[str, str]:
    height, width = trained.config.height_width
    shape = "height, width" if multiple else f"{height}, {width}"
    sides = f"sides are multiples of {multiple}, from {2 * multiple} on; " if multiple else ""
    try:
        petseg = version("petseg")
    except PackageNotFoundError:
        petseg = "unknown"
    return {
        "petseg_version": petseg,
        "class_codes": json.dumps(list(trained.classes.codes)),
        "class_names": json.dumps(list(trained.classes.names), ensure_ascii=False),
        "class_colours": json.dumps([list(rgb) for rgb in trained.classes.colours]),
        "height": str(height),
        "width": str(width),
        "input": f"{INPUT}: float32 [batch, 3, {shape}], RGB, 0 to 1; {sides}squash with an antialiased bilinear",
        "output": f"{OUTPUT}: float32 [batch, {len(trained.classes)}, {shape}], 0 to 1",
        "arch": trained.config.arch,
        **({"tones": json.dumps(trained.tones.to_dict())} if trained.tones else {}),
    }


def _save(
    fmt: Format, model: Deployable, size: tuple[int, int], multiple: int, path: Path, metadata: dict[str, str]
) -> None:
    # Two images: a batch of one would be taken for a constant.
    example = (torch.rand(2, 3, *size),)
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    if multiple:
        shapes[INPUT] |= {2: multiple * torch.export.Dim("rows"), 3: multiple * torch.export.Dim("columns")}
    if fmt == "torch-export":
        program = torch.export.export(model, example, dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
        return
    written = torch.onnx.export(
        model,
        example,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=shapes,
        verbose=False,
    )
    if written is None:
        raise PetsegError("torch.onnx gave no program: try another version of torch.")
    written.model.metadata_props.update(metadata)
    written.save(path, external_data=False)


def _load(fmt: Format, path: Path) -> _Runner:
    if fmt == "torch-export":
        return cast(_Runner, torch.export.load(path).module())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


@torch.no_grad()
def _compare(model: Deployable, run_file: _Runner, image: torch.Tensor) -> tuple[float, float]:
    """Largest difference and argmax agreement over a batch of one and a batch of two (the image and its mirror)."""
    differences, agreements = [], []
    for batch in (image, torch.cat([image, image.flip(-1)])):
        ours, theirs = model(batch), run_file(batch)
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            return float("inf"), 0.0
        differences.append(float((ours - theirs).abs().max()))
        agreements.append(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    return float(np.max(differences)), min(agreements)


def _squashed(pixels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """An image u8[H, W, 3] as the file takes it: f32[1, 3, *size] in 0-1."""
    small = torch.from_numpy(np.ascontiguousarray(resize_image(pixels, *size)))
    return small.permute(2, 0, 1).unsqueeze(0).float() / 255


def _read(image: Path, tones: Tones) -> np.ndarray:
    try:
        return read_image(image, tones)
    except PetsegError as error:
        raise PetsegError(f"--image: {error}.") from error


def _sample(trained: TrainedModel) -> tuple[str, np.ndarray]:
    folder = shards_for(trained.config)
    try:
        manifest = Manifest.load(folder)
        split = next(name for name in ("test", "val", "train") if manifest.splits.get(name))
        reader = ShardReader(folder, manifest, split, verify=False)  # any image will do
        try:
            return f"{reader.key(0)} of {folder}", reader.decoded(0)[0]
        finally:
            reader.close()
    except (PetsegError, StopIteration):
        # Shards may be gone by the time a run is exported; any image will do.
        from petseg.data.sources.synthetic import SyntheticSource

        source = SyntheticSource(1)
        pair = source.listing().pairs[0]
        with Image.open(io.BytesIO(source.read(pair)[0])) as drawn:
            return f"a drawn pet ({pair.key})", np.array(drawn.convert("RGB"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which print and log pages."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
