"""What a network expects of its inputs: sources, bands, classes, patch. No dependencies.

A spec is an immutable value that travels in the bundle; the network is built from it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

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

#: What a network can be built without, to learn what each is worth.
Part = Literal["noise", "relation", "bottleneck"]
PARTS: tuple[Part, ...] = get_args(Part)
#: What has a meaning between sources alone: one source has neither.
BETWEEN: tuple[Part, ...] = ("noise", "relation")


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

    `without` names parts that are left out, in any order; the spec has them in the order of `PARTS`:

    - "noise": no noise adaptation; training disturbs no features.
    - "relation": no gate and no product of sources. The refined branches alone are joined, and every source's
      gate is 1 / N, so that noise adaptation disturbs each as often as the others.
    - "bottleneck": the code is its mean in training too, without a standard deviation, and its rate is 0.

    One source is a network too, without what is between sources: `without=("noise", "relation")`.
    """

    sources: tuple[SourceSpec, ...]
    classes: int
    patch: int = 7
    hidden: int = HIDDEN
    without: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "without", _in_order(self.without))  # frozen, and equal whatever order was given
        alone = len(self.sources) == 1 and set(BETWEEN) <= set(self.without)
        if len(self.sources) < 2 and not alone:
            raise InputError(
                f"MIBF-Net fuses at least two sources, {len(self.sources)} given; split one sensor's bands into two sources "
                f"if there is only one, or train it alone, without {' and '.join(BETWEEN)}, which are between sources."
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
        return {**asdict(self), "without": list(self.without)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NetworkSpec:
        """The spec that `to_json` wrote, now or when every network had all parts."""
        sources = tuple(SourceSpec(**{**source, "widths": tuple(source["widths"])}) for source in value["sources"])
        return cls(**{**value, "sources": sources, "without": tuple(value.get("without", ()))})


def _in_order(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Names of parts in the order of `PARTS`.

    Raises:
        InputError: one is not known or named twice, or text was given in place of names.
    """
    if isinstance(parts, str):
        raise InputError(f"`without` is {parts!r}; give a list, of {', '.join(PARTS)}.")
    named = list(parts)
    for part in named:
        if part not in PARTS:
            raise InputError(f"a network cannot be without {part!r}; it can be without {', '.join(PARTS)}.")
        if named.count(part) > 1:
            raise InputError(f"`without` names {part!r} twice; name each part once.")
    return tuple(part for part in PARTS if part in named)


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
