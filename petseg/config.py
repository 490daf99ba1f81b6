"""The training configuration: one frozen table of options from which flags, TOML and validation are made."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from petseg.errors import OptionError, PetsegError

Recipe = Literal["default", "oxford", "scenes", "seed", "demo"]


class _Unset:
    """Marks an option that was not given: its value is the recipe's, else its default."""

    def __repr__(self) -> str:
        return "<its recipe's>"


_UNSET: Any = _Unset()


def option(
    default: Any,
    help: str,
    *,
    panel: str = "Recipe",
    minimum: float | None = None,
    maximum: float | None = None,
    before: Any = None,
) -> Any:
    """A field with its default, and with what its flag and its check need.

    `panel` is the part of `--help` that it stands in; `before` what runs did that were begun before the option was
    there, where that is not its default.
    """
    known = {"default": default, "help": help, "panel": panel, "min": minimum, "max": maximum, "before": before}
    return field(default=_UNSET, metadata=known)


_ARCH = re.compile(r"unet|seed|own|smp:[\w-]+:[\w.-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TrainConfig:
    """Everything that a training run depends on. Values are checked when it is made.

    An option that is not given has its recipe's value, and its default where the recipe has none.

    Examples:
        >>> TrainConfig(recipe="seed", epochs=10)
        TrainConfig(recipe='seed', epochs=10)
        >>> TrainConfig(shards="shards/oxford", size="97x133", epochs=10).height_width
        (97, 133)
    """

    recipe: Recipe = option(
        "default",
        "Set of defaults: `default`, `oxford` (all of it, on one GPU), `scenes` (crops of streets and the like), "
        "`seed` (the notebook's) or `demo` (drawn pets).",
    )
    shards: str = option(
        "", "Folder that petseg-shard wrote. Without it, pets are drawn and packed first.", panel="Data"
    )
    loader: Literal["auto", "dali", "webdataset"] = option(
        "auto", "Decoder to use. auto: dali on a GPU, webdataset on a CPU.", panel="Data"
    )
    size: str = option("128", "Input size: N for NxN, or HxW.", panel="Data")
    fit: Literal["auto", "squash", "pad", "crop"] = option(
        "auto",
        "How images become inputs. squash: the whole image; pad: in its own shape; crop: random parts of it. auto: "
        "crop where images are much larger, pad where shapes differ a lot, else squash.",
        panel="Data",
        before="squash",
    )
    scale: tuple[float, float] = option(
        (0.5, 2.0), "Factors that images are enlarged by before a crop, drawn evenly.", panel="Data", minimum=0.05
    )
    crop_max_share: float = option(
        0.75,
        "A crop of which one class takes more is drawn again; 1 for never.",
        minimum=0.05,
        maximum=1,
        panel="Data",
    )
    chroma: Literal["fancy", "simple"] = option(
        "fancy",
        "How a JPEG's colour, stored at half size, is enlarged. fancy: interpolated, as most programs do; simple: each "
        "value repeated, which GPUs decode faster.",
        panel="Data",
    )
    epochs: int = option(60, "Passes over the train split.", minimum=1)
    max_minutes: float = option(
        0.0,
        "Train as many epochs as fit in this many minutes, scores and report included; 0 for --epochs.",
        minimum=0,
    )
    batch_size: int = option(16, "Samples per batch, on each rank.", minimum=1, panel="Data")
    accumulate: int = option(
        1,
        "Gradient accumulation: batches per optimiser step, for a larger batch in the memory of a smaller one. "
        "Cross-entropy is divided by the pixels of all of them; Dice is each batch's own.",
        minimum=1,
    )
    arch: str = option(
        "unet",
        "Network: `unet`, `seed` (the notebook's), `smp:ARCH:ENCODER` (any of segmentation_models.pytorch, such as "
        "smp:Unet:resnet34), or `own` (from Python).",
        panel="Network",
    )
    encoder_weights: str = option(
        "", "Pretrained weights of the encoder (smp): a name, such as imagenet, or a FILE.", panel="Network"
    )
    encoder_lr_scale: float = option(
        0.3, "Learning rate of a pretrained encoder, as a share of --lr.", minimum=0, maximum=1, panel="Network"
    )
    width: int = option(16, "Channels of the first level (unet).", minimum=1, panel="Network")
    depth: int = option(5, "Levels, the bottom included (unet).", minimum=2, maximum=8, panel="Network")
    max_width: int = option(128, "Most channels of a level (unet); 128 is fast on a CPU.", minimum=1, panel="Network")
    stem: int = option(
        2,
        "Space-to-depth factor at the input (unet); 2 works at half resolution.",
        minimum=1,
        maximum=4,
        panel="Network",
    )
    head_width: int = option(
        -1,
        "Channels of a layer before the logits (unet); 0 for none, -1 for as many as logits where they are more than "
        "--width.",
        minimum=-1,
        panel="Network",
        before=0,
    )
    dropout: float = option(
        0.0, "Channel dropout in the two deepest levels (unet).", minimum=0, maximum=0.9, panel="Network"
    )
    norm: Literal["batch", "group"] = option("batch", "Normalisation (unet).", panel="Network")
    upsample: Literal["transpose", "bilinear"] = option(
        "transpose", "Upsampling in the decoder (unet).", panel="Network"
    )
    loss: Literal["ce", "ce+dice", "focal", "lovasz", "own"] = option(
        "ce+dice", "Loss function. ce: cross-entropy; lovasz: with cross-entropy; own: from Python."
    )
    dice: float = option(1.0, "Weight of the Dice loss beside cross-entropy (ce+dice); 0 for none.", minimum=0)
    focal_gamma: float = option(
        2.0, "Gamma of the focal loss: larger values give easy pixels less weight.", minimum=0, maximum=10
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in cross-entropy: `none`, `balanced` (median frequency, by the shards' pixels), or a "
        "TOML FILE of name = weight.",
    )
    optimizer: Literal["auto", "muon", "adamw", "adam"] = option(
        "auto",
        "Optimiser. muon: for convolution filters, adamw for the rest. auto: muon; adamw for what "
        "starts from trained weights, and for a network of your own.",
    )
    lr: float = option(6e-3, "Highest learning rate.", minimum=0)
    weight_decay: float = option(0.1, "Weight decay (muon, adamw).", minimum=0)
    schedule: Literal["cosine", "onecycle", "constant"] = option("onecycle", "Learning-rate schedule.")
    warmup: float = option(0.1, "Warmup of the learning rate, as a share of the run (cosine).", minimum=0, maximum=0.9)
    grad_clip: float = option(1.0, "Clip gradients to this norm; 0 for no clipping.", minimum=0)
    ema: float = option(
        0.98, "Decay of the EMA of the weights, which is evaluated; 0 for no EMA.", minimum=0, maximum=0.99999
    )
    sample_weights: str = option(
        "none",
        "How often each sample is visited. none: once an epoch; balanced: more often where it shows rare classes; or a "
        "FILE of lines KEY WEIGHT.",
        panel="Data",
    )
    augment: bool = option(True, "Augment training images on the device, as the options below say.")
    hflip: bool = option(
        True,
        "Flip left and right, half of the time; turn it off if left and right differ. --tta follows it.",
        panel="Augmentation",
    )
    vflip: bool = option(
        False,
        "Flip top and bottom, half of the time: for images from above. --tta follows it too.",
        panel="Augmentation",
    )
    right_angles: bool = option(False, "Rotate by multiples of 90 degrees.", panel="Augmentation")
    rotate: float = option(20.0, "Rotate by up to this many degrees.", minimum=0, maximum=180, panel="Augmentation")
    zoom: float = option(
        -1.0,
        "Enlarge by a factor from 1 / (1 + zoom) to 1 + zoom; -1 for 0.5, and for 0 in crops, which --scale scales.",
        minimum=-1,
        maximum=9,
        panel="Augmentation",
    )
    shift: float = option(
        -1.0,
        "Shift by up to this share of each side; -1 for 0.15, and for 0 in crops, which lie anywhere.",
        minimum=-1,
        maximum=1,
        panel="Augmentation",
    )
    brightness: float = option(
        0.4, "Scale brightness by up to 1 plus or minus this.", minimum=0, maximum=1, panel="Augmentation"
    )
    contrast: float = option(0.4, "Likewise contrast.", minimum=0, maximum=1, panel="Augmentation")
    saturation: float = option(0.4, "Likewise saturation.", minimum=0, maximum=1, panel="Augmentation")
    normalise: bool = option(True, "Subtract the channel means and divide by the deviations.")
    statistics: Literal["auto", "shards", "imagenet"] = option(
        "auto",
        "Whose channel means and deviations those are. auto: those that the first weights learned with, else the "
        "shards' own.",
    )
    patience: int = option(
        0, "Early stopping: stop after this many epochs without a better mean IoU; 0 for never.", minimum=0
    )
    sync_batchnorm: bool = option(False, "One BatchNorm over the batches of all ranks (GPUs only).", panel="Machine")
    amp: Literal["auto", "bf16", "fp16", "off"] = option(
        "auto", "Mixed precision. auto: bf16 where the hardware has it.", panel="Machine"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "torch.compile. auto: on a GPU, where it pays for itself in this run.", panel="Machine"
    )
    cuda_graphs: bool = option(
        True, "Capture the whole step as a CUDA graph (one GPU), so that one call launches it.", panel="Machine"
    )
    channels_last: bool = option(True, "NHWC memory format, the layout that decoders give.", panel="Machine")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel="Machine")
    cache: Literal["auto", "none", "host", "device"] = option(
        "auto",
        "Keep decoded samples in memory after the first epoch. auto: where they take a quarter of a GPU's or "
        "less, or a sixteenth of a CPU's.",
        panel="Data",
    )
    num_threads: int = option(
        0, "Decoding threads or processes; 0 for one a core, at most 16 (DALI on a GPU: 8).", minimum=0, panel="Data"
    )
    compute_threads: int = option(
        0,
        "Threads that compute on a CPU; 0 for one a core, and fewer while other programs keep cores busy.",
        minimum=0,
        panel="Machine",
    )
    prefetch_batches: int = option(2, "Batches to prefetch.", minimum=1, maximum=64, panel="Data")
    verify: bool = option(True, "Check the shards' hashes, once after each change, before they are used.", panel="Data")
    on_bad_sample: Literal["stop", "skip"] = option(
        "stop", "What to do when a shard fails its hash check. skip: leave its damaged samples out.", panel="Data"
    )
    window: int = option(
        -1,
        "Shards that are shuffled together; 0 for all of them; -1 for all, and under --shard-cache-limit as many "
        "as it holds two such windows of.",
        minimum=-1,
        panel="Data",
        before=0,
    )
    lanes: int = option(
        0,
        "Groups that the shards are divided into, a multiple of the number of nodes, so that each node reads "
        "only its own; 0 for as many "
        "as there are nodes where shards come from a store, else 1.",
        minimum=0,
        panel="Remote",
        before=1,
    )
    shard_cache: str = option("", "Cache folder for remote shards. Default: the user's cache folder.", panel="Remote")
    shard_cache_limit: str = option(
        "", "Size limit of the cache, such as 200GB. Default: the free space of the disk.", panel="Remote"
    )
    remote_patience: float = option(
        10.0, "Give up on a store after this many minutes without progress.", minimum=0, panel="Remote"
    )
    offline: bool = option(
        False, "Use only remote shards that are cached on this machine, and no network.", panel="Remote"
    )
    seed: int = option(0, "Seed of order, augmentation and weights.", minimum=0, maximum=2**63 - 1)
    run_dir: str = option("", "Folder for the run. Default: runs/ and the time.", panel="Run")
    save_every_steps: int = option(
        0, "Also save after this many steps; 0 for only at the end of each epoch.", minimum=0, panel="Run"
    )
    save_every_minutes: float = option(
        0.0, "Also save after this many minutes; 0 for only at the end of each epoch.", minimum=0, panel="Run"
    )
    init_from: str = option("", "Run folder or checkpoint to take the first weights from.")
    init_head: Literal["auto", "keep", "new"] = option(
        "auto", "The last layers of --init-from. auto: kept for the same classes, new for another number of them."
    )
    freeze: Literal["none", "encoder"] = option(
        "none", "What is not trained: the encoder, with its BatchNorm.", panel="Network"
    )
    gallery: int = option(8, "Test images in the report.", minimum=0, maximum=64, panel="Run")
    tensorboard: bool = option(False, "Write TensorBoard events too.", panel="Run")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            if getattr(self, spec.name) is _UNSET:
                # `recipe` is the first field, so the others can go by it.
                object.__setattr__(self, spec.name, self._unless_given(spec))
            _check(spec, hints[spec.name], getattr(self, spec.name))
        object.__setattr__(self, "scale", tuple(self.scale))  # TOML has lists alone
        if self.scale[0] > self.scale[1]:
            raise OptionError("scale", f"{self.scale[0]:g} {self.scale[1]:g}: give the smaller factor first.")
        parse_size(self.size)
        if not _ARCH.fullmatch(self.arch):
            raise OptionError(
                "arch",
                f"unknown network '{self.arch}'; choose unet, seed or smp:ARCH:ENCODER, such as smp:Unet:resnet34.",
            )
        if self.encoder_weights and not self.arch.startswith("smp:"):
            raise OptionError(
                "encoder_weights", f"--arch {self.arch} has no encoder to pretrain; give smp:ARCH:ENCODER."
            )
        if self.freeze != "none" and not (self.encoder_weights or self.init_from):
            raise OptionError("freeze", "freezing needs trained weights: give --encoder-weights or --init-from too.")
        if self.freeze != "none" and self.arch == "own":
            raise OptionError("freeze", "set requires_grad of your own network's parameters instead.")
        if self.encoder_weights and self.init_from:
            raise OptionError("encoder_weights", "--init-from gives the encoder its first weights too; leave one out.")

    def _unless_given(self, spec: dataclasses.Field[Any]) -> Any:
        if spec.name == "recipe":
            return spec.metadata["default"]
        return RECIPES[self.recipe].get(spec.name, spec.metadata["default"])

    def __repr__(self) -> str:
        given = [
            f"{spec.name}={value!r}"
            for spec in dataclasses.fields(self)
            if (value := getattr(self, spec.name)) != self._unless_given(spec) or spec.name == "recipe"
        ]
        return f"TrainConfig({', '.join(given)})"

    @property
    def height_width(self) -> tuple[int, int]:
        """The input size in pixels."""
        return parse_size(self.size)

    @property
    def scores_whole_images(self) -> bool:
        """Whether images are scored at their own size, as crops or padded images are learned from."""
        return self.fit in {"pad", "crop"}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for TOML and checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a run, also of one by an older petseg without the newer options.

        Raises:
            PetsegError: a bad value.
            TypeError: an unknown option.
        """
        return cls(**{**_BEFORE, **options})

    def to_toml(self) -> str:
        """The configuration as a file that `--config` takes. Under a time limit it names no epochs."""
        import tomli_w

        options = self.to_dict()
        if self.max_minutes:
            del options["epochs"]
        return tomli_w.dumps(options)

    def idle(self) -> list[tuple[str, str]]:
        """(name, why) of every option that was given but does nothing beside the others."""
        unet = f"--arch {self.arch} has no such option"
        rules = {
            **dict.fromkeys(
                ("width", "depth", "max_width", "stem", "head_width", "dropout", "norm", "upsample"),
                (self.arch == "unet", unet),
            ),
            "warmup": (self.schedule == "cosine", f"--schedule {self.schedule} has its own warmup, or none"),
            **dict.fromkeys(
                ("vflip", "right_angles", "rotate", "zoom", "shift", "brightness", "contrast", "saturation"),
                (self.augment, "--no-augment leaves images as they are"),
            ),
            "dice": (self.loss == "ce+dice", f"--loss {self.loss} has none"),
            "focal_gamma": (self.loss == "focal", f"--loss {self.loss} has none"),
            "class_weights": (self.loss != "own", "a loss of your own weighs classes itself"),
            "weight_decay": (self.optimizer != "adam", "--optimizer adam has none; adamw is the one with it"),
            "statistics": (self.normalise, "--no-normalise leaves images as they are"),
            **dict.fromkeys(
                ("scale", "crop_max_share"), (self.fit in {"auto", "crop"}, f"--fit {self.fit} takes whole images")
            ),
            "init_head": (bool(self.init_from), "it is for --init-from"),
            "encoder_lr_scale": (
                bool(self.encoder_weights or self.init_from),
                "it is for an encoder with trained weights",
            ),
        }
        specs = {spec.name: spec for spec in dataclasses.fields(self)}
        return [
            (name, why)
            for name, (acts, why) in rules.items()
            if not acts and getattr(self, name) != self._unless_given(specs[name])
        ]


_BEFORE = {
    spec.name: spec.metadata["before"]
    for spec in dataclasses.fields(TrainConfig)
    if spec.metadata["before"] is not None
}

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # Batches that fill a GPU, decoded once and kept on it. Not compiled: that would take as long as the run.
    "oxford": {
        "size": "256", "fit": "squash", "batch_size": 64, "width": 32, "max_width": 512, "optimizer": "adamw",
        "weight_decay": 0.01, "lr": 6e-3, "ema": 0.995, "cache": "device", "compile": "off",
    },
    # Small things in large images, from nothing. How CamVid's 367 streets chose its values: benchmarks/LOG.md.
    "scenes": {
        "size": "256", "fit": "crop", "scale": (0.5, 1.5), "batch_size": 4, "epochs": 200, "rotate": 0.0,
    },
    # The teaching notebook's, with its three faults put right (docs/recipes.md, "The seed recipe").
    "seed": {
        "arch": "seed", "size": "100", "fit": "squash", "epochs": 5, "batch_size": 32, "optimizer": "adam", "lr": 1e-3,
        "weight_decay": 0.0, "schedule": "constant", "dice": 0.0, "grad_clip": 0.0, "ema": 0.0, "augment": False,
        "normalise": False, "dropout": 0.0,
    },
    # Learns the drawn pets in about a minute and a half on two cores: many small steps beat few large ones there.
    "demo": {
        "size": "64", "fit": "squash", "epochs": 8, "batch_size": 8, "width": 12, "depth": 5, "stem": 1,
        "dropout": 0.0, "lr": 4e-3, "ema": 0.99,
    },
}  # fmt: skip


def resolve(
    flags: Mapping[str, Any], file: Path | None = None, *, recipe: Recipe = "default", resumed: bool = False
) -> TrainConfig:
    """Resolve a configuration: defaults < the file's recipe < the file < the flags' recipe < flags.

    `epochs` and `max_minutes` exclude each other: that of the flags drops that of the file.

    Args:
        flags: options given by hand, by field name; None means not given.
        file: TOML file of options by field name.
        recipe: for where neither names one.
        resumed: the file is that of a resumed run, which may be older than some options.

    Raises:
        PetsegError: an unknown key, a value of the wrong kind or out of its range, or both limits in one place.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    written = read_toml(file) if file else {}
    try:
        values = layered({"recipe": recipe, **(_BEFORE if resumed else {})}, written, given)
        unknown = next((name for name in values if name not in _names()), None)
        if unknown is not None:
            raise PetsegError(f"unknown option '{unknown}'; {_near(unknown)}")
        return TrainConfig(**values)
    except OptionError as error:
        # Say which of the two places the bad value came from.
        culprit = error.option in written and error.option not in given
        raise PetsegError(f"{file}: {error}" if culprit else str(error)) from None


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers of options: later layers win, and each layer's recipe comes just below it.

    Raises:
        OptionError: a layer has both `epochs` and `max_minutes`, of which a later one drops the other.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if isinstance(named := layer.get("recipe"), str):
            values.update(RECIPES.get(named, {}))
        if layer.get("max_minutes") and "epochs" in layer:
            raise OptionError("max_minutes", "it sets the number of epochs, so leave --epochs out.")
        if "epochs" in layer:
            values.pop("max_minutes", None)
        values.update(layer)
        if values.get("max_minutes"):
            values.pop("epochs", None)  # an earlier layer's, or a recipe's
    return values


def _names() -> set[str]:
    return {spec.name for spec in dataclasses.fields(TrainConfig)}


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, _names(), n=1)
    return f"did you mean '{near[0]}'?" if near else "see petseg-train --help for the names."


def read_toml(file: Path) -> dict[str, Any]:
    """Options by field name from a TOML file.

    Raises:
        PetsegError: no such file, not TOML, or an unknown key.
    """
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise PetsegError(f"--config: no such file: {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"--config: {file} cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise PetsegError(f"--config: {file} is not TOML: {error}.") from error
    for name in data:
        if name not in _names():
            raise PetsegError(f"{file}: unknown key '{name}'; {_near(name)}")
    return data


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of `N` or `HxW`.

    Raises:
        PetsegError: neither form, or a side outside 1 to 8192.
    """
    parts = str(text).lower().split("x")
    if len(parts) > 2 or not all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts):
        raise OptionError("size", f"'{text}' is not a size; give N (such as 128) or HxW (such as 97x133).")
    height, width = int(parts[0]), int(parts[-1])
    if not (1 <= height <= 8192 and 1 <= width <= 8192):
        raise OptionError("size", f"{text} is outside 1 to 8192 px a side.")
    return height, width


def _check(spec: dataclasses.Field[Any], kind: Any, value: Any) -> None:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise OptionError(spec.name, f"unknown value '{value}'; choose {', '.join(map(str, choices))}.")
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple | list) or len(value) != len(get_args(kind)):
            raise OptionError(spec.name, f"'{value}' is not {len(get_args(kind))} numbers.")
        for each, part in zip(value, get_args(kind), strict=True):
            _check(spec, part, each)
        return
    # TOML has whole numbers where a float is meant; Python has booleans that pass for whole numbers.
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise OptionError(spec.name, f"'{value}' is not a {_KINDS[kind]}.")
    if isinstance(value, str) and not _is_utf8(value):
        raise OptionError(
            spec.name, f"'{value}' is not valid UTF-8, as the run's files are: rename the folder or file."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(spec.name, f"{value} is not a finite number; give one.")
    low, high = spec.metadata["min"], spec.metadata["max"]
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"{low} to {high}"
        raise OptionError(spec.name, f"{value} is out of range; give {limits}.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that the system gave in other bytes
        return False
    return True


_KINDS = {int: "whole number", float: "number", str: "text in quotes", bool: "true or false"}
