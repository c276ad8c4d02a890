"""Maps of scenes with an area: tiles outside are no tasks, and the published map's footprint is the area."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask
from shapely.geometry import shape

from pipeline.grid import Tile, Window
from pipeline.maps.ledger import Ledger
from pipeline.maps.map_store import MapStore, result_digest
from tests.support.models import write_model
from tests.support.scenes import CRS, TRANSFORM, SmallScene, make_large_scene
from tests.support.verified_map import MAP, Project

#: The area in pixels (x, y) of a scene of 5 x 4 shards and tiles of 128: it touches the first two rows and columns.
OUTLINE = [(10.2, 10.3), (250.7, 15.4), (60.4, 180.9)]
#: The first shard alone.
SMALLER = [(10.2, 10.3), (100.7, 15.4), (60.4, 100.9)]
PRODUCTS = ["class", "probabilities", "gate", "sources"]


def write_area(folder: Path, outline: list[tuple[float, float]]) -> shapely.Polygon:
    """Write the area, and return it in the grid's CRS."""
    area = shapely.Polygon([TRANSFORM * point for point in outline])
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{CRS.partition(':')[2]}"}}
    feature = {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(area))}
    (folder / "area.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    return area


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A prepared scene with an area and a model; its grid has 20 tiles, of which the area touches 3."""
    scene = make_large_scene(tmp_path)
    write_area(tmp_path, OUTLINE)
    configure(scene)
    made = Project(tmp_path)
    made.run("prepare")
    write_model(tmp_path)
    return made


def configure(scene: SmallScene, **section: Any) -> None:
    chosen = {"tile_size": 128, "workers": 0, "attempts": 1, "products": PRODUCTS, "model": str(scene.folder / "model")}
    config = scene.config(map=chosen | section, prepare={"shard": 128})
    bounds = {"crs": CRS, "resolution": 10, "bounds": [400000, 5794000, 405000, 5800000]}
    config["scenes"][0] |= {"grid": bounds, "area": {"url": str(scene.folder / "area.geojson")}}
    scene.write_config(**config)


def counts(project: Project) -> dict[str, int]:
    (found,) = json.loads(project.run("status", "--json").stdout)
    return {state: count for state, count in found["tiles"].items() if count}


def figures(project: Project, command: str = "map") -> dict[str, Any]:
    (stage,) = json.loads(project.run(command, "--json").stdout)["stages"]
    return dict(stage["figures"])


def empty_digest() -> str:
    sizes = {"class": (1, 255, np.uint8), "probabilities": (3, 65535, np.uint16), "gate": (2, 65535, np.uint16)}
    layers = {name: np.full((bands, 128, 128), value, dtype) for name, (bands, value, dtype) in sizes.items()}
    return result_digest(layers | {"sources": np.zeros((1, 128, 128), np.uint8)})


def test_tiles_outside_the_area_are_no_tasks(project: Project) -> None:
    """Plan, status, map, rerun, verify and the ledger agree, and a recomputed tile outside is what was recorded."""
    planned = json.loads(project.run("plan", "--json").stdout)["scenes"]["small"]["map"]
    assert (planned["tiles"], planned["states"]) == (3, {"pending": 3})
    assert counts(project) == {"pending": 3}
    done = figures(project)
    assert (done["tiles"], done["tiles_mapped"]) == (3, 3)
    assert counts(project) == {"done": 3}
    last = Ledger.open(str(project.map / "ledger")).last()
    assert len(last) == 20
    assert {state.state for state in last.values()} == {"done"}
    assert last[Window(256, 256, 128, 128)].checksum == empty_digest()
    found = project.verify("--sample", "100")
    assert found["intact"], found
    assert (found["tiles"], found["sampled"], found["notes"]) == (20, 20, [])
    assert json.loads(project.run("rerun", "--json").stdout)["nothing_to_do"]
    inside = geometry_mask([write_area(project.folder, OUTLINE)], (600, 500), TRANSFORM, invert=True)
    with rasterio.open(project.map / "class.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1) != 255, inside)


def test_footprint_of_the_map_is_the_area(project: Project) -> None:
    """Also if the area's file is gone when the map is published."""
    area = write_area(project.folder, OUTLINE)
    (project.folder / "area.geojson").rename(project.folder / "elsewhere.geojson")
    project.run("map")
    item = project.item()
    to_grid = rasterio.warp.transform_geom("EPSG:4326", CRS, item["geometry"])
    assert shapely.hausdorff_distance(shape(to_grid).boundary, area.boundary, densify=0.1) < 10  # a pixel
    np.testing.assert_allclose(item["bbox"], shape(item["geometry"]).bounds, atol=1e-9)


def test_tiles_that_leave_the_area_are_emptied(project: Project) -> None:
    """The published map of the larger area has pixels there, and so has the map store of a run that did not end."""
    project.run("map")
    write_area(project.folder, SMALLER)
    project.run("prepare")
    left = Window(0, 128, 128, 128)
    before = Ledger.open(str(project.map / "ledger")).last()[left].checksum
    assert before != empty_digest()
    assert counts(project) == {"stale": 1}
    done = figures(project)
    assert done["tiles"] == 1
    assert Ledger.open(str(project.map / "ledger")).last()[left].checksum == empty_digest()
    found = project.verify("--sample", "100")
    assert found["intact"], found
    inside = geometry_mask([write_area(project.folder, SMALLER)], (600, 500), TRANSFORM, invert=True)
    with rasterio.open(project.map / "class.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1) != 255, inside)


def test_pixels_that_an_unfinished_run_left_outside_are_removed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of the larger area ends before it is published."""
    with monkeypatch.context() as patch:
        patch.setattr("jobs.map.stage.publish_scene", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        project.run("map", status=130)
    work = project.folder / MAP / "map.zarr"
    assert (MapStore(str(work)).group["class"][:, :128, 128:256] != 255).any()
    write_area(project.folder, SMALLER)
    project.run("prepare")
    project.run("map")
    found = project.verify("--sample", "100")
    assert found["intact"], found
    assert not any(Tile("small", Window(0, 128, 128, 128)).key in note for note in found["notes"])
