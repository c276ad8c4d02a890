"""What a network expects of its inputs: sources, bands, classes, patch. No dependencies.

A spec is an immutable value that travels in the bundle; the network is built from it alone.
"""

from __future__ import annotations

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

SMALLEST_PATCH, LARGEST_PATCH = 5, 15


@dataclass(frozen=True)
class SourceSpec:
    """One source as the network sees it: its name, its number of bands, its branch's inner widths."""

    name: str
    bands: int
    widths: tuple[int, int] = WIDE

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise InputError(f"source {self.name!r} has {self.bands} bands; a source needs at least one.")


@dataclass(frozen=True)
class NetworkSpec:
    """The shape of a network: its sources in order, the number of classes, the patch's side in pixels."""

    sources: tuple[SourceSpec, ...]
    classes: int
    patch: int = 7

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise InputError(
                f"MIBF-Net fuses at least two sources, {len(self.sources)} given; "
                "split one sensor's bands into two sources if there is only one."
            )
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
        sources = tuple(
            SourceSpec(name=s["name"], bands=s["bands"], widths=(s["widths"][0], s["widths"][1])) for s in value["sources"]
        )
        return cls(sources=sources, classes=value["classes"], patch=value["patch"])
