"""Fixtures of the assessment: a mapped scene, and a labelled sample of its map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest

from tests.support.mapped_scene import Mapped


@pytest.fixture
def mapped(reference: Any, tmp_path: Path) -> Mapped:
    """A trained and mapped scene of 3 classes, for a test to change."""
    copied: Mapped = reference.copy(tmp_path / "scene")
    return copied


@pytest.fixture
def label(mapped: Mapped, tmp_path: Path) -> Callable[..., Path]:
    """A function that labels a sample of the map with the map's own classes, of which a share is wrong."""

    def labelled(name: str = "sample", *, wrong: float = 0.2, **changes: Any) -> Path:
        table = geopandas.read_file(mapped.folder / f"work/runs/main/samples/{name}/points.gpkg")
        generator = np.random.default_rng(0)
        ids = mapped.pixels()[0][table["row"], table["column"]]
        known = np.unique(mapped.pixels()[mapped.pixels() != 255])
        other = generator.random(len(ids)) < wrong
        table["label"] = [str(i) for i in np.where(other, generator.choice(known, len(ids)), ids)]
        for column, value in changes.items():
            table[column] = value
        path = tmp_path / f"{name}-labelled.gpkg"
        table.to_file(path)
        return path

    return labelled
