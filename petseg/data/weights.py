"""How often training visits each sample, where that is not once an epoch."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import Place
from petseg.data.shards.reader import ShardReader
from petseg.errors import OptionError
from petseg.system import usable_cores


def sample_weights(choice: str, folder: Place, manifest: Manifest, split: str = "train") -> np.ndarray | None:
    """Sample weights of `--sample-weights`: f64[samples], 0 or more, in proportion to the visits; None for all alike.

    `balanced`: a class that a share f of the samples show is asked for 1 / sqrt(f) times, and a sample as often as the
    rarest of its classes (repeat factor sampling of Gupta, Dollár and Girshick, LVIS, CVPR 2019, equation 1, with the
    threshold 1). All masks of the split are decoded for it.

    Args:
        choice: `none`, `balanced`, or a text file of lines `KEY WEIGHT`; keys that it does not name have the weight 1.
        folder: shard folder.
        manifest: its manifest.
        split: name of a split.

    Raises:
        OptionError: a file that cannot be read, names a sample that is not there, or leaves nothing to visit.
        PetsegError: the shards cannot be read.
    """
    if choice == "none":
        return None
    reader = ShardReader(folder, manifest, split, verify=False)
    try:
        return _balanced(reader, manifest) if choice == "balanced" else _listed(reader, Path(choice))
    finally:
        reader.close()


def digest_of(weights: np.ndarray | None) -> str | None:
    """A digest that tells weights from others, for a loader's state."""
    if weights is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(weights, "<f8").tobytes()).hexdigest()


def _balanced(reader: ShardReader, manifest: Manifest) -> np.ndarray:
    codes = np.asarray(manifest.classes.codes)

    def shows(index: int) -> np.ndarray:
        found: np.ndarray = np.bincount(reader.mask(index).reshape(-1), minlength=256)[codes] > 0
        return found

    with ThreadPoolExecutor(usable_cores()) as pool:
        present = np.stack(list(pool.map(shows, range(len(reader)))))
    return repeat_factors(present)


def repeat_factors(present: np.ndarray) -> np.ndarray:
    """f64[N], 1 or more, of bool[N, C]: which classes each sample shows; see `sample_weights`."""
    share = present.mean(0)
    wanted = np.ones(present.shape[1])
    wanted[share > 0] = 1 / np.sqrt(share[share > 0])
    factors: np.ndarray = np.where(present, wanted, 1.0).max(1)
    return factors


def _listed(reader: ShardReader, file: Path) -> np.ndarray:
    def refuse(text: str) -> OptionError:
        return OptionError("sample_weights", text)

    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise refuse(f"no such file: {file}; give none, balanced, or a FILE of lines KEY WEIGHT.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"{file} cannot be read ({error}).") from error
    given: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not _is_weight(words[1]):
            raise refuse(f"{file}, line {number}: '{line.strip()}' is not KEY WEIGHT, with a weight of 0 or more.")
        given[words[0]] = float(words[1])
    weights = np.array([given.pop(reader.key(index), 1.0) for index in range(len(reader))])
    if given:
        raise refuse(f"{file}: no training sample is called {next(iter(given))}; see petseg show for their keys.")
    if not weights.any():
        raise refuse(f"{file}: every weight is 0; give one that is not.")
    return weights


def _is_weight(word: str) -> bool:
    try:
        return 0 <= float(word) < float("inf")
    except ValueError:
        return False
