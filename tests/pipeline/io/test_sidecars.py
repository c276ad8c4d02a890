"""Fingerprints cover every file that GDAL reads for an input, and every one that it would read if it appeared."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.io import checksums, storage
from pipeline.io.sidecars import Listings, named_files
from tests.support.http_server import served
from tests.support.scenes import CRS, write_raster

VALUES = np.arange(1, 49, dtype=np.uint8).reshape(1, 6, 8)
TIME = 1577836800  # the start of 2020


def touch(path: Path, content: str = "x") -> None:
    path.write_text(content)
    os.utime(path, (TIME, TIME))


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        *(("a.tif", f"a.{ending}") for ending in ("tfw", "tifw", "wld", "prj", "rpb", "RPB", "TFW", "Tfw", "xml", "hdr")),
        *(("a.tif", f"a{ending}") for ending in ("_RPC.TXT", "_rpc.txt", ".tif.aux.xml", ".tif.msk", ".tif.ovr", ".aux")),
        *(("a.jpg", f"a.{ending}") for ending in ("jgw", "JGW", "jpgw", "wld")),
        *(("a.png", f"a.{ending}") for ending in ("pgw", "pngw", "png.aux.xml")),
        *(("a.shp", f"a.{ending}") for ending in ("dbf", "shx", "prj", "cpg", "PRJ", "qix")),
        *(("a.gpkg", f"a.gpkg{ending}") for ending in ("-wal", "-journal")),
        ("a.img", "a.ige"),
        ("a.bil", "a.HDR"),
        ("A.TIF", "a.tfw"),
        ("IMG_a.TIF", "RPC_a.XML"),
    ],
)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_sidecar_that_appears_changes_or_goes_changes_the_fingerprint(
    name: str, sidecar: str, place: str, tmp_path: Path
) -> None:
    folder = str(tmp_path) if place == "local" else f"memory://{tmp_path.name}"
    url, other = storage.join(folder, name), storage.join(folder, sidecar)
    storage.write_bytes(url, b"pixels")
    storage.write_bytes(storage.join(folder, "b.tfw"), b"unrelated")
    storage.write_bytes(storage.join(folder, name.split(".")[0] + ".geojson"), b"of the same stem, but a file of its own")
    alone = checksums.fingerprint(url)
    found = [alone]
    for content in (b"one", b"three"):
        storage.write_bytes(other, content)
        found.append(checksums.fingerprint(url))
    assert len(set(found)) == 3
    storage.remove(other)
    assert checksums.fingerprint(url) == alone
    if place == "memory":
        MemoryFileSystem.store.clear()


def test_fingerprints_of_earlier_versions_stay(tmp_path: Path) -> None:
    """Stores of ordinary files are not made again after an upgrade; recorded from the code that wrote no names."""
    for name in ("a.tif", "b.shp", "b.dbf", "b.shx", "b.prj", "b.cpg", "c.img", "c.img.hdr", "c.hdr", "c.img.aux.xml"):
        touch(tmp_path / name)
    stamp = [1, str(float(TIME))]
    for name, sidecars in (("a.tif", 0), ("b.shp", 4), ("c.img", 3)):
        assert checksums.fingerprint(str(tmp_path / name)) == checksums.digest([stamp] * (1 + sidecars))


def drivers() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("GTiff", ".tif", {"TFW": "YES"}),
        ("GTiff", ".tif", {"PROFILE": "BASELINE"}),
        ("ENVI", ".img", {}),
        ("ENVI", ".dat", {"SUFFIX": "ADD"}),
        ("EHdr", ".bil", {}),
        ("HFA", ".img", {"USE_SPILL": "YES"}),
        ("PNG", ".png", {"WORLDFILE": "YES"}),
        ("JPEG", ".jpg", {"WORLDFILE": "YES"}),
        ("ISCE", ".slc", {}),
        ("RRASTER", ".grd", {}),
        ("SAGA", ".sdat", {}),
        ("AAIGrid", ".asc", {}),
        ("MRF", ".mrf", {}),
    ]


@pytest.mark.parametrize(("driver", "suffix", "options"), drivers())
def test_every_file_that_gdal_lists_is_covered(driver: str, suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = write_raster(tmp_path / "source.tif", VALUES, nodata=9)
    path = tmp_path / f"scene{suffix}"
    with rasterio.open(source) as dataset:
        rasterio.shutil.copy(dataset, path, driver=driver, **options)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO", USE_RRD="NO"), rasterio.open(path) as dataset:
        dataset.stats(indexes=1)
        listed = {Path(name).name for name in dataset.files}
    covered = {path.name, *Listings().local(str(path)), *(Path(name).name for name in named_files(str(path)))}
    with rasterio.open(path) as dataset:
        assert listed | {Path(name).name for name in dataset.files} <= covered
    assert len(covered) > 1


def test_file_of_a_virtual_raster_changes_its_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    inner = write_raster(tmp_path / "tiles/a.tif", VALUES)
    with rasterio.open(inner) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "tiles/b.vrt", driver="VRT")
    with rasterio.open(tmp_path / "tiles/b.vrt") as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "c.vrt", driver="VRT")
    first = checksums.fingerprint(str(tmp_path / "c.vrt"))
    assert checksums.fingerprint(str(tmp_path / "c.vrt")) == first
    os.utime(inner, (TIME, TIME))
    second = checksums.fingerprint(str(tmp_path / "c.vrt"))
    touch(tmp_path / "tiles/a.tfw")
    assert len({first, second, checksums.fingerprint(str(tmp_path / "c.vrt"))}) == 3


@pytest.mark.parametrize(
    ("name", "relative", "expected"),
    [
        ("a.tif", "1", "/data/a.tif"),
        ("/other/a.tif", "0", "/other/a.tif"),
        ("/vsicurl/http://host/a.tif", "0", "http://host/a.tif"),
        ("/vsis3/bucket/a.tif", "0", "s3://bucket/a.tif"),
        ('NETCDF:"a.nc":band', "1", "/data/a.nc"),
        ('HDF5:"/other/a.h5"://group/band', "0", "/other/a.h5"),
        ('NETCDF:"/vsis3/bucket/a.nc":band', "0", "s3://bucket/a.nc"),
        ("GTIFF_DIR:2:/other/a.tif", "0", "/other/a.tif"),
    ],
)
def test_files_are_found_by_the_names_that_gdal_has_for_them(
    name: str, relative: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.vrt"
    quoted = name.replace('"', "&quot;")
    path.write_text(f'<VRTDataset><SourceFilename relativeToVRT="{relative}">{quoted}</SourceFilename></VRTDataset>')
    assert list(named_files(str(path))) == [expected.replace("/data", str(tmp_path))]


def test_geopackage_edited_in_wal_mode_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    frame = geopandas.GeoDataFrame({"kind": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=CRS)
    frame.to_file(path, SPATIAL_INDEX="NO")  # an index is kept by triggers that need functions of GDAL
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    time = path.stat()
    before = checksums.fingerprint(str(path))
    connection.execute("UPDATE a SET kind = 'b'")
    assert path.stat().st_mtime_ns == time.st_mtime_ns, "the change is in the log alone"
    edited = checksums.fingerprint(str(path))
    assert edited != before
    touch(tmp_path / "a.gpkg-journal", "")
    assert checksums.fingerprint(str(path)) == edited, "an empty journal is what reading leaves"
    assert pyogrio.read_dataframe(path).kind.tolist() == ["b"]
    connection.close()


@pytest.mark.parametrize("sidecar", ["a.tif.aux.xml", "a.tif.msk", "a.tif.ovr", "a.tfw", "a_RPC.TXT"])
def test_sidecar_on_the_web_changes_the_fingerprint(sidecar: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.tif")
    with served(tmp_path) as address:
        alone = checksums.fingerprint(f"{address}/a.tif")
        touch(tmp_path / sidecar)
        assert checksums.fingerprint(f"{address}/a.tif") != alone
        assert checksums.fingerprint(f"{address}/a.tif?signature=1") == alone, "sidecars of signed URLs have others"


def test_folder_of_many_files_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda folder, *args, **kwargs: (listed.append(str(folder)), function(folder, *args, **kwargs))[1]

    monkeypatch.setattr(Path, "iterdir", counted(Path.iterdir))
    for number in range(5):
        touch(tmp_path / f"{number}.tif")
    checksums.input_fingerprints((str(tmp_path / f"{number}.tif") for number in range(5)), Listings())
    assert listed == [str(tmp_path)]
    memory = storage.open_url("memory://a")[0]
    monkeypatch.setattr(type(memory), "ls", lambda self, path, detail: (listed.append(path), [])[1])
    for number in range(5):
        storage.write_bytes(f"memory://many/{number}.tif", b"x")
    checksums.input_fingerprints((f"memory://many/{number}.tif" for number in range(5)), Listings())
    assert listed[1:] == ["/many"]
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize("sidecar", ["a.tfw", "a.TFW", "a.tif.aux.xml"])
def test_folder_that_cannot_be_listed_hides_no_sidecars(
    sidecar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.tif")

    def denied(folder: Path) -> None:
        raise PermissionError(str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", denied)
        alone = checksums.input_fingerprint(str(tmp_path / "a.tif"))
        touch(tmp_path / sidecar)
        hidden = checksums.input_fingerprint(str(tmp_path / "a.tif"))
    assert hidden != alone
    assert checksums.input_fingerprint(str(tmp_path / "a.tif")) == hidden
