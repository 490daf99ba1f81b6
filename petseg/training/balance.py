"""Weights of classes that are rare or common."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np

from petseg.classes import ClassTable
from petseg.data.shards.manifest import Manifest
from petseg.errors import OptionError


def class_weights(choice: str, manifest: Manifest) -> tuple[float, ...] | None:
    """Class weights of `--class-weights` for a set: one number a class, in the classes' order; None for all alike.

    `balanced`: median frequency balancing (Eigen and Fergus, ICCV 2015): the median of the classes' shares of all
    pixels over a class's own share. A class that does not occur has the weight 1, which nothing is multiplied by.

    Raises:
        OptionError: the manifest counts no pixels; a file that cannot be read, or does not name every class once.
    """
    if choice == "none":
        return None
    classes = manifest.classes
    if choice != "balanced":
        return _from_file(Path(choice), classes)
    counts = np.array([manifest.pixel_counts.get(code, 0) for code in classes.codes], np.float64)
    if not counts.any():
        raise OptionError("class_weights", "these shards' manifest counts no pixels; run petseg index, or give a FILE.")
    weights = np.ones(len(counts))
    weights[counts > 0] = np.median(counts[counts > 0]) / counts[counts > 0]
    return tuple(weights.tolist())


def _from_file(path: Path, classes: ClassTable) -> tuple[float, ...]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise OptionError("class_weights", f"no such file: {path}; give none, balanced or a TOML FILE.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError("class_weights", f"{path} cannot be read as TOML ({error}).") from error
    if found.keys() != set(classes.names):
        odd = sorted(found.keys() ^ set(classes.names))[0]
        what = "is not a class" if odd in found else "is missing"
        raise OptionError(
            "class_weights", f"{path}: '{odd}' {what}; name every class once: {', '.join(classes.names)}."
        )
    for name, weight in found.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise OptionError("class_weights", f"{path}: {name} = {weight}: give a number, 0 or more.")
    if not any(found.values()):
        raise OptionError("class_weights", f"{path}: every weight is 0; give one that is not.")
    return tuple(float(found[name]) for name in classes.names)
