"""Network specification: sources, bands, classes, patch size. No dependencies.

A spec is an immutable value that is stored in the bundle; the network is built from it alone.
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
#: Inner widths of a branch, for the paper's first (spectral) and second (SAR, LiDAR) source.
WIDE = (128, 64)
NARROW = (16, 32)
#: The channel attention squeezes the second width to a sixteenth.
NARROWEST = 16
SMALLEST_PATCH, LARGEST_PATCH = 5, 15
#: Pixels of a source along one reference pixel.
SCALES = (1, 2, 4)
#: Parts that a network can be built without, for ablation.
NetworkPart = Literal["noise", "relation", "bottleneck"]
PARTS: tuple[NetworkPart, ...] = get_args(NetworkPart)
#: Parts that relate sources to each other: a network of one source has neither.
BETWEEN: tuple[NetworkPart, ...] = ("noise", "relation")
#: What a network of one source lacks, in words.
ONE_SOURCE = "with one source, the network has neither a relation between sources nor noise adaptation"


@dataclass(frozen=True)
class SourceSpec:
    """One source as the network sees it: name, number of bands, inner widths of its branch, scale.

    A source of scale s has s x s pixels per pixel of the reference grid; all of them are used, none is averaged.
    """

    name: str
    bands: int
    widths: tuple[int, int] = WIDE
    scale: int = 1

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise InputError(f"source {self.name!r} has {self.bands} bands; it needs at least one.")
        if min(self.widths) < NARROWEST:
            raise InputError(f"source {self.name!r} has inner widths {self.widths}; each must be at least {NARROWEST}.")
        if self.scale not in SCALES:
            raise InputError(
                f"source {self.name!r} has scale {self.scale}; it must be one of {', '.join(map(str, SCALES))} "
                "source pixels per reference pixel along an axis."
            )

    @property
    def channels(self) -> int:
        """Number of values of this source per reference pixel: bands x scale x scale."""
        return self.bands * self.scale**2


@dataclass(frozen=True)
class NetworkSpec:
    """The architecture of a network: its sources in order, the number of classes, the patch size in reference pixels.

    `hidden` is the width of the bottleneck's hidden layer; only reference checkpoints of the released code differ from
    the paper's width.

    `without` names parts to leave out, in any order; the spec stores them in the order of `PARTS`:

    - "noise": no noise adaptation; training adds no noise to features.
    - "relation": no gate and no product of sources. Only the refined branches are joined, and every source's gate is
      1 / N, so noise adaptation disturbs all sources equally often.
    - "bottleneck": the code is its mean in training too, without a standard deviation, and the KL term is 0.

    `centre` adds a path from the centre pixel's own values to the pooled features, which the paper's network lacks.

    A network may have a single source, without the parts that relate sources: `without=("noise", "relation")`.
    """

    sources: tuple[SourceSpec, ...]
    classes: int
    patch: int = 7
    hidden: int = HIDDEN
    without: tuple[NetworkPart, ...] = ()
    centre: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.centre, bool):
            raise InputError(f"`centre` is {self.centre!r}; it must be true or false.")
        object.__setattr__(self, "without", _in_order(self.without))  # so that specs are equal whatever order was given
        is_single = len(self.sources) == 1 and set(BETWEEN) <= set(self.without)
        if len(self.sources) < 2 and not is_single:
            raise InputError(
                f"MIBF-Net fuses at least two sources, {len(self.sources)} given; split one sensor's bands into two sources "
                f"if there is only one, or train it alone, without {' and '.join(BETWEEN)}, which relate sources."
            )
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"two sources have the same name: {', '.join(names)}; rename one.")
        if self.classes < 2:
            raise InputError(f"a classifier needs at least two classes, {self.classes} given.")
        if self.patch % 2 == 0 or not SMALLEST_PATCH <= self.patch <= LARGEST_PATCH:
            raise InputError(
                f"patch is {self.patch}; it must be an odd number of pixels from {SMALLEST_PATCH} to {LARGEST_PATCH}."
            )

    @property
    def halo(self) -> int:
        """Number of pixels that a patch extends beyond its centre: patch // 2."""
        return self.patch // 2

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values; without the key `centre` where it is off, as older versions wrote it."""
        values = {**asdict(self), "without": list(self.without)}
        if not self.centre:  # so that fingerprints and unfinished training of networks without it stay current
            del values["centre"]
        return values

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NetworkSpec:
        """Read the spec that `to_json` wrote, also from versions without the keys `without` and `centre`."""
        sources = tuple(SourceSpec(**{**source, "widths": tuple(source["widths"])}) for source in value["sources"])
        return cls(**{**value, "sources": sources, "without": tuple(value.get("without", ()))})


def _in_order(parts: Iterable[NetworkPart]) -> tuple[NetworkPart, ...]:
    """Sort names of parts in the order of `PARTS`.

    Raises:
        InputError: a name is unknown or repeated, or a string was given instead of a list of names.
    """
    if isinstance(parts, str):
        raise InputError(f"`without` is {parts!r}; pass a list with names from {', '.join(PARTS)}.")
    named = list(parts)
    for part in named:
        if part not in PARTS:
            raise InputError(f"a network cannot be built without {part!r}; `without` accepts {', '.join(PARTS)}.")
        if named.count(part) > 1:
            raise InputError(f"`without` lists {part!r} twice; list each part once.")
    return tuple(part for part in PARTS if part in named)


def check_shapes(spec: NetworkSpec, found: Sequence[tuple[int, ...]], *, rows: int, columns: int) -> None:
    """Check that every source has its number of bands, and the right number of pixels for rows x columns reference pixels.

    Args:
        spec: what the network expects.
        found: the shape (bands, rows, columns) of each source, in its own pixels.
        rows: number of rows of reference pixels, including any halo.
        columns: number of columns of reference pixels, likewise.

    Raises:
        InputError: a shape differs; the message names the source, the expected and the found shape.
    """
    if len(found) != len(spec.sources):
        names = ", ".join(source.name for source in spec.sources)
        raise InputError(f"{len(found)} sources given; the network needs {len(spec.sources)}, in this order: {names}.")
    for source, shape in zip(spec.sources, found, strict=True):
        wanted = (source.bands, rows * source.scale, columns * source.scale)
        if tuple(shape) != wanted:
            raise InputError(
                f"source {source.name!r} is {' x '.join(map(str, shape))} (bands x rows x columns); "
                f"the network needs {' x '.join(map(str, wanted))}: {source.bands} bands, {rows} x {columns} "
                f"reference pixels at scale {source.scale}."
            )
