"""Scenes with an area: grids, stores and plans; what is outside the area is neither read, sampled nor mapped."""

from __future__ import annotations

import pickle
import re
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

import jobs.prepare.ground
from jobs.config.loader import load
from jobs.config.resolve import sources
from jobs.prepare.ground import scene_ground
from jobs.prepare.preflight import file_remarks
from jobs.prepare.scenes import open_scenes
from jobs.workflow.fingerprint import fingerprint
from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.areas.area import read_area
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.maps.predictor import mappable_pixels
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.labels import Labels, open_labels
from pipeline.scenes.source import AlignedSource
from pipeline.store.build import PreparedScene, shard_arrays
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke, run
from tests.support.refusals import refused
from tests.support.scenes import CRS, TRANSFORM, SmallScene, write_raster
from tests.support.stores import SHARDS

#: An irregular outline in pixels (x, y) of the scene's files, through no pixel center.
OUTLINE = [(12.3, 21.2), (98.6, 8.4), (121.1, 77.7), (66.2, 60.3), (45.7, 131.9)]


def write_area(scene: SmallScene, outline: list[tuple[float, float]] = OUTLINE, name: str = "valley.geojson") -> np.ndarray:
    """Write the area in degrees; return where (150, 130) the pixels of the scene's files are inside, by GDAL."""
    utm = shapely.segmentize(shapely.Polygon([TRANSFORM * point for point in outline]), 5.0)
    to_degrees = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True).transform
    degrees = shapely.transform(utm, lambda points: np.column_stack(to_degrees(*points.T)))
    geopandas.GeoDataFrame(geometry=[degrees], crs="EPSG:4326").to_file(scene.folder / name)
    return geometry_mask([utm], (150, 130), TRANSFORM, invert=True)


def with_area(scene: SmallScene, **changes: Any) -> dict[str, Any]:
    """The scene's configuration with its area; `changes` replace keys of the scene."""
    config = scene.config()
    config["scenes"][0] |= {"area": {"url": str(scene.folder / "valley.geojson")}} | changes
    return config


def opened(scene: SmallScene, config: dict[str, Any], *, any_size: bool = False) -> PreparedScene:
    """Open the only scene of a configuration, as `prepare` does."""
    path = scene.folder / "area.yaml"
    path.write_text(yaml.safe_dump(config))
    (found,) = open_scenes(load(str(path)), ThreadExecutor(), any_size=any_size)
    return found


def test_store_of_an_area_is_the_whole_store_within_it(scene: SmallScene) -> None:
    inside = write_area(scene)
    run(scene, SHARDS)
    whole = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    expected = {name: whole.array(name)[:] for name in ("sources/optical", "valid/optical", "valid/radar", "labels")}
    stage = run(scene, SHARDS, **with_area(scene))["stages"][0]
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    offset = ~TRANSFORM * (store.grid.affine.c, store.grid.affine.f)
    assert offset == pytest.approx((12, 8)), "the bounds of the area, on the pixels of the file"
    assert store.shape == (132 - 8, 122 - 12)
    cut = np.s_[8:132, 12:122]
    assert (rows[0], rows[-1], columns[0], columns[-1]) >= (8, 0, 12, 0)
    own = inside[cut]
    for name in ("valid/optical", "valid/radar"):
        np.testing.assert_array_equal(store.array(name)[:].astype(bool), expected[name][cut].astype(bool) & own)
    valid = store.array("valid/optical")[:].astype(bool)
    np.testing.assert_array_equal(store.array("sources/optical")[:], expected["sources/optical"][:, *cut] * valid)
    np.testing.assert_array_equal(store.array("labels")[:], np.where(own, expected["labels"][cut], UNLABELLED))
    assert not store.array("split")[:][~own].any()
    wanted, present = mappable_pixels(store, Window(0, 0, *store.shape), sources=["optical", "radar"], missing="fill")
    assert not wanted[~own].any()
    assert not present[~own].any()
    assert wanted[own].all()
    figures = stage["figures"]["stores"]["small"]
    assert figures["area_pixels"] == own.sum()
    assert figures["coverage"]["optical"] == pytest.approx(valid.sum() / own.sum())
    assert any(f"area: {own.sum():,} pixels, {own.mean():.0%} of the grid" in line for line in stage["lines"])


def test_nothing_outside_the_area_is_read(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 shards of 128 pixels, the area touches 5; of those, only the pixels around it are read."""
    inside = [(10.2, 10.3), (300.7, 15.4), (290.1, 90.8), (60.4, 200.9)]
    write_area(large, inside)
    scene = opened(
        large, with_area(large, grid={"crs": CRS, "resolution": 10, "bounds": [400000, 5794000, 405000, 5800000]})
    )
    assert scene.template.shape == (600, 500)
    read: list[Window] = []
    original = AlignedSource._read_file

    def recorded(source: AlignedSource, part: Any, window: Window) -> Any:
        read.append(window)
        return original(source, part, window)

    monkeypatch.setattr(AlignedSource, "_read_file", recorded)
    scene = PreparedScene(scene.name, scene.grid, scene.sources, scene.labels, scene.split, scene.classes, 128, scene.area)
    for window in scene.shards:
        arrays, valid = shard_arrays(scene, window)
        if window not in scene.shards_read:
            assert valid == {"optical": 0, "radar": 0}
            assert (arrays["labels"] == UNLABELLED).all()
    assert len(scene.shards_read) == 5
    assert len(read) == 10, "one window of each source"
    assert min(window.y for window in read) == 10
    assert max(window.y + window.height for window in read) == 201
    assert max(window.x + window.width for window in read) == 301


@pytest.mark.parametrize("shard", [128, 256])
def test_shards_of_an_area_are_the_same_for_any_side(large: SmallScene, shard: int) -> None:
    write_area(large, [(10.2, 10.3), (300.7, 15.4), (290.1, 90.8), (60.4, 200.9)])
    scene = opened(large, with_area(large) | {"prepare": {"shard": shard}})
    whole = shard_arrays(scene, Window(0, 0, *scene.template.shape))[0]
    scene = pickle.loads(pickle.dumps(scene))  # as a Dask worker gets it
    for window in scene.shards:
        for name, values in shard_arrays(scene, window)[0].items():
            np.testing.assert_array_equal(values, whole[name][..., *window.slices])


def test_plan_counts_the_pixels_of_the_area(large: SmallScene) -> None:
    """The area is a tenth of the grid: shards, bytes and pixels to map are its own."""
    write_area(large, [(10.2, 10.3), (300.7, 15.4), (290.1, 90.8), (60.4, 200.9)])
    bounds = {"crs": CRS, "resolution": 10, "bounds": [400000, 5794000, 405000, 5800000]}
    config = with_area(large, grid=bounds)
    area = opened(large, config).area
    assert area is not None
    planned = run(large, SHARDS, command="plan", **config)["scenes"]["small"]
    assert (planned["shards"], planned["shards_read"], planned["pixels"]) == (20, 5, area.pixels)
    assert planned["map"]["pixels_due"] == area.pixels
    done = run(large, SHARDS, **config)["stages"][0]["figures"]["stores"]["small"]
    assert planned["uncompressed_bytes"] == done["uncompressed_bytes"] < 5 * 128 * 128 * (3 * 2 + 4 + 2 + 2) + 1
    assert planned["stored_bytes"] == pytest.approx(done["bytes"], rel=0.2)


def test_edited_area_makes_the_store_stale(scene: SmallScene) -> None:
    write_area(scene)
    config = with_area(scene)
    path = scene.folder / "area.yaml"
    path.write_text(yaml.safe_dump(config))
    before = fingerprint(load(str(path)), "prepare")
    assert fingerprint(load(str(path)), "prepare") == before
    write_area(scene, OUTLINE[:-1])
    assert fingerprint(load(str(path)), "prepare") != before
    boxed = fingerprint(load(str(scene.write_config()), overrides=["scenes.0.bbox=[13.5, 52.3, 13.6, 52.4]"]), "prepare")
    assert boxed != fingerprint(load(str(scene.write_config())), "prepare")


def test_scene_without_an_area_has_the_configuration_that_it_had(scene: SmallScene) -> None:
    """Fingerprints contain the keys that differ from their defaults."""
    (stored,) = load(str(scene.write_config())).model_dump(mode="json", exclude_defaults=True)["scenes"]
    assert not {"area", "bbox"} & set(stored)


def test_automatic_grid_is_on_the_pixels_of_the_first_source(scene: SmallScene) -> None:
    """The area's zone is that of the files, whose corner is a multiple of the resolution; then one that is none."""
    inside = write_area(scene)
    auto = with_area(scene, grid={"crs": "auto", "resolution": 10})
    assert opened(scene, auto).grid == opened(scene, with_area(scene)).grid
    moved = TRANSFORM * Affine.translation(0.3, 0.4)
    write_raster(scene.folder / "optical.tif", scene.optical, transform=moved, nodata=0)
    found = opened(scene, auto)
    place = ~moved * (found.grid.affine.c, found.grid.affine.f)
    assert place == pytest.approx((round(place[0]), round(place[1])), abs=1e-6)
    assert found.sources[0].layers[0][0].alignment.kind == "exact"
    assert abs(found.pixels - inside.sum()) < 100
    coarse = opened(scene, with_area(scene, grid={"crs": "auto", "resolution": 20}))
    assert (coarse.grid.affine.c % 20, coarse.grid.affine.f % 20) == (0, 0)


def test_finer_source_is_masked_by_reference_pixels(scene: SmallScene) -> None:
    inside = write_area(scene)
    fine = np.arange(300 * 260, dtype=np.uint16).reshape(1, 300, 260) % 900 + 1
    write_raster(scene.folder / "radar.tif", fine, transform=TRANSFORM * Affine.scale(0.5))
    config = with_area(scene)
    config["scenes"][0]["sources"]["radar"]["scale"] = 2
    found = opened(scene, config)
    values, valid = found.sources[1].read(Window(0, 0, *found.template.shape))
    doubled = inside[8:132, 12:122].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(valid, doubled)
    np.testing.assert_array_equal(values[0], fine[0, 16:264, 24:244] * doubled)


def test_tiles_outside_the_area_are_left_out(scene: SmallScene) -> None:
    """Without an area, a tile that does not overlap the grid is refused."""
    write_area(scene)
    far = write_raster(scene.folder / "far.tif", scene.optical, transform=TRANSFORM * Affine.translation(130, 0))
    config = with_area(scene)
    optical = config["scenes"][0]["sources"]["optical"]
    config["scenes"][0]["sources"]["optical"] = {"tiles": [optical["url"], str(far)]}
    found = opened(scene, config)
    assert [part.file.url for part in found.sources[0].parts] == [optical["url"]]
    assert found.template.shape == (124, 110)


def test_vector_labels_outside_the_area_do_not_count(scene: SmallScene) -> None:
    """Not even their names: the file may be one of the whole country."""
    inside = write_area(scene)
    parts = [(shapely.box(0, 0, 130, 150), "water"), (shapely.box(0, 140, 9, 150), "glacier")]
    placed = [shapely.transform(part, lambda points: np.column_stack(TRANSFORM * tuple(points.T))) for part, _ in parts]
    url = str(scene.folder / "labels.gpkg")
    geopandas.GeoDataFrame({"kind": [kind for _, kind in parts]}, geometry=placed, crs=CRS).to_file(url)
    ground = opened(scene, with_area(scene))
    grid = GeoBox((150, 130), TRANSFORM, CRS)
    mask = read_area(str(scene.folder / "valley.geojson")).mask(grid)
    water = (ClassName(1, "water", "#000000"),)
    with pytest.raises(InputError, match=r"no class declares: glacier"):
        open_labels(Labels(url, "kind"), grid, water)
    found = open_labels(Labels(url, "kind"), grid, water, area=mask).read(Window(0, 0, 150, 130))
    np.testing.assert_array_equal(found == 1, inside)
    assert ground.pixels == inside.sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [20, 50, 21, 51], "area": None}, r"source 'optical' does not overlap the area \[20, 50, 21, 51\]: "
         r".*optical.tif spans longitude 13.53\d+ to 13.55\d+, latitude 52.3\d+ to 52.3\d+ degrees, the area longitude "
         r"20 to 21, latitude 50 to 51 degrees"),
        ({"area": {"url": "absent.gpkg"}}, "absent.gpkg: no such file"),
        ({"grid": {"crs": "EPSG:0", "resolution": 10}}, "grid.crs 'EPSG:0' is not a known CRS"),
    ],
)  # fmt: skip  # a message per line
def test_unusable_areas_exit_2(scene: SmallScene, change: dict[str, Any], message: str) -> None:
    write_area(scene)
    config = with_area(scene, **change)
    config["scenes"] = [{key: value for key, value in config["scenes"][0].items() if value is not None}]
    assert re.search(message, refused(scene, **config))


def test_very_large_area_is_refused_with_its_size(scene: SmallScene) -> None:
    """Against the polygon's own area in the zone, and the geodesic one of its outline."""
    bbox = (10.0, 50.0, 20.0, 55.0)
    config = with_area(scene, grid={"crs": "auto", "resolution": 10}, bbox=bbox)
    del config["scenes"][0]["area"]
    outline = shapely.segmentize(shapely.box(*bbox), 0.01)
    to_zone = pyproj.Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform
    pixels = shapely.transform(outline, lambda points: np.column_stack(to_zone(*points.T))).area / 100
    on_the_ground = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(outline)[0]) / 1e6
    for command in ("prepare", "plan", "run"):
        message = refused(scene, command=command, **config)
        found = re.search(
            r"scene 'small': its area has about ([\d,]+) pixels of the reference grid \(([\d,]+) km2\), more than "
            r"2,000,000,000; its store would have ([\d,]+) GB before compression. .* add `--yes`",
            message,
        )
        assert found is not None, message
        given = [int(text.replace(",", "")) for text in found.groups()]
        assert given[0] == pytest.approx(pixels, rel=1e-4)
        assert given[1] == pytest.approx(on_the_ground, rel=1e-4)
        # uint16 and float32 bands, a byte of validity each, labels and split.
        assert given[2] == pytest.approx(pixels * (3 * 2 + 1 + 4 + 1 + 2) / 1e9, abs=1)


def test_yes_accepts_a_very_large_area(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    write_area(scene)
    monkeypatch.setattr(jobs.prepare.ground, "LARGEST_AREA", 1000)
    config = with_area(scene)
    assert "more than 1,000" in refused(scene, command="plan", **config)
    path = str(scene.write_config(**config))
    assert "pixels in the area" not in invoke("plan", path, status=2).output
    assert f"of which {opened(scene, config, any_size=True).pixels:,} in the area" in invoke("plan", path, "--yes").stdout
    invoke("prepare", path, "--yes")


def test_source_without_a_crs_is_refused(scene: SmallScene) -> None:
    write_area(scene)
    write_raster(scene.folder / "optical.tif", scene.optical, crs=None)
    with pytest.raises(InputError, match=r"optical.tif: has no CRS, so the area .*valley.geojson cannot be located in it"):
        opened(scene, with_area(scene))


def test_area_between_pixel_centers_is_refused(scene: SmallScene) -> None:
    write_area(scene, [(50.6, 50.6), (58.4, 50.6), (58.4, 50.9), (50.6, 50.9)])
    config = with_area(scene, grid={"crs": CRS, "resolution": 10, "bounds": [400000, 5798500, 401300, 5800000]})
    with pytest.raises(InputError, match=r"no pixel of the reference grid has its center in the area .*valley.geojson"):
        opened(scene, config)


def test_notes_on_an_area_are_shown_once(scene: SmallScene) -> None:
    write_area(scene, [(-60.3, 20.2), (60.4, 20.2), (60.4, 90.1), (-60.3, 90.1)])
    notes = [note for note in file_remarks(opened(scene, with_area(scene))) if "valley.geojson" in note]
    assert len(notes) == 1
    assert notes[0].endswith("valley.geojson: 50.0% of it is outside the reference grid")


def test_wide_area_is_noted_for_the_automatic_zone_only(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["scenes.0.bbox=[5, 40, 25, 60]"])
    declared = sources(config.scenes[0])
    assert not any("UTM" in note for note in scene_ground(config.scenes[0], declared, smallest=5).notes)
    auto = load(
        str(scene.write_config()),
        overrides=["scenes.0.bbox=[5, 40, 25, 60]", "scenes.0.grid={crs: auto, resolution: 5000}"],
    )
    notes = scene_ground(auto.scenes[0], declared, smallest=5).notes
    assert any("is 20.0 degrees of longitude wide, but a UTM zone has 6" in note for note in notes)
