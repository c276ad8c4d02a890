"""The commands `mibf polygons` and `mibf change` on published maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from jobs.bench.harness.class_map import write_class_map
from jobs.cli import app
from tests.support.published_maps import CLASSES, UTM


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def two_maps(tmp_path: Path) -> tuple[str, str]:
    ids = np.ones(UTM.shape, np.uint8)
    ids[100:200, 50:150] = 2
    first = write_class_map(tmp_path / "a", UTM, CLASSES, lambda window: ids[window.slices])
    later = ids.copy()
    later[100:110, 50:150] = 5
    return first, write_class_map(tmp_path / "b", UTM, CLASSES, lambda window: later[window.slices])


def test_polygons_are_written_into_the_maps_folder_with_totals(two_maps: tuple[str, str]) -> None:
    code, text, _ = run("polygons", two_maps[1], "--json")
    assert code == 0
    (made,) = json.loads(text)["maps"]
    assert [(c["name"], c["polygons"], c["pixels"]) for c in made["classes"]] == [
        ("open water", 1, 110_000),
        ("forest | wood", 1, 9_000),
        ("!", 1, 1_000),
    ]
    assert [len(geopandas.read_file(f"{two_maps[1]}/polygons.gpkg"))] == [3]
    code, text, _ = run("polygons", two_maps[1], "--sieve", "2000", "--output", f"{two_maps[1]}/{{scene}}.parquet")
    assert code == 0
    assert "b: 2 polygons" in text
    assert "no product `confidence`" in text
    assert len(geopandas.read_parquet(f"{two_maps[1]}/b.parquet")) == 2


def test_change_is_counted_with_the_caveat_and_written_as_a_table(two_maps: tuple[str, str], tmp_path: Path) -> None:
    table, raster = tmp_path / "out" / "t.csv", tmp_path / "out" / "t.tif"
    code, text, _ = run("change", *two_maps, "--output", str(table), "--raster", str(raster))
    assert code == 0
    assert "1,000 (0.83%) have another one: 10.01 ha" in text
    assert "forest | wood -> !" in text
    assert "not estimates of change" in text
    rows = table.read_text().splitlines()
    assert rows[0] == "from,to,pixels,hectares"
    assert [row.split(",")[:3] for row in rows[2:]] == [
        ["forest | wood", "forest | wood", "9000"],
        ["forest | wood", "!", "1000"],
    ]
    assert raster.exists()
    code, text, _ = run("change", *two_maps, "--json")
    assert json.loads(text)["pixels"] == [[110_000, 0, 0], [0, 9_000, 1_000], [0, 0, 0]]


def test_sample_of_change_is_estimated_or_refused(two_maps: tuple[str, str], tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400:20, 0:300:20].reshape(2, -1)
    x, y = UTM.affine * (columns + 0.5, rows + 0.5)
    inside = (rows >= 100) & (rows < 200) & (columns >= 50) & (columns < 150)
    before = np.where(inside, "forest | wood", "open water")
    table = pd.DataFrame({"x": x, "y": y, "before": before, "after": np.where(inside, "forest | wood", "1")})
    sample = tmp_path / "points.csv"
    table.to_csv(sample, index=False)
    code, _, error = run("change", *two_maps, "--sample", str(sample), "--sampled-by", "grid")
    assert (code, "must be one of transitions, random" in error) == (2, True), error
    code, text, error = run("change", *two_maps, "--sample", str(sample), "--json")
    assert code == 0, error
    found = json.loads(text)["estimate"]
    assert (found["points"], found["changed"]["value"], found["unit"]) == (300, 0, "ha")
    assert found["changed"]["high"] > 0
    code, text, error = run("change", *two_maps, "--sample", str(sample))
    assert "estimated from 300 labelled points, with 95 % intervals" in text
    for change, message in (
        ({"x": 0.0}, "row 3: outside the maps"),
        ({"after": "sea"}, "row 3: `after` is no class of the maps"),
        ({"after": None}, "row 3: no label in `after`"),
        ({"x": table["x"][1], "y": table["y"][1]}, "row 3: another point is in the same pixel"),
    ):
        table.assign(**{name: table[name].where(table.index != 2, value) for name, value in change.items()}).to_csv(
            sample, index=False
        )
        code, _, error = run("change", *two_maps, "--sample", str(sample))
        assert (code, message in error) == (2, True), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["polygons", "{map}", "--output", "out.shp"], "must end in .gpkg or .parquet"),
        (["polygons", "{map}", "--majority", "4"], "--majority 4: must be an odd number"),
        (["polygons", "{map}", "--scene", "x"], "--scene and --set apply to a configuration"),
        (["polygons", "{map}/nothing"], "no map is published there"),
        (["change", "{map}", "{map}", "--output", "t.xlsx"], "must end in .csv"),
        (["change", "{map}", "{map}/nothing"], "no map is published there"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, two_maps: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, error = run(*(argument.format(map=two_maps[0]) for argument in arguments))
    assert (code, message in error) == (2, True), error
    assert sorted(tmp_path.rglob("*")) == before


def two_scenes(folder: Path) -> dict[str, Any]:
    source = {"url": "source.tif"}
    scenes = [{"name": name, "grid": {"like": "optical"}, "sources": {"optical": source}} for name in ("east", "west")]
    classes = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}]
    return {"name": "valley", "workspace": str(folder / "work"), "scenes": scenes, "classes": classes}


def test_maps_of_a_configuration_are_written_scene_by_scene(tmp_path: Path) -> None:
    config = tmp_path / "valley.yaml"
    config.write_text(json.dumps(two_scenes(tmp_path)))
    for name in ("east", "west"):
        ids = np.ones(UTM.shape, np.uint8)
        write_class_map(tmp_path / "work" / "maps" / name / "main", UTM, CLASSES, lambda window, ids=ids: ids[window.slices])
    code, _, error = run("polygons", str(config), "--output", str(tmp_path / "all.gpkg"))
    assert (code, "put {scene} into the file's name" in error) == (2, True), error
    code, _, error = run("polygons", str(config), "--output", str(tmp_path / "{scene}.gpkg"))
    assert code == 0, error
    assert (tmp_path / "east.gpkg").exists()
    assert (tmp_path / "west.gpkg").exists()
    code, _, error = run("change", str(config), str(config))
    assert (code, "choose one with --scene: east, west" in error) == (2, True), error
    code, text, error = run("change", str(config), str(config), "--scene", "west")
    assert (code, "0 (0.00%) have another one" in text) == (0, True), error
