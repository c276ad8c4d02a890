"""Malicious rasters and labels that reference other files or servers, or contain code: refused by name, never run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import gdal
from pipeline.maps.products import product
from pipeline.publishing.published_map import PublishedMap
from pipeline.rasters import untrusted
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.scenes.labels import Labels, open_labels
from tests.support.http_server import served
from tests.support.refusals import refused
from tests.support.scenes import CRS, TRANSFORM, SmallScene, write_polygons, write_raster

SECRET = b"a line of a private file that must never appear in any map......"
VALUES = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A local file that no untrusted raster may expose."""
    path = tmp_path / "private" / "passwd"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def shared_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def raw_vrt(source: Any, *, relative: int = 0) -> str:
    """Return a VRT that reads the bytes of a file as pixels."""
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><GeoTransform>0, 1, 0, 8, 0, -1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand></VRTDataset>"
    )


def simple_vrt(source: str, *, relative: int = 0) -> str:
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def python_vrt(touched: Path) -> str:
    """Return a VRT whose pixels are computed by Python code in it."""
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionType>f</PixelFunctionType><PixelFunctionCode>"
        f"<![CDATA[\nimport os\ndef f(*a, **k):\n    os.system('touch {touched}')\n]]>"
        "</PixelFunctionCode></VRTRasterBand></VRTDataset>"
    )


WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:1/${z}</ServerUrl></Service><DataWindow><UpperLeftX>0'
    "</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY><TileLevel>1</TileLevel>"
    "</DataWindow><Projection>EPSG:4326</Projection><BandsCount>1</BandsCount></GDAL_WMS>"
)


def message_of(url: str, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        header(RasterFile(url, **named))
    assert "private file" not in str(caught.value)
    return str(caught.value)


def pixels(url: str, **named: Any) -> bytes:
    file = RasterFile(url, **named)
    header(file)
    with open_raster(file) as raster:
        return raster.read(Window(0, 0, 8, 8))[0].tobytes()


# --- Virtual rasters


@pytest.mark.parametrize("name", ["a.vrt", "a.tif", "a", "a.xml"])
def test_remote_virtual_raster_is_refused(shared_folder: Path, private: Path, name: str) -> None:
    write_raster(shared_folder / "good.tif", VALUES)
    for text in (raw_vrt(private), simple_vrt("good.tif", relative=1), python_vrt(shared_folder / "owned")):
        (shared_folder / name).write_text(text)
        with served(shared_folder) as address:
            assert f"{address}/{name}: is a virtual raster (VRT)" in message_of(f"{address}/{name}")
            assert pixels(f"{address}/good.tif") == VALUES.tobytes()
    assert not (shared_folder / "owned").exists()


@pytest.mark.parametrize("name", ["a.tif", "a", "a.xml", "a.jp2"])
def test_local_virtual_raster_with_another_suffix_is_refused(shared_folder: Path, private: Path, name: str) -> None:
    (shared_folder / name).write_text(raw_vrt(private))
    assert f"{name}: is a virtual raster (VRT)" in message_of(str(shared_folder / name))


def test_local_vrt_with_raw_band_in_another_folder_is_refused(shared_folder: Path, private: Path) -> None:
    path = shared_folder / "a.vrt"
    for source, relative in ((private, 0), ("../private/passwd", 1), (str(private), 1)):
        path.write_text(raw_vrt(source, relative=relative))
        assert "passwd (VRTRawRasterBand), which is in another folder" in message_of(str(path))
    (shared_folder / "pixels.raw").write_bytes(VALUES.tobytes())
    path.write_text(raw_vrt("pixels.raw", relative=1))
    assert pixels(str(path)) == VALUES.tobytes()


def test_nested_virtual_raster_is_refused(shared_folder: Path, private: Path) -> None:
    inner = raw_vrt(private).replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    (shared_folder / "a.vrt").write_text(simple_vrt(inner))
    assert "contains a nested virtual raster" in message_of(str(shared_folder / "a.vrt"))


def test_local_vrt_of_a_geotiff_in_another_folder_is_read(shared_folder: Path, private: Path) -> None:
    write_raster(private.parent / "elsewhere.tif", VALUES)
    with rasterio.open(private.parent / "elsewhere.tif") as dataset:
        rasterio.shutil.copy(dataset, shared_folder / "a.vrt", driver="VRT")
    assert pixels(str(shared_folder / "a.vrt")) == VALUES.tobytes()


def test_python_pixel_function_in_a_vrt_is_never_run(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    (shared_folder / "a.vrt").write_text(python_vrt(shared_folder / "owned"))
    with pytest.raises(InputError, match="explicitly disabled"):
        pixels(str(shared_folder / "a.vrt"))
    assert os.environ["GDAL_VRT_ENABLE_PYTHON"] == "NO"
    assert not (shared_folder / "owned").exists()


def test_command_refuses_virtual_raster_as_a_source(scene: SmallScene, private: Path) -> None:
    (scene.folder / "radar.tif").write_text(raw_vrt(private))
    assert "radar.tif: is a virtual raster (VRT)" in refused(scene)


def test_published_map_with_foreign_pieces_is_refused(tmp_path: Path, private: Path) -> None:
    shown = product("class")
    for text in (simple_vrt(str(private)), raw_vrt(private), simple_vrt("../private/a_y0_x0.tif", relative=1)):
        (tmp_path / "class.vrt").write_text(text)
        with pytest.raises(InputError, match="which is not a piece of class"):
            PublishedMap(str(tmp_path)).read(shown, Window(0, 0, 8, 8))
    (tmp_path / "class.tif").write_text(raw_vrt(private))
    with pytest.raises(rasterio.errors.RasterioIOError, match="not recognized"):
        PublishedMap(str(tmp_path)).read(shown, Window(0, 0, 8, 8))


@pytest.mark.parametrize(
    "name", ["{private}/elsewhere.tif", ":::BASE:::../private/elsewhere.tif", "/vsicurl/http://127.0.0.1:1/a.tif"]
)
def test_overviews_in_another_folder_are_refused(tmp_path: Path, private: Path, name: str) -> None:
    write_raster(private.parent / "elsewhere.tif", VALUES)
    write_raster(tmp_path / "class.tif", VALUES)
    named = name.format(private=private.parent)
    notes = f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{named}</MDI></Metadata></PAMDataset>'
    (tmp_path / "class.tif.aux.xml").write_text(notes)
    assert "its .aux.xml references overviews in another folder" in message_of(str(tmp_path / "class.tif"))
    with pytest.raises(InputError, match="references overviews in another folder"):
        PublishedMap(str(tmp_path)).read(product("class"), Window(0, 0, 8, 8), shape_yx=(4, 4))


# --- Formats that make network requests or combine files


@pytest.mark.parametrize(
    "text", [WMS, "WMS:http://127.0.0.1:1/?SERVICE=WMS", '{"type": "Feature", "stac_version": "1.0.0"}']
)
@pytest.mark.parametrize("name", ["a.tif", "a.xml", "a.json", "a.vrt"])
def test_files_that_reference_servers_are_refused(shared_folder: Path, name: str, text: str) -> None:
    (shared_folder / name).write_text(text)
    assert f"{name}: cannot be read as a raster" in message_of(str(shared_folder / name))
    with served(shared_folder) as address:
        assert f"{name}: cannot be read as a raster" in message_of(f"{address}/{name}")


def test_formats_accepted_from_remote_locations_cannot_reference_other_files() -> None:
    can_reference_files = {
        *untrusted.NAMING,
        *untrusted.NEVER,
        "PDS4",
        "ISIS3",
        "DIMAP",
        "PCIDSK",
        "SAFE",
        "SENTINEL2",
        "Rasterlite",
        "Zarr",
    }
    assert not can_reference_files & set(untrusted.CONTAINED)
    assert not {*untrusted.NAMING_VECTORS, *untrusted.NEVER_VECTORS, "SQLite", "CSV"} & untrusted.VECTORS


@pytest.mark.parametrize(
    "url", ["/vsicurl/http://127.0.0.1:1/a.tif", "/vsisubfile/0_10,/etc/passwd", "/vsistdin/", "WMS:http://x"]
)
def test_gdal_virtual_file_names_are_refused(url: str) -> None:
    assert url.split("/")[-1] in message_of(url)


# --- HDF5


def write_hdf5(path: Path, private: Path, kind: str) -> Path:
    """Write an HDF5 file whose dataset `cube` is stored in another file."""
    with h5py.File(private.parent / "other.h5", "w") as other:
        other["inner"] = np.frombuffer(SECRET, np.uint8).reshape(8, 8)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["good"] = VALUES[0]
        if kind == "bytes":
            file.create_dataset("cube", shape=(8, 8), dtype="u1", external=[(str(private), 0, 64)])
        elif kind == "link":
            file["cube"] = h5py.ExternalLink(str(private.parent / "other.h5"), "/inner")
        elif kind == "link in a group":
            file.create_group("below")["cube"] = h5py.ExternalLink(str(private.parent / "other.h5"), "/inner")
        else:
            layout = h5py.VirtualLayout((8, 8), "u1")
            layout[:] = h5py.VirtualSource(str(private.parent / "other.h5"), "inner", (8, 8))
            file.create_virtual_dataset("cube", layout)
    if path.suffix == ".mat":
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("kind", ["bytes", "link", "link in a group", "virtual"])
@pytest.mark.parametrize("name", ["a.h5", "a.nc", "a.mat"])
def test_hdf5_values_stored_in_another_file_are_refused(shared_folder: Path, private: Path, name: str, kind: str) -> None:
    path = write_hdf5(shared_folder / name, private, kind)
    for variable in ("cube", "good"):
        message = message_of(str(path), variable=variable, axes=("y", "x"))
        assert name in message
        assert "cube is stored in another file" in message or "cannot be read as a raster" in message
    with served(shared_folder) as address:
        message = message_of(f"{address}/{name}", variable="cube", axes=("y", "x"))
        assert "cube is stored in another file" in message or "cannot be read as a raster" in message


def test_hdf5_virtual_dataset_of_the_same_file_is_accepted(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = VALUES[0]
        layout = h5py.VirtualLayout((8, 8), "u1")
        layout[:] = h5py.VirtualSource(file["good"])
        file.create_virtual_dataset("cube", layout)
    assert pixels(str(tmp_path / "a.h5"), variable="good") == VALUES.tobytes()


# --- Zarr


class MaliciousPickle:
    """Creates a folder when unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.touched),)


PICKLE = {"id": "pickle", "protocol": 5}
PICKLE_CODECS: dict[str, dict[str, Any]] = {
    "as a filter": {"filters": [PICKLE]},
    "as the second filter": {"filters": [{"id": "shuffle", "elementsize": 4}, PICKLE]},
    "as the compressor": {"compressor": PICKLE},
    "as objects": {"dtype": "|O", "filters": [PICKLE]},
    "as text": {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, PICKLE], "fill_value": ""},
}


def write_zarr(folder: Path, name: str, content: bytes, axes: list[str], **changes: Any) -> None:
    """Write a Zarr v2 array with one chunk."""
    folder.mkdir(exist_ok=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    shape = [8] * len(axes)
    array = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "<f4", "order": "C", "fill_value": 0}
    (folder / name).mkdir()
    (folder / name / ".zarray").write_text(json.dumps(array | {"compressor": None, "filters": None} | changes))
    (folder / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": axes}))
    (folder / name / ".".join("0" * len(axes))).write_bytes(content)


@pytest.mark.parametrize("how", PICKLE_CODECS)
@pytest.mark.parametrize("place", ["values", "coordinates"])
def test_pickles_in_a_zarr_array_are_never_loaded(tmp_path: Path, how: str, place: str) -> None:
    folder, touched = tmp_path / "a.zarr", tmp_path / "owned"
    malicious, good = pickle.dumps(MaliciousPickle(touched)), np.zeros((8, 8), np.float32).tobytes()
    if place == "values":
        write_zarr(folder, "cube", malicious, ["y", "x"], **PICKLE_CODECS[how])
    else:  # coordinates are read when xarray opens the group
        write_zarr(folder, "cube", good, ["y", "x"])
        write_zarr(folder, "x", malicious, ["x"], **PICKLE_CODECS[how])
    message = message_of(str(folder), variable="cube")
    assert "a.zarr (cube): cannot be opened as a Zarr group" in message
    assert not touched.exists()
    pickle.loads(malicious)
    assert touched.exists(), "the pickle is malicious: loading it has an effect"


def test_zarr_array_of_strings_is_refused(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr", "cube", b"", ["y", "x"], dtype="|O", filters=[{"id": "vlen-utf8"}], fill_value="")
    assert "a.zarr" in message_of(str(tmp_path / "a.zarr"), variable="cube")


# --- Labels


WATER = (ClassName(1, "water", "#000000"),)


def ogr_vrt(source: Path) -> str:
    return (
        f'<OGRVRTDataSource><OGRVRTLayer name="x"><SrcDataSource>{source}</SrcDataSource>'
        "<GeometryType>wkbPoint</GeometryType><LayerSRS>EPSG:32633</LayerSRS></OGRVRTLayer></OGRVRTDataSource>"
    )


def test_label_files_that_reference_other_files_are_refused(tmp_path: Path, scene: SmallScene) -> None:
    from odc.geo.geobox import GeoBox

    grid = GeoBox((150, 130), TRANSFORM, CRS)
    folder = tmp_path / "labels"
    folder.mkdir()
    write_polygons(tmp_path / "x.gpkg", [(shapely.box(400000, 5799000, 401000, 5800000), "water")])
    (folder / "x.gpkg").write_text(ogr_vrt(tmp_path / "x.gpkg"))
    (folder / "x.vrt").write_text(ogr_vrt(tmp_path / "x.gpkg"))
    write_polygons(folder / "good.gpkg", [(shapely.box(400000, 5799000, 401000, 5800000), "water")])
    with pytest.raises(InputError, match=r"x\.gpkg: (has format OGR_VRT, which is not accepted|cannot be read)"):
        open_labels(Labels(str(folder / "x.gpkg"), "kind"), grid, WATER)
    with served(folder) as address:
        for name in ("x.gpkg", "x.vrt"):
            with pytest.raises(InputError, match=r"has format OGR_VRT, which is not accepted|cannot be read"):
                open_labels(Labels(f"{address}/{name}", "kind"), grid, WATER)
        assert open_labels(Labels(f"{address}/good.gpkg", "kind"), grid, WATER).read(Window(0, 0, 9, 9)).max() == 1
    assert "x.gpkg" in refused(scene, [f"scenes.0.labels={{url: {folder / 'x.gpkg'}, attribute: kind}}"])
    assert isinstance(geopandas.read_file(folder / "x.vrt"), geopandas.GeoDataFrame), "GDAL itself reads this VRT"


@pytest.mark.parametrize(
    ("url", "driver", "accepted"),
    [
        ("https://host/a.gpkg", "GPKG", True),
        ("https://host/a.csv", "CSV", False),
        ("s3://bucket/a.vrt", "OGR_VRT", False),
        ("/data/a.vrt", "OGR_VRT", True),
        ("/data/a.gpkg", "OGR_VRT", False),
        ("/data/a.gdb", "OpenFileGDB", True),
        ("/data/a.dxf", "DXF", True),
        ("/data/a.xml", "WFS", False),
    ],
)
def test_accepted_vector_formats_depend_on_suffix_and_location(url: str, driver: str, accepted: bool) -> None:
    if accepted:
        untrusted.check_vector_driver(url, driver)
        return
    with pytest.raises(InputError, match=f"has format {driver}"):
        untrusted.check_vector_driver(url, driver)


def test_configure_gdal_overrides_unsafe_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GDAL_VRT_ENABLE_PYTHON", "GML_DOWNLOAD_SCHEMA"):
        monkeypatch.setenv(name, "YES")
    gdal.configure_gdal()
    assert (os.environ["GDAL_VRT_ENABLE_PYTHON"], os.environ["GML_DOWNLOAD_SCHEMA"]) == ("NO", "NO")
