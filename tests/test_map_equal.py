"""A map does not depend on how it is cut or on who computes it: the same files for every size of tiles, in every process.

That workers of Ray write the very bytes that the command itself writes, tests/test_map_faults.py shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
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
        found.append(mapped.published())
    assert len(found[0]) == len(MAP_PRODUCTS)
    assert found[1] == found[0]
    assert found[2] == found[0]


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
        found.append({path.name: path.read_bytes() for path in (folder / "work/maps/synth/main").glob("*.tif")})
    assert set(found[0]) == {"class.tif", "confidence.tif"}
    assert found[1] == found[0]
    assert found[2] == found[0]
