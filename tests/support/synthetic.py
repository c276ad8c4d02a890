"""Synthetic scenes and windows for tests."""

from __future__ import annotations

from typing import Any

from pipeline.grid import Window
from pipeline.scenes.synthetic import SyntheticScene, SyntheticSource

SHAPE = (640, 600)  # more than one block along both axes


def synthetic_scene(
    *bands: int, scales: tuple[int, ...] | None = None, shape: tuple[int, int] = SHAPE, **options: Any
) -> SyntheticScene:
    """Return a scene with these bands per source."""
    scales = scales or (1,) * len(bands)
    sources = tuple(SyntheticSource(f"source{k + 1}", b, s) for k, (b, s) in enumerate(zip(bands, scales, strict=True)))
    return SyntheticScene(shape, sources, **options)


def full_window(shape: tuple[int, int]) -> Window:
    """Return the window of a whole grid."""
    return Window(0, 0, *shape)
