"""Recipes of `mibf init`: the configuration loads, and reads items of the form that the catalogues publish.

Rasters are constant, so that expected values are computed from what each format documents, by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject
from scipy.ndimage import distance_transform_edt
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.loader import load
from jobs.config.resolve import sources
from jobs.init.recipes import APIS, NOT_SEARCHED, RECIPES
from jobs.prepare.ground import scene_ground
from jobs.search.frozen import freeze
from jobs.workflow.found_items import found_items
from pipeline.grid import Window
from pipeline.scenes.source import AlignedSource, open_source
from pipeline.stac.geoparquet import write_table
from tests.support.http_server import served
from tests.support.scenes import write_raster
from tests.support.stac_api import stac_api

CRS = "EPSG:32612"
#: A square around the area in UTM, and the area in degrees.
LEFT, TOP, SIDE = 499_800.0, 4_000_800.0, 1200.0
AREA = shapely.box(-111.0, 36.1455, -110.9945, 36.1495)
FOOTPRINT = shapely.box(-111.05, 36.1, -110.95, 36.2)
#: An image without clouds to its mask that the catalogue calls 95 % cloudy.
CLOUDY = "2024-06-26T18:00:00Z"
DAYS = ("2024-06-01T18:00:00Z", "2024-06-11T18:00:00Z", "2024-06-21T18:00:00Z")
S2_CODES = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
S2_NAMES = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
SIX = ("blue", "green", "red", "nir08", "swir16", "swir22")
Values = dict[str, tuple[np.ndarray, np.ndarray]]


class Catalogue:
    """Items and their files, which are served at an address: an API must not name files of this machine."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address, self.items = folder, address, list[dict[str, Any]]()

    def raster(self, value: float, dtype: str, *, pixel: float = 10, **options: Any) -> str:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.tif"
        side = int(SIDE / pixel)
        place = {"transform": Affine(pixel, 0, LEFT, 0, -pixel, TOP), "crs": CRS} | options
        bands = place.pop("bands", 1)
        write_raster(path, np.full((bands, side, side), value, dtype), **place)
        return f"{self.address}/{path.name}"

    def add(self, collection: str | None, day: str, assets: dict[str, Any], **properties: Any) -> None:
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": f"item{len(self.items)}", "bbox": list(FOOTPRINT.bounds),
            "geometry": shapely.geometry.mapping(FOOTPRINT), "links": [], "assets": assets,
            "properties": {"datetime": day, "proj:epsg": 32612, **properties},
        }  # fmt: skip  # values in rows that belong together
        self.items.append(item | ({} if collection is None else {"collection": collection}))

    def save(self) -> str:
        """Save the items as an index in a file."""
        path = str(self.folder / "items.parquet")
        write_table(path, self.items)
        return path


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    folder = tmp_path_factory.mktemp("served")
    with served(folder) as address:
        yield folder, address


@pytest.fixture
def catalogue(served_folder: tuple[Path, str], request: pytest.FixtureRequest) -> Catalogue:
    folder, address = served_folder
    name = re.sub(r"\W+", "-", request.node.name)
    (folder / name).mkdir()
    return Catalogue(folder / name, f"{address}/{name}")


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "valley.geojson"
    geopandas.GeoDataFrame(geometry=[AREA], crs="EPSG:4326").to_file(path)
    return path


def init(area: Path, recipe: str, *options: str, dates: str = "2024-06-01/2024-06-30") -> Any:
    arguments = ["--area", str(area), "--dates", dates, "--recipe", recipe, "--output", str(area.parent / "mibf.yaml")]
    return CliRunner().invoke(app, ["init", *arguments, *options])


def opened(
    area: Path, catalogue: Catalogue, recipe: str, api: str | None, **dates: str
) -> tuple[dict[str, AlignedSource], np.ndarray]:
    """Write the configuration, search in the items instead of the API, and open all sources; also say where the area is."""
    done = init(area, recipe, *([] if api is None else ["--api", api]), **dates)
    assert done.exit_code == 0, done.output
    path = str(area.parent / "mibf.yaml")
    with stac_api(catalogue.items, page=9) as server:
        url = catalogue.save() if recipe == "alphaearth" else server.url
        changes = [f"scenes.0.sources.{name}.stac.search.url={url}" for name in load(path).scenes[0].sources]
        config = load(path, overrides=[*changes, f"workspace={area.parent / 'work'}"])
        freeze(config, refresh=False)
    scene = found_items(config).scenes[0]
    declared = sources(scene)
    ground = scene_ground(scene, declared, smallest=3)
    assert ground.area is not None
    assert str(ground.grid.crs) == CRS
    found = {name: open_source(source, ground.grid, area=ground.area) for name, source in declared.items()}
    return found, ground.area.inside(Window(0, 0, *ground.grid.shape))


def read(area: Path, catalogue: Catalogue, recipe: str, api: str | None, **dates: str) -> Values:
    """Read all pixels of every source of a recipe, which are the same everywhere in the area; and the bands' names."""
    found: Values = {}
    aligned, inside = opened(area, catalogue, recipe, api, **dates)
    for name, source in aligned.items():
        values, valid = source.read(Window(0, 0, *inside.shape))
        assert np.array_equal(valid, inside), f"{name} is valid everywhere in the area"
        found[name] = values[:, inside][:, 0], np.array(source.declared.kept)
        assert np.allclose(values[:, inside], found[name][0][:, None])
    return found


def in_june(names: Sequence[str]) -> list[str]:
    return [f"{name}@2024-06" for name in names]


def s2_values(day: int) -> np.ndarray:
    return 2000 + 100 * np.arange(10) + 50 * day


#: Digital numbers 0.0001 * n - 0.1 from processing baseline 04.00 on; the second day is cloudy.
S2_EXPECTED = 0.0001 * np.median([s2_values(0), s2_values(2)], axis=0) - 0.1


def cover(when: str) -> dict[str, float]:
    return {"eo:cloud_cover": 95.0 if when == CLOUDY else 20.0}


def add_s2(catalogue: Catalogue, api: str, days: Sequence[str] = DAYS) -> None:
    for day, when in enumerate([*days, CLOUDY]):
        assets: dict[str, Any] = {}
        for code, name, value in zip(S2_CODES, S2_NAMES, s2_values(day), strict=True):
            pixel = 10 if code in ("B02", "B03", "B04", "B08") else 20
            common: dict[str, Any] = {"gsd": pixel, "eo:bands": [{"name": code, "common_name": name}]}
            common["href"] = catalogue.raster(9999 if day == 1 else value, "uint16", pixel=pixel, nodata=0)
            if api == "earth-search":
                stated = {"nodata": 0, "data_type": "uint16", "spatial_resolution": pixel, "scale": 0.0001, "offset": -0.1}
                assets[name] = common | {"roles": ["data", "reflectance"], "raster:bands": [stated]}
            else:
                assets[code] = common | {"roles": ["data"]}
        scl = catalogue.raster(9 if day == 1 else 4, "uint8", pixel=20, nodata=0)
        assets["scl" if api == "earth-search" else "SCL"] = {"href": scl, "roles": ["data"], "gsd": 20}
        collection = "sentinel-2-c1-l2a" if api == "earth-search" else "sentinel-2-l2a"
        catalogue.add(collection, when, assets, **{"s2:processing_baseline": "05.10"}, **cover(when))


def add_dem(catalogue: Catalogue) -> None:
    """Degrees, and a date long before those that are searched."""
    place = {"transform": Affine(1 / 3600, 0, -111.05, 0, -1 / 3600, 36.2), "crs": "EPSG:4326"}
    write_raster(catalogue.folder / "dem.tif", np.full((1, 360, 360), 1234.5, np.float32), **place)
    asset = {"href": f"{catalogue.address}/dem.tif", "roles": ["data"]}
    catalogue.add("cop-dem-glo-30", "2021-04-22T00:00:00Z", {"data": asset})


def test_sentinel_2_and_1_and_dem_of_the_planetary_computer(area: Path, catalogue: Catalogue) -> None:
    add_s2(catalogue, "planetary-computer")
    add_dem(catalogue)
    for when, power in zip(DAYS, (0.01, 0.001, 0.1), strict=True):
        stated = {"nodata": -32768, "data_type": "float32", "spatial_resolution": 10.0}
        assets = {
            name: {
                "href": catalogue.raster(power * factor, "float32", nodata=-32768),
                "roles": ["data"], "raster:bands": [stated],
            }
            for name, factor in (("vh", 0.1), ("vv", 1.0))
        }  # fmt: skip  # values in rows that belong together
        catalogue.add("sentinel-1-rtc", when, assets, start_datetime=when, end_datetime=when)
    found = read(area, catalogue, "s2-s1-dem", "planetary-computer")
    assert list(found) == ["s2", "s1", "dem"]
    assert found["s2"][1].tolist() == in_june(S2_NAMES)
    assert found["s2"][0] == pytest.approx(S2_EXPECTED, abs=1e-6)
    assert found["s1"][1].tolist() == in_june(["vv", "vh"])
    assert found["s1"][0] == pytest.approx([-20, -30], abs=1e-4)
    assert found["dem"][1].tolist() == ["height", "slope"]
    assert found["dem"][0] == pytest.approx([1234.5, 0])


def test_sentinel_2_and_dem_of_earth_search_without_sentinel_1(area: Path, catalogue: Catalogue) -> None:
    add_s2(catalogue, "earth-search")
    add_dem(catalogue)
    found = read(area, catalogue, "s2-s1-dem", "earth-search")
    assert list(found) == ["s2", "dem"]
    assert found["s2"][1].tolist() == in_june(S2_NAMES)
    assert found["s2"][0] == pytest.approx(S2_EXPECTED, abs=1e-6)
    (area.parent / "mibf.yaml").unlink()
    assert (
        "Earth Search has no Sentinel-1 that is corrected for terrain"
        in init(area, "s2-s1-dem", "--api", "earth-search").stdout
    )


def test_20_m_bands_of_sentinel_2_are_interpolated_but_not_its_classes(area: Path, catalogue: Catalogue) -> None:
    add_s2(catalogue, "earth-search", DAYS[:1])
    add_dem(catalogue)
    drawn, place = np.random.default_rng(0), Affine(20, 0, LEFT, 0, -20, TOP)
    assets = catalogue.items[0]["assets"]
    bands = {"swir16": drawn.integers(1000, 9000, (60, 60)).astype(np.uint16), "scl": np.full((60, 60), 4, np.uint8)}
    x, y = pyproj.Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform(*AREA.centroid.coords[0])
    bands["scl"][int((TOP - y) // 20), int((x - LEFT) // 20)] = 9
    bands["red"] = drawn.integers(1000, 9000, (120, 120)).astype(np.uint16)
    for name, own in bands.items():
        at = place * Affine.scale(60 / len(own))
        write_raster(catalogue.folder / Path(assets[name]["href"]).name, own[None], transform=at, crs=CRS, nodata=0)
    found, inside = opened(area, catalogue, "s2-s1-dem", "earth-search")
    values, valid = found["s2"].read(Window(0, 0, *inside.shape))
    grid = found["s2"].grid
    wanted = {}
    for name, method in (("swir16", Resampling.bilinear), ("red", Resampling.nearest), ("scl", Resampling.nearest)):
        wanted[name] = np.zeros(grid.shape, np.float32)
        with rasterio.open(assets[name]["href"]) as dataset:
            band = rasterio.band(dataset, 1)
            reproject(band, wanted[name], dst_transform=grid.affine, dst_crs=CRS, resampling=method)
    cloudy = wanted["scl"] == 9
    assert (cloudy & inside).sum() == 4, "one pixel of 20 m"
    assert (valid == inside & (distance_transform_edt(~cloudy) > 3)).all()
    for name in ("swir16", "red"):
        own = values[S2_NAMES.index(name)]
        assert own[valid] == pytest.approx(0.0001 * wanted[name][valid] - 0.1, abs=1e-5)


@pytest.mark.parametrize("api", ["planetary-computer", "earth-search"])
def test_slope_of_the_dem_is_that_of_its_plane(api: str, area: Path, catalogue: Catalogue) -> None:
    add_s2(catalogue, api, DAYS[:1])
    catalogue.items += [each | {"collection": "sentinel-1-rtc"} for each in catalogue.items if api == "planetary-computer"]
    for item in catalogue.items:
        if item["collection"] == "sentinel-1-rtc":
            item["assets"] = dict.fromkeys(("vv", "vh"), item["assets"]["B02"])
    add_dem(catalogue)
    rows, columns = np.mgrid[:360, :360]
    place = {"transform": Affine(1 / 3600, 0, -111.05, 0, -1 / 3600, 36.2), "crs": "EPSG:4326"}
    write_raster(catalogue.folder / "dem.tif", (3.0 * columns + 4.0 * rows).astype(np.float32)[None], **place)
    found, inside = opened(area, catalogue, "s2-s1-dem", api)
    values, valid = found["dem"].read(Window(0, 0, *inside.shape))
    assert (valid == inside).all()
    # Radii of curvature of WGS 84.
    latitude, step = np.radians(AREA.centroid.y), np.radians(1 / 3600)
    lost = 1 - 0.00669437999014 * np.sin(latitude) ** 2
    east = 3 / (step * np.cos(latitude) * 6378137 / np.sqrt(lost))
    south = 4 / (step * 6378137 * (1 - 0.00669437999014) / lost**1.5)
    assert values[1][valid] == pytest.approx(np.degrees(np.arctan(np.hypot(east, south))), abs=0.02)


def test_months_become_bands_and_a_cloudy_one_is_interpolated(area: Path, catalogue: Catalogue) -> None:
    add_s2(catalogue, "earth-search", ["2024-05-16T18:00:00Z", "2024-06-16T18:00:00Z", "2024-07-16T18:00:00Z"])
    add_dem(catalogue)
    values, names = read(area, catalogue, "s2-s1-dem", "earth-search", dates="2024-05-01/2024-07-31")["s2"]
    assert names.tolist() == [f"{name}@2024-{month}" for month in ("05", "06", "07") for name in S2_NAMES]
    may, june, july = values.reshape(3, 10)
    assert may == pytest.approx(0.0001 * s2_values(0) - 0.1, abs=1e-6)
    assert july == pytest.approx(0.0001 * s2_values(2) - 0.1, abs=1e-6)
    assert june == pytest.approx(may + (july - may) * 30.5 / 61, abs=1e-6)  # between the middles of the months


def test_seasons_become_bands_of_more_than_a_year(area: Path) -> None:
    assert init(area, "landsat", dates="2022-03-01/2024-11-30").exit_code == 0
    text = (area.parent / "mibf.yaml").read_text()
    assert "periods: season" in text
    assert "of each season" in text


def test_hls_of_both_satellites(area: Path, catalogue: Catalogue) -> None:
    bands = {
        "hls2-s30": ("B02", "B03", "B04", "B8A", "B11", "B12"),
        "hls2-l30": ("B02", "B03", "B04", "B05", "B06", "B07"),
    }
    for collection, codes in bands.items():
        start = 1000 if collection == "hls2-s30" else 2000
        for day, when in enumerate([*DAYS, CLOUDY]):
            assets = {
                code: {
                    "href": catalogue.raster(
                        -500 if day == 1 else start + 100 * i + 10 * day, "int16", pixel=30, nodata=-9999
                    )
                }
                for i, code in enumerate(codes)
            }
            # Cloud and high aerosol; clear, water and moderate aerosol.
            fmask = catalogue.raster(0b1100_0010 if day == 1 else 0b1010_0000, "uint8", pixel=30, nodata=255)
            catalogue.add(collection, when, assets | {"Fmask": {"href": fmask}}, **cover(when))
    found = read(area, catalogue, "hls", None)
    assert list(found) == ["hls_s30", "hls_l30"]
    for name, start in (("hls_s30", 1000), ("hls_l30", 2000)):
        assert found[name][1].tolist() == in_june(SIX)
        assert found[name][0] == pytest.approx(0.0001 * (start + 100 * np.arange(6) + 10), abs=1e-6)


@pytest.mark.parametrize("api", ["planetary-computer", "earth-search"])
def test_landsat(api: str, area: Path, catalogue: Catalogue) -> None:
    for day, when in enumerate([*DAYS, CLOUDY]):
        assets: dict[str, Any] = {}
        for i, name in enumerate(SIX):
            href = catalogue.raster(60_000 if day == 1 else 8000 + 500 * i + 100 * day, "uint16", pixel=30, nodata=0)
            stated = {"scale": 2.75e-05, "nodata": 0, "offset": -0.2, "data_type": "uint16", "spatial_resolution": 30}
            assets[name] = {"href": href, "eo:bands": [{"name": f"OLI_B{i}", "common_name": name}], "raster:bands": [stated]}
        # USGS: 22280 is high confidence of cloud, 21824 clear.
        qa = catalogue.raster(22280 if day == 1 else 21824, "uint16", pixel=30, nodata=1)
        assets["qa_pixel"] = {"href": qa, "raster:bands": [{"nodata": 1, "data_type": "uint16", "unit": "bit index"}]}
        if api == "earth-search":
            for asset in assets.values():
                asset["alternate"] = {"s3": {"storage:platform": "AWS", "href": asset["href"]}}
                asset["href"] = "https://landsatlook.usgs.gov/none.TIF"
        catalogue.add("landsat-c2-l2", when, assets, **cover(when))
    found = read(area, catalogue, "landsat", api)
    assert found["landsat"][1].tolist() == in_june(SIX)
    assert found["landsat"][0] == pytest.approx(2.75e-05 * (8100 + 500 * np.arange(6)) - 0.2, abs=1e-6)


def test_alphaearth_of_its_own_index(area: Path, catalogue: Catalogue) -> None:
    """64 signed bytes, from south to north, one item a year without a collection; the dates are those of the year."""
    south_up = Affine(10, 0, LEFT, 0, 10, TOP - SIDE)
    for year, value in ((2023, 10), (2024, -64)):
        href = catalogue.raster(value, "int8", bands=64, nodata=-128, transform=south_up)
        asset = {"href": href, "type": "image/tiff; application=geotiff; profile=cloud-optimized"}
        catalogue.add(None, f"{year}-01-01T00:00:00Z", {"data": asset})
    found = read(area, catalogue, "alphaearth", None)
    assert found["alphaearth"][1].tolist() == [f"A{i:02d}" for i in range(64)]
    assert found["alphaearth"][0] == pytest.approx(np.full(64, -((64 / 127.5) ** 2)), abs=1e-6)


def test_every_recipe_names_apis_and_valid_sources(area: Path) -> None:
    for recipe, by_api in RECIPES.items():
        for api in by_api:
            done = init(area, recipe, *([] if api is None else ["--api", api]))
            assert done.exit_code == 0, done.output
            assert "next: check it, then mibf plan" in done.stdout
            path = area.parent / "mibf.yaml"
            scene = load(str(path)).scenes[0]
            assert scene.name == "valley"
            assert scene.area is not None
            assert scene.area.url == str(area)
            for source in scene.sources.values():
                assert source.stac is not None
                assert source.stac.search is not None
                assert api is None or source.stac.search.url == APIS[api][0]
            path.unlink()


def test_labels_give_classes_and_split(area: Path) -> None:
    west, south, east, north = AREA.bounds
    middle = (west + east) / 2
    halves = [shapely.box(west, south, middle, north), shapely.box(middle, south, east, north)]
    path = area.parent / "labels.geojson"
    geopandas.GeoDataFrame({"kind": ["wood", "field"]}, geometry=halves, crs="EPSG:4326").to_file(path)
    done = init(area, "s2-s1-dem", "--labels", str(path), "--attribute", "kind")
    assert done.exit_code == 0, done.output
    config = load(str(area.parent / "mibf.yaml"))
    assert sorted(c.name for c in config.classes) == ["field", "wood"]
    assert config.trainable
    assert "labelled pixels of 2 classes" in done.stdout


# --- bad input ---


@pytest.mark.parametrize(
    ("recipe", "options", "dates", "expected"),
    [
        ("hls", ["--api", "earth-search"], None, "Earth Search does not have it; use --api planetary-computer"),
        ("alphaearth", ["--api", "earth-search"], None, "leave --api out, and its own index is searched"),
        (
            "tessera",
            [],
            None,
            "its embeddings are in no STAC catalogue. Export those of the area as GeoTIFFs with geotessera",
        ),
        ("s3", [], None, "--recipe s3: is unknown; the recipes are s2-s1-dem, hls, landsat, alphaearth, tessera"),
        ("landsat", ["--api", "usgs"], None, "--api usgs: is unknown; choose one of earth-search, planetary-computer"),
        ("landsat", [], "2024-06-30/2024-06-01", "the end is before the start; write the earlier date first"),
        ("alphaearth", [], "2023-06-30/2024-06-01", "alphaearth has one image a year; give dates of one year"),
        ("landsat", ["--attribute", "kind"], None, "give that with --labels"),
        ("landsat", ["--name", "a b"], None, "--name a b: use letters"),
        ("landsat", ["scene.tif"], None, "give either the rasters of a scene, or --area, --dates and --recipe"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    recipe: str, options: list[str], dates: str | None, expected: str, area: Path
) -> None:
    done = init(area, recipe, *options, dates=dates or "2024-06-01/2024-06-30")
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert not (area.parent / "mibf.yaml").exists()
    assert set(NOT_SEARCHED) == {"tessera"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either the rasters of a scene, or --area, --dates and --recipe"),
        (["--recipe", "hls", "--dates", "2024-06-01"], "--recipe hls: also needs --area FILE and --dates START/END"),
        (["--area", "valley.geojson", "--dates", "2024-06-01"], "give either the rasters of a scene, or --area"),
        (["--area", "none.geojson", "--dates", "2024-06-01", "--recipe", "hls"], "none.geojson: no such file"),
        (["--area", "none.geojson", "--dates", "2024-06-01", "--recipe", "hls"], "mibf: --area: "),
        (["--area", "https://h/a.gpkg?sig=SECRET", "--dates", "2024-06-01", "--recipe", "hls"], "has a query or a password"),
    ],
)
def test_missing_arguments_are_named(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", *arguments])
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert "SECRET" not in done.stderr
    assert list(tmp_path.iterdir()) == []
