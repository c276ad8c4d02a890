"""See whether a scene's sources lie on each other: the shift of each against the first, on a few windows of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.engine import Engine
from pipeline.fill import OpenScene
from pipeline.grid import Window
from pipeline.scene import OpenSource
from pipeline.shift import Shift, measure, places, plane

#: Windows along each axis, and the longest side that one has, in reference pixels.
ACROSS, LONGEST = 3, 256
#: Pixels of a credible shift from which on a person is warned. Real bands of one sensor differed by 0.1.
TOO_FAR = 0.75


def shifts(engine: Engine, scene: OpenScene) -> dict[str, Shift]:
    """The shift of every source but the first against the first, in reference pixels.

    Raises:
        InputError: a file cannot be read.
    """
    rows, columns = scene.template.shape
    side = max(1, min(LONGEST, min(rows, columns) // ACROSS))
    found: list[tuple[Window, list[NDArray[np.float32]]]] = []
    engine.each(_planes, scene.sources, places((rows, columns), side, ACROSS**2), found.append)
    found.sort(key=lambda part: part[0])
    planes = [part for _, part in found]
    return {
        source.declared.name: measure([(part[0], part[position]) for part in planes])
        for position, source in enumerate(scene.sources)
        if position
    }


def _planes(sources: Sequence[OpenSource], window: Window) -> tuple[Window, list[NDArray[np.float32]]]:
    """One plane of each source in a window, (y, x) in reference pixels; NaN where it has no data."""
    return window, [plane(_at_reference(source, window)) for source in sources]


def _at_reference(source: OpenSource, window: Window) -> NDArray[np.float32]:
    """A source's values (band, y, x), a finer one's as means over each reference pixel; NaN where there is no data."""
    values, valid = source.read(window)
    known = np.where(valid, values, np.float32(np.nan)).astype(np.float32)
    s = source.scale
    return np.asarray(known.reshape(len(known), window.height, s, window.width, s).mean(axis=(2, 4)))


def told(name: str, first: str, shift: Shift) -> str:
    """A shift in words."""
    if not shift.credible:
        return f"{name}: its shift against {first} cannot be told ({shift.agreeing} of {shift.windows} windows agree)"
    if shift.distance < TOO_FAR:
        return f"{name}: lies on {first} within {max(0.1, math.ceil(10 * shift.distance) / 10):.1f} pixels"
    return (
        f"{name}: lies {shift.distance:.1f} pixels off {first} ({abs(shift.dy):.1f} {'down' if shift.dy > 0 else 'up'}, "
        f"{abs(shift.dx):.1f} {'right' if shift.dx > 0 else 'left'}; {shift.agreeing} of {shift.windows} windows agree)"
    )
