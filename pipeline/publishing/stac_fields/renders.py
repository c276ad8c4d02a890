"""How tile servers and catalogues draw a map: render objects of STAC's render extension, version 2.0.

https://github.com/stac-extensions/render. titiler takes their fields as parameters of a request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mibf.bundle.classes import ClassName


def class_render(asset: str, title: str, classes: Sequence[ClassName], *, nodata: float | None) -> dict[str, Any]:
    """Each class in its colour; class ids are not interpolated."""
    colors = {str(c.id): [*c.rgb, 255] for c in classes}
    return {"title": title, "assets": [asset], "colormap": colors, "resampling": "nearest"} | _nodata(nodata)


def fraction_render(asset: str, title: str, *, scale: float, nodata: float | None) -> dict[str, Any]:
    """Fractions from 0 to 1 in the colours of the QGIS style; the limits are those of the stored values."""
    return {
        "title": title,
        "assets": [asset],
        "rescale": [[0, round(1 / scale)]],
        "colormap_name": "viridis",
        "resampling": "nearest",
    } | _nodata(nodata)


def _nodata(value: float | None) -> dict[str, Any]:
    if value is None:
        return {}
    return {"nodata": "nan" if math.isnan(value) else int(value)}
