"""A map does not depend on its tile size: the published files are byte-identical.

tests/fault_injection/test_mapping.py checks that Ray workers write the same bytes as a map without Ray.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli.common import app
from pipeline.maps.products import MAP_PRODUCTS
from tests.support.mapped_scene import Mapped

pytestmark = pytest.mark.slow
EVERY = f"map.products=[{','.join(MAP_PRODUCTS)}]"


def test_map_of_all_products_is_identical_for_every_tile_size(trained: Mapped, tmp_path: Path) -> None:
    """All products, in one workspace: each map replaces that of the previous tile size."""
    mapped = trained.copy(tmp_path / "scene")
    found = []
    for side in (64, 128, 192):
        mapped.does("map", EVERY, f"map.tile_size={side}")
        found.append(mapped.published())
    assert len(found[0]) == len(MAP_PRODUCTS)
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_map_of_larger_scene_is_identical_for_every_tile_size(tmp_path: Path) -> None:
    """A scene of 144 x 272 pixels, 2 x 3 shards, as 6 tiles, 2 tiles, and 1 tile larger than the scene; edges cut tiles."""

    def mibf(*arguments: str) -> None:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output

    folder = tmp_path / "toy"
    mibf("synth", str(folder), "--size", "144x272", "--bands", "3+1", "--nodata", "0.1", "--labelled", "0.1")
    own = (
        "prepare.shard=128",
        "model.patch=5",
        "train.recipe=standard",
        "train.epochs=1",
        "train.workers=0",
        "map.workers=0",
    )
    settings = [p for s in own for p in ("--set", s)]
    for stage in ("prepare", "train"):
        mibf(stage, str(folder / "synth.yaml"), *settings)
    found = []
    for side in (128, 256, 512):
        mibf("map", str(folder / "synth.yaml"), *settings, "--set", f"map.tile_size={side}")
        found.append({path.name: path.read_bytes() for path in (folder / "work/maps/synth/main").glob("*.tif")})
    assert set(found[0]) == {"class.tif", "confidence.tif"}
    assert found[1] == found[0]
    assert found[2] == found[0]
