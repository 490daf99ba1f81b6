"""Class tables: the codes that masks may hold, their names and colours, and their class indices."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petseg.errors import PetsegError

if TYPE_CHECKING:  # a manifest is read by commands that compute nothing, and torch takes seconds to import
    import torch

IGNORE_INDEX = 255
"""Class index of pixels that neither the loss nor a metric counts (ignored codes, padding rows)."""

CROSS_ENTROPY_IGNORES = -100
"""The class index that torch's cross-entropy ignores by default."""

_TOML_EXAMPLE = "codes = [0, 1]\nnames = ['background', 'road']\nignored = [255]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a class map says that the values of mask files become codes. Shards hold codes: only packing needs it."""

    by_colour: bool = False
    """The class map names colours, so masks with a palette are read by them and not by their indices."""
    threshold: int | None = None
    """Values from this one on are the second of two codes, lower ones the first."""
    values: tuple[tuple[int, ...], ...] = ()
    """For each code, in their order, the values that mean it; empty where each code means itself."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ClassTable:
    """The classes of a data set: code on disk, name, colour.

    The class *index* of a code is its position in `codes`: that is what the network predicts.

    Examples:
        >>> plants = ClassTable.from_dict({"codes": [0, 7], "names": ["soil", "leaf"], "ignored": [255]})
        >>> plants.to_codes(np.array([[0, 1]]))
        array([[0, 7]], dtype=uint8)
    """

    codes: tuple[int, ...]
    """Codes in the mask files, 0 to 255, one a class."""
    names: tuple[str, ...]
    """One name a class, in the order of `codes`."""
    colours: tuple[tuple[int, int, int], ...]
    """One RGB colour a class (0 to 255), for images."""
    ignored: tuple[int, ...] = ()
    """Codes that masks may hold but that are not scored (VOC's void, 255)."""
    ignored_colours: tuple[tuple[int, int, int], ...] = ()
    """One RGB colour for each ignored code, for masks in colours; or none."""
    foregrounds: tuple[tuple[int, ...], ...] = ()
    """Groups of codes scored together as one foreground; Oxford's pets have two conventions, {1} and {1, 3}."""
    reading: Reading = field(default=Reading(), compare=False)
    """How masks are read at packing."""

    def __repr__(self) -> str:
        named = [f"{code} {name}" for code, name in zip(self.codes, self.names, strict=True)]
        return f"ClassTable({', '.join(named[:6])}{f' and {len(named) - 6} more' if len(named) > 6 else ''})"

    def __post_init__(self) -> None:
        every = (*self.codes, *self.ignored)
        if len(self.codes) < 2:
            raise PetsegError(f"a class table needs at least 2 codes, not {list(self.codes)}: add the background's.")
        if any(not isinstance(c, int) or isinstance(c, bool) or not 0 <= c <= 255 for c in every):
            raise PetsegError(f"class codes are whole numbers from 0 to 255, not {list(every)}: correct the class map.")
        if len(self.codes) > IGNORE_INDEX:
            raise PetsegError(f"a class table holds at most {IGNORE_INDEX} codes, not {len(self.codes)}: merge some.")
        if len(set(every)) != len(every):
            raise PetsegError(f"a class code occurs twice in {list(every)}: name each code once.")
        if len(self.names) != len(self.codes) or len(self.colours) != len(self.codes):
            raise PetsegError(
                f"{len(self.codes)} class codes have {len(self.names)} names and {len(self.colours)} colours: "
                "give one of each a code."
            )
        if any(not isinstance(n, str) or not n for n in self.names) or len(set(self.names)) != len(self.names):
            raise PetsegError(f"class names must differ and not be empty, not {list(self.names)}: rename one.")
        every_colour = (*self.colours, *self.ignored_colours)
        if any(len(rgb) != 3 or any(not 0 <= v <= 255 for v in rgb) for rgb in every_colour):
            raise PetsegError(f"class colours are three numbers from 0 to 255, not {list(every_colour)}.")
        if self.ignored_colours and len(self.ignored_colours) != len(self.ignored):
            raise PetsegError(
                f"{len(self.ignored)} ignored codes have {len(self.ignored_colours)} colours: give one each, or none."
            )
        if any(c not in self.codes for group in self.foregrounds for c in group):
            raise PetsegError(f"foregrounds {list(self.foregrounds)} name codes that are not in {list(self.codes)}.")
        self._check_reading()

    def _check_reading(self) -> None:
        reading = self.reading
        threshold = reading.threshold
        if threshold is not None and (len(self.codes) != 2 or self.ignored or reading.values):
            raise PetsegError("threshold is for two classes, without `ignored` or `values`: leave those out.")
        if threshold is not None and (not isinstance(threshold, int) or not 1 <= threshold <= 255):
            raise PetsegError(f"threshold is a whole number from 1 to 255, not {threshold}: 128 is the middle.")
        if not reading.values:
            return
        every = [value for values in reading.values for value in values]
        if len(reading.values) != len(self.codes) or not all(reading.values):
            raise PetsegError(
                f"values holds one list for each of the {len(self.codes)} codes, of the mask values that mean it, such "
                "as values = [[0], [1, 255]]."
            )
        if any(not isinstance(v, int) or isinstance(v, bool) or not 0 <= v <= 255 for v in every):
            raise PetsegError(f"values are whole numbers from 0 to 255, not {every}: correct the class map.")
        if len({*every, *self.ignored}) != len(every) + len(self.ignored):
            raise PetsegError(f"a value occurs twice in {[*every, *self.ignored]}: name each once.")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def outside(self) -> int:
        """A code that is not a class, for pixels that are of no image."""
        taken = {*self.codes}
        return self.ignored[0] if self.ignored else next(code for code in range(255, -1, -1) if code not in taken)

    def lookup(self) -> np.ndarray:
        """Table from code to class index: u8[256], IGNORE_INDEX where the code is not a class."""
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[list(self.codes)] = np.arange(len(self.codes), dtype=np.uint8)
        return table

    def code_of_value(self) -> np.ndarray:
        """Table from a mask's value to its code: i16[256], -1 where the value means nothing."""
        table = np.full(256, -1, np.int16)
        for code, values in zip(self.codes, self.reading.values or ((code,) for code in self.codes), strict=True):
            table[list(values)] = code
        table[list(self.ignored)] = self.ignored
        return table

    def code_of_colour(self) -> dict[tuple[int, int, int], int]:
        """Codes by colour; a colour that several have stands for none."""
        pairs = [
            *zip(self.colours, self.codes, strict=True),
            *zip(self.ignored_colours, self.ignored[: len(self.ignored_colours)], strict=True),
        ]
        times = Counter(colour for colour, _ in pairs)
        return {colour: code for colour, code in pairs if times[colour] == 1}

    def masks(
        self, codes: torch.Tensor, indices: torch.Tensor | None = None, *, ignore: int = IGNORE_INDEX
    ) -> torch.Tensor:
        """Class indices of a batch of codes, on the same device and without a host sync.

        Args:
            codes: u8[N, H, W], codes as on disk.
            indices: i64[N], sample indices; rows with index -1 are padding and come back wholly ignored.
            ignore: what stands for pixels that are not scored.

        Returns:
            i64[N, H, W] with values in [0, len(self)) or `ignore`.
        """
        return class_indices(self.device_table(codes.device, ignore), codes, indices, ignore=ignore)

    def device_table(self, device: torch.device, ignore: int = IGNORE_INDEX) -> torch.Tensor:
        """Table from code to class index: i64[256] on a device, `ignore` where the code is not a class."""
        import torch

        key = (self, device, ignore)
        if key not in _TABLES:
            table = torch.from_numpy(self.lookup()).long()
            _TABLES[key] = table.masked_fill_(table == IGNORE_INDEX, ignore).to(device)
        return _TABLES[key]

    def to_codes(self, masks: np.ndarray) -> np.ndarray:
        """Codes as on disk of class indices: integers in [0, len(self)) of any shape to u8 of the same shape."""
        codes: np.ndarray = np.take(np.asarray(self.codes, dtype=np.uint8), masks)
        return codes

    def palette(self) -> np.ndarray:
        """Colours by class index: u8[len(self), 3]."""
        return np.asarray(self.colours, dtype=np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON and TOML."""
        return {
            "codes": list(self.codes),
            "names": list(self.names),
            "colours": [list(rgb) for rgb in self.colours],
            "ignored": list(self.ignored),
            "foregrounds": [list(group) for group in self.foregrounds],
            # Left out where there are none: manifests of before stay the same bytes.
            **({"ignored_colours": [list(rgb) for rgb in self.ignored_colours]} if self.ignored_colours else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassTable:
        """The inverse of `to_dict`; all but `codes` may be missing.

        Raises:
            PetsegError: an unknown key, or a value that is not a table of classes.
        """
        known = ("codes", "names", "colours", "ignored", "ignored_colours", "foregrounds", "threshold", "values")
        unknown = set(data) - set(known)
        if unknown:
            raise PetsegError(f"class map: unknown key '{min(unknown)}'; known are {', '.join(known)}.")
        try:
            codes = tuple(data["codes"])
            names = tuple(data.get("names", [f"class {code}" for code in codes]))
            colours = tuple(tuple(int(v) for v in rgb) for rgb in data.get("colours", default_colours(len(codes))))
            ignored = tuple(data.get("ignored", ()))
            ignored_colours = tuple(tuple(int(v) for v in rgb) for rgb in data.get("ignored_colours", ()))
            foregrounds = tuple(tuple(group) for group in data.get("foregrounds", ()))
            reading = Reading(
                by_colour="colours" in data,
                threshold=data.get("threshold"),
                values=tuple(tuple(values) for values in data.get("values", ())),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PetsegError(f"class map: write it like this: {_TOML_EXAMPLE!r}") from error
        return cls(
            codes=codes,
            names=names,
            colours=colours,  # type: ignore[arg-type]
            ignored=ignored,
            ignored_colours=ignored_colours,  # type: ignore[arg-type]
            foregrounds=foregrounds,
            reading=reading,
        )

    @classmethod
    def from_toml(cls, path: Path) -> ClassTable:
        """Read a class map: `codes` and, if wanted, the other keys of `from_dict`.

        Raises:
            PetsegError: no such file, not TOML, or not a class map.
        """
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PetsegError(f"class map {path} cannot be read: give the path of a TOML file.") from error
        except tomllib.TOMLDecodeError as error:
            raise PetsegError(f"class map {path} is not TOML ({error}).") from error
        try:
            return cls.from_dict(data)
        except PetsegError as error:
            raise PetsegError(f"{path}: {error}") from error


def default_colours(n: int) -> list[tuple[int, int, int]]:
    """`n` distinct RGB colours, none of them near black or white: tab10's, then each as far as can be from all before.

    Distances are those of CIE 1976 L*a*b* (CIE 15:2004).
    """
    base = [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
    ]  # fmt: skip
    if n <= len(base):
        return base[:n]
    steps = np.linspace(0, 255, 16).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    places = _lab(grid)
    fit = (places[:, 0] > 35) & (places[:, 0] < 92)
    grid, places = grid[fit], places[fit]
    known = _lab(np.array(base, float))
    distance = np.linalg.norm(places[:, None] - known[None], axis=2).min(1)
    found = list(base)
    while len(found) < n:
        furthest = int(distance.argmax())
        red, green, blue = (int(v) for v in grid[furthest])
        found.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(places - places[furthest], axis=1))
    return found


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colours f64[N, 3] in 0-255."""
    v = rgb / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    x, y, z = (linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])).T
    fx, fy, fz = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def class_indices(
    table: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor | None, *, ignore: int = IGNORE_INDEX
) -> torch.Tensor:
    """`ClassTable.masks` with its table at hand, for functions that are compiled."""
    masks = table[codes.int()]
    return masks if indices is None else masks.masked_fill((indices < 0).view(-1, 1, 1), ignore)


# One table a device: building it in the step would copy from the host, which is a sync on CUDA.
_TABLES: dict[tuple[ClassTable, torch.device, int], torch.Tensor] = {}


OXFORD = ClassTable(
    codes=(1, 2, 3),
    names=("pet", "background", "border"),
    colours=((232, 119, 34), (38, 70, 83), (250, 240, 202)),
    foregrounds=((1,), (1, 3)),
)
"""Oxford-IIIT Pet's trimaps: 1 pet, 2 background, 3 border."""
