"""Find sources and bands without any data on the reference grid before a store is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window, windows
from pipeline.parallel.executor import Executor
from pipeline.rasters.raster import AlignedFile, header
from pipeline.scenes.coregistration import windows_with_data
from pipeline.scenes.source import AlignedSource

#: Side in reference pixels and number of the windows that are read first: nearly every source has data in one of them.
SIDE, SAMPLES = 64, 9
#: Side of the windows of the complete grid, which are read only for a source without data in the first ones.
WHOLE = 1024


def sources_without_data(executor: Executor, sources: Sequence[AlignedSource], shape_yx: tuple[int, int]) -> list[int]:
    """The positions of sources without any valid pixel on a grid of this shape.

    Raises:
        InputError: a file cannot be read.
    """
    left = list(range(len(sources)))
    area = sources[0].area if sources else None
    for parts in (windows_with_data(area, shape_yx, SIDE, SAMPLES), windows(shape_yx, WHOLE)):
        found = _have_data(executor, [sources[i] for i in left], parts)
        left = [i for i, there in zip(left, found, strict=True) if not there]
    return left


def bands_without_data(executor: Executor, source: AlignedSource, shape_yx: tuple[int, int]) -> list[str]:
    """Describe the bands of a source that have no data anywhere on the grid, whatever its mask says.

    Raises:
        InputError: a file cannot be read.
    """
    names, singles = [], []
    declared = replace(source.declared, mask=None, dates=(), masks=(), periods=(), band_names=(), derive=(), keep=())
    for layer in source.layers:
        for at, number in enumerate(layer[0].file.bands or range(1, layer[0].header.bands + 1)):
            parts = tuple(_single_band(part, at) for part in layer)
            singles.append(replace(source, declared=declared, layers=(parts,), mask=None))
            names.append(str(number) if len(source.layers) == 1 else f"{number} of {layer[0].file}")
    return [names[i] for i in sources_without_data(executor, singles, shape_yx)]


def periods_without_data(executor: Executor, source: AlignedSource, shape_yx: tuple[int, int]) -> list[str]:
    """The names of a source's periods in which no pixel of the grid is clear.

    Raises:
        InputError: a file cannot be read.
    """
    periods = source.declared.periods
    singles = [replace(source, declared=replace(source.declared, periods=(period,))) for period in periods]
    return [periods[i].name for i in sources_without_data(executor, singles, shape_yx)]


def _single_band(part: AlignedFile, at: int) -> AlignedFile:
    """A file with one of the bands that are read, which may have another number in each file."""
    file = replace(part.file, bands=(at + 1 if part.file.bands is None else part.file.bands[at],))
    return replace(part, file=file, header=header(file), position=0, mask=None)


def _have_data(executor: Executor, sources: list[AlignedSource], parts: list[Window]) -> NDArray[np.bool_]:
    """Whether each source has a valid pixel in any of these windows."""
    found = np.zeros(len(sources), bool)

    def take(part: NDArray[np.bool_]) -> None:
        np.logical_or(found, part, out=found)

    if sources:
        executor.each(_window_has_data, sources, parts, take)
    return found


def _window_has_data(sources: list[AlignedSource], window: Window) -> NDArray[np.bool_]:
    return np.array([source.read(window)[1].any() for source in sources])
