"""Cats and dogs drawn on the spot: a whole data set without a file, for the first run and for tests."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import cv2

from petseg.classes import OXFORD, ClassTable
from petseg.data.sources import Listing, Pair
from petseg.data.sources.pairs import Pairs
from petseg.data.sources.synthetic.scene import draw
from petseg.errors import PetsegError

__all__ = ["SyntheticSource"]

DEFAULT_SAMPLES = 1600

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """`n` images of drawn pets with exact trimaps in Oxford's codes.

    Sample i depends on (seed, i) and the sides alone: not on `n`, nor on which process draws it or what was drawn
    before. Its bytes are the same wherever numpy and OpenCV have the same versions.

    Raises:
        PetsegError: no samples, or sides that make no sense.
    """

    n: int = DEFAULT_SAMPLES
    """How many samples; even ones are cats, odd ones dogs."""
    seed: int = 0
    _: KW_ONLY
    min_side: int = 160
    """Least height and width in pixels, at least 32."""
    max_side: int = 256
    """Greatest height and width in pixels."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise PetsegError(f"synthetic:{self.n} has no samples: ask for at least 1, such as synthetic:1600.")
        if not 32 <= self.min_side <= self.max_side:
            raise PetsegError(
                f"synthetic: sides from {self.min_side} to {self.max_side} pixels cannot be drawn: "
                "give min_side of at least 32 and max_side no less."
            )

    @property
    def name(self) -> str:
        """`synthetic` or, with a count of its own, `synthetic:N`."""
        return "synthetic" if self.n == DEFAULT_SAMPLES else f"synthetic:{self.n}"

    @property
    def classes(self) -> ClassTable:
        """Oxford's: 1 pet, 2 background, 3 border."""
        return OXFORD

    def listing(self) -> Listing:
        """All samples, sorted by key (`Cat_000122`, `Dog_000123`), in no official split. Draws nothing."""
        name = self.name
        return Listing(
            pairs=Pairs.of(
                Pair(key=key, image=f"{name}/{key}.jpg", mask=f"{name}/{key}.png", size=0)
                for kind, odd in (("Cat", 0), ("Dog", 1))
                for key in _sorted_keys(kind, odd, self.n)
            )
        )

    def head(self, pair: Pair) -> tuple[bytes, bytes]:
        """See `Source`; everything is drawn upright."""
        return self.read(pair)

    def read(self, pair: Pair) -> tuple[bytes, bytes]:
        """Draw a sample.

        Args:
            pair: one of `listing()`.

        Returns:
            A JPEG in RGB and an 8-bit grey PNG of the same size holding the codes 1, 2 and 3.

        Raises:
            PetsegError: the key is not one of this source's.
        """
        species, _, number = pair.key.partition("_")
        index = int(number) if number.isdecimal() else -1
        if not 0 <= index < self.n or species != ("Dog" if index % 2 else "Cat"):
            raise PetsegError(f"{self.name} has no sample '{pair.key}': take the pairs of its own listing.")
        pixels, trimap = draw(self.seed, index, cat=index % 2 == 0, min_side=self.min_side, max_side=self.max_side)
        _, image = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        _, mask = cv2.imencode(".png", trimap, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return image.tobytes(), mask.tobytes()


def _sorted_keys(kind: str, odd: int, count: int) -> Iterator[str]:
    """`Cat_000000`, `Cat_000002` and so on, as text is sorted: numbers of six digits and of more, each in order."""
    ends = [count, *(10**digits for digits in range(_DIGITS, len(str(count))))]
    begin, longer = 0, []
    for end in sorted(ends):
        longer.append(range(begin + odd, end, 2))
        begin = end
    return heapq.merge(*(map(f"{kind}_{{:0{_DIGITS}d}}".format, numbers) for numbers in longer))
