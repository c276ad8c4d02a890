"""Render bands, classes and values as images, embedded in a page as data URLs."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mibf.bundle.classes import ClassName
from mibf.normalization import BandScaling

#: The colour of pixels without data.
BACKGROUND = (238, 238, 238)
Rgb = NDArray[np.uint8]


def display_bands(bands: int) -> list[int]:
    """The bands to show: 3, 2, 1 of three or four (true colour if they start with blue), or three spread over more."""
    if bands < 3:
        return [0]
    if bands <= 4:
        return [2, 1, 0]
    return [round(f * (bands - 1)) for f in (0.75, 0.5, 0.25)]


def stretched(values: NDArray[Any], valid: NDArray[np.bool_], scaling: BandScaling, bands: list[int]) -> Rgb:
    """Scale bands (band, y, x) by their normalization to red, green and blue, or to grey; background where not valid."""
    scaled = BandScaling(low=scaling.low[bands], high=scaling.high[bands], fill=scaling.fill[bands]).apply(values, valid)
    if len(bands) == 1:
        scaled = np.repeat(scaled, 3, axis=0)
    picture = (scaled.transpose(1, 2, 0) * 255).astype(np.uint8)
    picture[~valid] = BACKGROUND
    return picture


def colored(ids: NDArray[Any], classes: tuple[ClassName, ...]) -> Rgb:
    """Class ids (y, x) in the colours of their classes; background for any other id."""
    table = np.full((256, 3), BACKGROUND, np.uint8)
    for c in classes:
        table[c.id] = c.rgb
    return np.asarray(table[ids])


def shades(values: NDArray[np.floating[Any]], low: float, high: float) -> Rgb:
    """Values (y, x) from dark (`low`) to bright (`high`); background where they are not finite."""
    scaled = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    picture = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    picture[~np.isfinite(values)] = BACKGROUND
    return np.asarray(picture)


def png(picture: Rgb, enlarged: int = 1) -> str:
    """An image as a data URL, in squares of `enlarged` pixels per pixel."""
    buffer = io.BytesIO()
    picture = picture.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    matplotlib.image.imsave(buffer, picture, format="png")
    return data_url(buffer.getvalue(), "image/png")


def jpeg(picture: Rgb) -> str:
    """An image as a data URL, compressed with losses, which takes a fifth of the bytes."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, picture, format="jpeg", pil_kwargs={"quality": 85})
    return data_url(buffer.getvalue(), "image/jpeg")


def data_url(content: bytes, kind: str) -> str:
    """A file of a media type as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def svg(figure: Figure) -> str:
    """A plot as a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return data_url(buffer.getvalue(), "image/svg+xml")
