"""`mibf plan` of maps: tiles and bytes that match the finished map; states and time estimate once a map exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rasterio
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.loader import load
from jobs.inspection.plan_map import Members
from jobs.workflow.workspace import Workspace
from tests.support.models import write_model
from tests.support.scenes import COLUMNS, ROWS, SmallScene


def run(config: Path, command: str, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [command, str(config), "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("train", "model", "line"),
    [
        ({"recipe": "standard"}, {}, None),
        ({"recipe": "standard", "seeds": [0, 1, 2]}, {}, None),
        ({"recipe": "standard"}, {"kind": "boosting"}, None),
        (
            {"recipe": "standard", "seeds": [0, 1, 2], "ensemble": True},
            {},
            "the model has 3 networks: mapping takes 3 times the time of one network",
        ),
        (
            {"recipe": "standard", "blend": True},
            {},
            "the model has 1 network, boosted trees and logistic regression: mapping takes the time of one network, and "
            "that of boosted trees and logistic regression",
        ),
        (
            {"recipe": "auto"},
            {},
            "the model has 2 networks, boosted trees and logistic regression at most, as the recipe `auto` chooses: "
            "mapping takes 2 times the time of one network, and that of boosted trees and logistic regression",
        ),
    ],
)
def test_plan_says_what_several_members_cost(
    train: dict[str, Any], model: dict[str, Any], line: str | None, scene: SmallScene
) -> None:
    config = load(str(scene.write_config(train=train, model={"patch": 5} | model)))
    found = Members.of(config, Workspace.of(config)).lines()
    assert found == ([] if line is None else [f"    {line}"])


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


def test_plan_counts_the_tiles_that_a_worker_with_a_gpu_reads_ahead(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.inspection.plan_map.cpu_count", lambda: 16)
    config = scene.write_config(
        map={"tile_size": 64, "workers": 2, "products": ["class"], "model": str(scene.folder / "model")},
        resources={"gpus": True},
    )
    found = run(config, "plan")["scenes"]["small"]["map"]["worker_bytes"]
    # Of 3 and 1 bands of 68 x 68 pixels, 4 bytes each, in powers of two: 4 readers, 2 waiting, 1 computed. 2 writers.
    assert found == ((1 << 16) + (1 << 15)) * (4 + 2 + 1) + 64**2 * (1 + 2)
