"""What a network expects of its inputs: sources, bands, classes, patch. No dependencies.

A spec is an immutable value that travels in the bundle; the network is built from it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mibf.errors import InputError

#: Channels of every branch's output, of the gate and of each factor of the relation.
FEATURES = 64
#: Width of the joined features, of the hidden layer and of the bottleneck.
HIDDEN = 128
#: Inner widths of a branch: the paper's first (spectral) source and its second (SAR, LiDAR) one.
WIDE = (128, 64)
NARROW = (16, 32)

#: The channel attention squeezes the second width to a sixteenth.
NARROWEST = 16
SMALLEST_PATCH, LARGEST_PATCH = 5, 15
#: Pixels of a source along one reference pixel.
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class SourceSpec:
    """One source as the network sees it: name, number of bands, its branch's inner widths, its scale.

    A source of scale s has s x s pixels to each pixel of the reference grid, and none is averaged away.
    """

    name: str
    bands: int
    widths: tuple[int, int] = WIDE
    scale: int = 1

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise InputError(f"source {self.name!r} has {self.bands} bands; a source needs at least one.")
        if min(self.widths) < NARROWEST:
            raise InputError(f"source {self.name!r} has inner widths {self.widths}; each must be at least {NARROWEST}.")
        if self.scale not in SCALES:
            raise InputError(
                f"source {self.name!r} has scale {self.scale}; it must be one of {', '.join(map(str, SCALES))} "
                "pixels of the source to one of the reference grid, along an axis."
            )

    @property
    def channels(self) -> int:
        """Values of this source at one reference pixel: bands x scale x scale."""
        return self.bands * self.scale**2


@dataclass(frozen=True)
class NetworkSpec:
    """The shape of a network: its sources in order, the number of classes, the patch's side in reference pixels.

    `hidden` is the width of the bottleneck's hidden layer; only the authors' released checkpoints have
    another one than the paper's.
    """

    sources: tuple[SourceSpec, ...]
    classes: int
    patch: int = 7
    hidden: int = HIDDEN

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise InputError(
                f"MIBF-Net fuses at least two sources, {len(self.sources)} given; "
                "split one sensor's bands into two sources if there is only one."
            )
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"two sources have one name: {', '.join(names)}.")
        if self.classes < 2:
            raise InputError(f"a classifier needs at least two classes, {self.classes} given.")
        if self.patch % 2 == 0 or not SMALLEST_PATCH <= self.patch <= LARGEST_PATCH:
            raise InputError(
                f"patch is {self.patch}; it must be an odd number of pixels from {SMALLEST_PATCH} to {LARGEST_PATCH}."
            )

    @property
    def halo(self) -> int:
        """Pixels that a patch reaches beyond its centre: patch // 2."""
        return self.patch // 2

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NetworkSpec:
        """The spec that `to_json` wrote."""
        sources = tuple(SourceSpec(**{**source, "widths": tuple(source["widths"])}) for source in value["sources"])
        return cls(**{**value, "sources": sources})


def check_shapes(spec: NetworkSpec, found: Sequence[tuple[int, ...]], *, rows: int, columns: int) -> None:
    """See that every source has its bands, and its scale's pixels to each of rows x columns reference pixels.

    Args:
        spec: what the network expects.
        found: the shape (bands, rows, columns) of each source, in its own pixels.
        rows: rows of reference pixels, any halo included.
        columns: columns of them.

    Raises:
        InputError: names the source, what was expected and what was found.
    """
    if len(found) != len(spec.sources):
        names = ", ".join(source.name for source in spec.sources)
        raise InputError(f"{len(found)} sources given; the network wants {len(spec.sources)}, in this order: {names}.")
    for source, shape in zip(spec.sources, found, strict=True):
        wanted = (source.bands, rows * source.scale, columns * source.scale)
        if tuple(shape) != wanted:
            raise InputError(
                f"source {source.name!r} is {' x '.join(map(str, shape))} (bands x rows x columns); "
                f"the network wants {' x '.join(map(str, wanted))}: {source.bands} bands, {rows} x {columns} "
                f"reference pixels at scale {source.scale}."
            )
