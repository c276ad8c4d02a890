"""The record of a sampling design: frame, strata, inclusion probabilities, seed and the map that was sampled.

It is written beside the points, and an estimate needs it: the labels alone do not say what they stand for. A design that was
not drawn by mibf can be written by hand; `Design.of_json` names what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mibf.errors import InputError
from pipeline.assessment.allocation import Allocation
from pipeline.codes import Subset
from pipeline.io import checksums

#: Version of the record.
FORMAT = 1
DesignName = Literal["stratified", "random", "systematic"]
DESIGNS: tuple[DesignName, ...] = get_args(DesignName)


@dataclass(frozen=True)
class ClassCount:
    """The pixels of the frame that the map says are of a class."""

    id: int
    name: str
    pixels: int
    hectares: float | None  #: None where areas are not known


@dataclass(frozen=True)
class Stratum:
    """A part of the frame from which points are drawn, all with the same inclusion probability."""

    number: int  #: as in the points' column `stratum`; in an order that says nothing about the classes
    name: str
    pixels: int
    hectares: float | None
    points: int
    inclusion_probability: float
    expected_accuracy: float | None = None  #: that the allocation assumed


@dataclass(frozen=True)
class Excluded:
    """The pixels of the map that are not in the frame, because the model was fitted to them."""

    subsets: tuple[Subset, ...] = ()
    pixels: int = 0
    hectares: float | None = None


@dataclass(frozen=True)
class Design:
    """How a sample was drawn. Estimates hold for its frame: the pixels of the map, without the excluded ones."""

    design: DesignName
    strata: tuple[Stratum, ...]
    classes: tuple[ClassCount, ...]  #: of the map, for stratifying a sample after it was drawn
    map_digest: str  #: of the class rasters; see `pipeline.publishing.stac_item_reader.class_digest`
    scenes: Mapping[str, str]  #: the STAC item's id of each scene
    seed: int | None = None
    allocation: Allocation | None = None
    minimum: int | None = None
    standard_error: float | None = None  #: of the overall accuracy that the number of points was chosen for
    interval: float | None = None  #: of a systematic grid, in pixels
    excluded: Excluded = field(default_factory=Excluded)
    #: The classes of each scene, where there are several; records of earlier versions do not have them.
    classes_by_scene: Mapping[str, tuple[ClassCount, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Identifies the sample: the points carry it."""
        fields = {name: value for name, value in asdict(self).items() if name != "classes_by_scene"}
        return checksums.digest(fields)[:12]

    @property
    def pixels(self) -> int:
        """Size of the frame."""
        return sum(stratum.pixels for stratum in self.strata)

    @property
    def hectares(self) -> float | None:
        """Area of the frame; None if it is not known."""
        found = [stratum.hectares for stratum in self.strata]
        return None if None in found else sum(each for each in found if each is not None)

    @property
    def points(self) -> int:
        """Number of points drawn."""
        return sum(stratum.points for stratum in self.strata)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"format": FORMAT, **asdict(self), "frame": {"pixels": self.pixels, "hectares": self.hectares}}

    @classmethod
    def of_json(cls, value: Any, source: str) -> Design:
        """Read a record.

        Raises:
            InputError: it is not one, or of another format; the message names `source` and the field.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(
                f"{source}: not the record of a sampling design of format {FORMAT}; draw one with `mibf sample`."
            )
        try:
            strata = tuple(Stratum(**_known(each, Stratum)) for each in value["strata"])
            fields = _known(value, cls) | {
                "strata": strata,
                "classes": tuple(ClassCount(**_known(each, ClassCount)) for each in value["classes"]),
                "classes_by_scene": {
                    str(scene): tuple(ClassCount(**_known(each, ClassCount)) for each in counts)
                    for scene, counts in (value.get("classes_by_scene") or {}).items()
                },
                "excluded": Excluded(**_known(value.get("excluded") or {}, Excluded)),
            }
            found = cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{source}: not a complete record of a sampling design ({error}).") from error
        found._check(source)
        return found

    def _check(self, source: str) -> None:
        if self.design not in DESIGNS:
            raise InputError(f"{source}: design {self.design!r} is unknown; use {', '.join(DESIGNS)}.")
        numbers = [stratum.number for stratum in self.strata]
        if not numbers or len(set(numbers)) < len(numbers):
            raise InputError(f"{source}: needs strata with different numbers, not {numbers}.")
        for stratum in self.strata:
            if not isinstance(stratum.pixels, int) or stratum.pixels < 0:
                raise InputError(f"{source}: stratum {stratum.number} has {stratum.pixels!r} pixels; give a count.")
        if self.pixels == 0:
            raise InputError(f"{source}: its frame has no pixels.")


def _known(value: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The fields of a record that its class has: later versions may add more."""
    return {name: value[name] for name in kind.__dataclass_fields__ if name in value}


def stratum_numbers(names: Sequence[str], shuffled: Sequence[int]) -> dict[str, int]:
    """Number strata from 1 in a shuffled order, so that an interpreter does not learn the map's class from a number.

    >>> stratum_numbers(["water", "forest"], [1, 0])
    {'forest': 1, 'water': 2}
    """
    return {names[position]: number for number, position in enumerate(shuffled, 1)}
