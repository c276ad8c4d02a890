"""The classes detected in labels: ids, names, colours and pixel counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.config.scene import PALETTE
from jobs.init.legend import Legend
from mibf.bundle.classes import ClassName
from pipeline.scenes.labels import Labels

#: Maximum number of classes; more distinct values are treated as measurements or as names of single features.
MAX_CLASSES = 100
#: The largest class id; 255 means "no label" in stores and maps.
MAX_ID = 254
#: Lightening (above 0) or darkening of the palette's colours on each repetition of the palette.
_SHADES = (0.0, 0.45, -0.4, 0.65, -0.6, 0.25, -0.2)


@dataclass(frozen=True)
class DetectedClass:
    """A class as written to the configuration."""

    id: int
    name: str
    color: str
    pixels: int = 0  #: labelled pixels on the reference grid; for vector labels, features until they are rasterized


@dataclass(frozen=True)
class DetectedLabels:
    """Labels and the classes detected in them."""

    labels: Labels  #: `ignore` lists the values that are not classes
    url: str  #: as given by the user
    classes: tuple[DetectedClass, ...]
    notes: tuple[str, ...] = field(default=())  #: what the user should check

    @property
    def names(self) -> tuple[ClassName, ...]:
        """The classes in the form that the pipeline uses."""
        return tuple(ClassName(c.id, c.name, c.color) for c in self.classes)


def raster_classes(counts: Mapping[int, int], legend: Legend) -> tuple[DetectedClass, ...]:
    """Return a class for each value of a raster, with its name and colour from the legend if it has any."""
    ids = sorted(counts)
    names = unique_names(ids, [legend.names.get(i) or f"class {i}" for i in ids])
    colors = choose_colors([legend.colors.get(i) for i in ids])
    return tuple(DetectedClass(*row, counts[row[0]]) for row in zip(ids, names, colors, strict=True))


def vector_classes(values: Sequence[str], counts: Mapping[str, int]) -> tuple[DetectedClass, ...]:
    """Return a class for each value of a vector attribute, as text: numbers from 0 to 254 are ids, other texts names."""
    numbers = {
        value: int(value) for value in values if value.isdecimal() and str(int(value)) == value and int(value) <= MAX_ID
    }
    free = (i for i in range(1, MAX_ID + 1) if i not in numbers.values())
    rows = [
        (numbers[value], f"class {value}", value) if value in numbers else (next(free), value, value)
        for value in sorted(values)
    ]
    rows.sort()
    colors = choose_colors([None] * len(rows))
    return tuple(DetectedClass(i, name, color, counts[value]) for (i, name, value), color in zip(rows, colors, strict=True))


def unique_names(ids: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return unique names, none of which is the id of another class."""
    duplicates = {name for name, count in Counter(names).items() if count > 1}
    taken = {str(i) for i in ids}
    return [
        f"{name} ({i})" if name in duplicates else f"class {name}" if name in taken and name != str(i) else name
        for i, name in zip(ids, names, strict=True)
    ]


def choose_colors(known: Iterable[str | None]) -> list[str]:
    """Return a colour for each class: its own if no other class has it, else one of the palette, shaded on repeats."""
    own = list(known)
    counts = Counter(own)
    free = (color for color in _palette() if color not in counts)
    return [color if color is not None and counts[color] == 1 else next(free) for color in own]


def _palette() -> Iterable[str]:
    for shade in _SHADES:
        for color in PALETTE:
            parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
            moved = (round(p + shade * (255 - p) if shade > 0 else p * (1 + shade)) for p in parts)
            yield "#" + "".join(f"{part:02x}" for part in moved)
