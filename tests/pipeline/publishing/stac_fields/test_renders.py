"""Render objects of single products; those of an item are tested with it."""

from __future__ import annotations

import pytest

from mibf.bundle.classes import ClassName
from pipeline.publishing.stac_fields.renders import class_render, fraction_render


def test_classes_have_their_colours() -> None:
    found = class_render("class", "Class", [ClassName(3, "Water", "#0080ff")], nodata=255)
    assert (found["colormap"], found["nodata"]) == ({"3": [0, 128, 255, 255]}, 255)


@pytest.mark.parametrize(
    ("scale", "nodata", "top", "shown"),
    [(0.0001, 65535, 10_000, 65535), (0.004, 255, 250, 255), (1.0, float("nan"), 1, "nan")],
)
def test_limits_of_fractions_are_those_of_stored_values(scale: float, nodata: float, top: int, shown: object) -> None:
    found = fraction_render("confidence", "Confidence", scale=scale, nodata=nodata)
    assert (found["rescale"], found["nodata"]) == ([[0, top]], shown)
