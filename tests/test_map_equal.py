"""A map does not depend on how it is cut or on who computes it: the same pixels for every size of tiles, in every process.

That workers of Ray write the very bytes that the command itself writes, tests/test_map_faults.py shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.products import MAP_PRODUCTS
from tests.mapped import Mapped

pytestmark = pytest.mark.slow

EVERY = f"map.products=[{','.join(MAP_PRODUCTS)}]"


def test_tiles_of_every_size_make_the_same_map(trained: Mapped, tmp_path: Path) -> None:
    """All products, in one workspace: each size of tiles takes the place of the one before."""
    mapped = trained.copy(tmp_path / "scene")
    found = []
    for side in (64, 128, 192):
        mapped.does("map", EVERY, f"map.tile={side}")
        found.append({product: mapped.pixels(product) for product in MAP_PRODUCTS})
    for other in found[1:]:
        for product, pixels in found[0].items():
            np.testing.assert_array_equal(other[product], pixels, err_msg=product)


def test_large_tiles_make_the_same_map(tmp_path: Path) -> None:
    """A synthetic scene of 512 x 1024 pixels, cut into 8 tiles, into 2, and into 1 that is larger than the scene."""

    def mibf(*arguments: str) -> None:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output

    folder = tmp_path / "toy"
    mibf("synth", str(folder), "--size", "512x1024", "--bands", "3+1", "--nodata", "0.1", "--labelled", "0.01")
    settings = [p for s in ("model.patch=5", "train.epochs=1", "train.workers=0", "map.workers=0") for p in ("--set", s)]
    for stage in ("prepare", "train"):
        mibf(stage, str(folder / "synth.yaml"), *settings)
    found = []
    for side in (256, 512, 1024):
        mibf("map", str(folder / "synth.yaml"), *settings, "--set", f"map.tile={side}")
        for product in ("class", "confidence"):
            with rasterio.open(folder / f"work/maps/synth/main/{product}.tif") as dataset:
                found.append(dataset.read())
    for one, other in zip(found, found[2:], strict=False):
        np.testing.assert_array_equal(one, other)
