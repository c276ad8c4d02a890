"""`mibf plan` of maps: tiles and bytes that match the finished map; states and time estimate once a map exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rasterio
from typer.testing import CliRunner

from jobs.cli.common import app
from tests.support.models import write_model
from tests.support.scenes import COLUMNS, ROWS, SmallScene


def run(config: Path, command: str, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [command, str(config), "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_map_plan_before_and_after_mapping(scene: SmallScene) -> None:
    section = {"tile_size": 64, "workers": 0, "products": ["class", "probabilities", "sources"]}
    config = scene.write_config(map=section | {"model": str(scene.folder / "model")})

    def planned(*arguments: str) -> dict[str, Any]:
        return dict(run(config, "plan", *arguments)["scenes"]["small"]["map"])

    first = planned()
    assert (first["tiles"], first["states"], first["seconds"]) == (9, None, None)
    assert first["pixels_due"] == ROWS * COLUMNS
    # 4 bands of 64 + 2 * 2 halo pixels, 4 bytes each, one tile prefetched; 8 bytes of products per pixel, two tiles
    assert first["worker_bytes"] == 4 * 68**2 * 4 * 2 + 8 * 64**2 * 2
    run(config, "prepare")
    write_model(scene.folder)
    assert planned()["states"] == {"pending": 9}
    run(config, "map")
    for name, size in first["product_bytes"].items():
        with rasterio.open(scene.folder / f"work/maps/small/main/{name}.tif") as dataset:
            assert size == dataset.read().nbytes
    after = planned()
    assert (after["states"], after["pixels_due"]) == ({"done": 9}, 0)
    changed = planned("--set", "map.precision=bf16")
    assert changed["states"] == {"stale": 9}
    assert changed["seconds"] > 0
    text = CliRunner().invoke(app, ["plan", str(config), "--set", "map.precision=bf16"]).stdout
    assert "  map: 9 tiles: 9 stale" in text
    assert "for the tiles to map, at the throughput of the last map" in text
