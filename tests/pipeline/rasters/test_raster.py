"""All raster formats give the same values, validity and grid."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rioxarray  # noqa: F401  # registers xarray's `rio` accessor
import scipy.io
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.scenes.source import Source, open_source
from pipeline.stac.masks import Mask
from tests.support.scenes import CRS, TRANSFORM, write_raster

ROWS, COLUMNS, BANDS = 40, 30, 3
VALUES = np.random.default_rng(0).integers(1, 200, (BANDS, ROWS, COLUMNS)).astype(np.uint8)
WINDOW = Window(5, 7, 20, 11)


def read(file: RasterFile, window: Window = WINDOW) -> tuple[np.ndarray, np.ndarray, Header]:
    with open_raster(file) as raster:
        values, valid = raster.read(window)
        return values, valid, raster.header


def as_gdal(driver: str, suffix: str) -> Callable[[Path], RasterFile]:
    def write(folder: Path) -> RasterFile:
        path = folder / f"a{suffix}"
        profile: dict[str, Any] = {"driver": driver, "count": BANDS, "height": ROWS, "width": COLUMNS, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile, crs=CRS, transform=TRANSFORM) as dataset:
            dataset.write(VALUES)
        return RasterFile(str(path))

    return write


def as_compressed_envi(folder: Path) -> RasterFile:
    file = as_gdal("ENVI", ".img")(folder)
    Path(file.url).write_bytes(gzip.compress(Path(file.url).read_bytes()))
    head = Path(file.url).with_suffix(".hdr")
    head.write_text(head.read_text() + "file compression = 1\n")
    return file


def as_jp2(folder: Path) -> RasterFile:
    source = as_gdal("GTiff", ".tif")(folder)
    path = folder / "a.jp2"
    with rasterio.open(source.url) as dataset:
        rasterio.shutil.copy(dataset, path, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    return RasterFile(str(path))


def as_netcdf(folder: Path) -> RasterFile:
    y = TRANSFORM.f + TRANSFORM.e * (np.arange(ROWS) + 0.5)
    x = TRANSFORM.c + TRANSFORM.a * (np.arange(COLUMNS) + 0.5)
    array = xr.DataArray(VALUES, dims=("band", "y", "x"), coords={"y": y, "x": x}, name="reflectance")
    path = folder / "a.nc"
    both = xr.Dataset({"reflectance": array.astype(np.int16), "other": array[0].astype(np.int16)})
    both.rio.write_crs(CRS).rio.write_coordinate_system().to_netcdf(path)
    return RasterFile(str(path), variable="reflectance")


def as_zarr(folder: Path) -> RasterFile:
    y = TRANSFORM.f + TRANSFORM.e * (np.arange(ROWS) + 0.5)
    x = TRANSFORM.c + TRANSFORM.a * (np.arange(COLUMNS) + 0.5)
    array = xr.DataArray(VALUES, dims=("band", "y", "x"), coords={"y": y, "x": x})
    path = folder / "a.zarr"
    xr.Dataset({"reflectance": array}).rio.write_crs(CRS).to_zarr(path, group="inner", consolidated=False)
    return RasterFile(str(path), variable="inner/reflectance")


def as_matlab(folder: Path) -> RasterFile:
    path = folder / "a.mat"
    scipy.io.savemat(path, {"cube": VALUES.transpose(1, 2, 0), "gt": VALUES[0]}, do_compression=True)
    return RasterFile(str(path), variable="cube", axes=("y", "x", "band"))


def as_matlab_7_3(folder: Path) -> RasterFile:
    """Write the file as MATLAB does: HDF5 with reversed axes after a user block of 512 bytes."""
    path = folder / "b.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("cube", data=VALUES.transpose(1, 2, 0).T, chunks=(1, 10, 10))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return RasterFile(str(path), variable="cube", axes=("y", "x", "band"))


KINDS: dict[str, Callable[[Path], RasterFile]] = {
    "GeoTIFF": as_gdal("GTiff", ".tif"),
    "COG": as_gdal("COG", ".cog.tif"),
    "ENVI": as_gdal("ENVI", ".img"),
    "compressed ENVI": as_compressed_envi,
    "JPEG 2000": as_jp2,
    "NetCDF": as_netcdf,
    "Zarr": as_zarr,
    "MATLAB 5": as_matlab,
    "MATLAB 7.3": as_matlab_7_3,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_pixels_and_georeferencing(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path)
    values, valid, head = read(file)
    assert (values == VALUES[:, *WINDOW.slices]).all()
    assert valid.all()
    assert head.dtypes == ("int16" if kind == "NetCDF" else "uint8",) * BANDS
    georeferenced = not kind.startswith("MATLAB")
    assert head.grid == (
        GeoBox((ROWS, COLUMNS), TRANSFORM, CRS) if georeferenced else GeoBox((ROWS, COLUMNS), Affine.identity(), None)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bands_are_selected_by_number_in_the_given_order(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path)
    chosen = RasterFile(file.url, file.variable, file.axes, bands=(3, 1))
    assert (read(chosen)[0] == VALUES[[2, 0], *WINDOW.slices]).all()
    with pytest.raises(InputError, match="has no band 4; its bands are 1 to 3"):
        read(RasterFile(file.url, file.variable, file.axes, bands=(1, 4)))


@pytest.mark.parametrize("kind", ["NetCDF", "Zarr", "MATLAB 5", "MATLAB 7.3"])
def test_missing_variable_is_refused(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path)
    with pytest.raises(InputError, match="none_such"):
        read(RasterFile(file.url, "none_such", file.axes))


@pytest.mark.parametrize(("kind", "named"), [("NetCDF", "reflectance"), ("Zarr", "variable"), ("MATLAB 5", "cube, gt")])
def test_unset_variable_is_refused_and_the_choices_are_listed(kind: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"`variable`.*{named}|{named}"):
        read(RasterFile(KINDS[kind](tmp_path).url))


def test_unknown_axis_order_of_an_array_is_refused(tmp_path: Path) -> None:
    file = as_matlab(tmp_path)
    with pytest.raises(InputError, match=r"axis order of this 40 x 30 x 3 array is unknown; set it.*axes: \[y, x, band\]"):
        read(RasterFile(file.url, "cube"))
    with pytest.raises(InputError, match="does not match the array's 3 axes"):
        read(RasterFile(file.url, "cube", axes=("y", "x")))
    plane, _, _ = read(RasterFile(file.url, "gt"))
    assert (plane[0] == VALUES[0][WINDOW.slices]).all(), "a 2-D array needs no axis order: its axes are rows and columns"


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_damaged_file_names_the_file(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path)
    if Path(file.url).is_dir():
        for part in Path(file.url).rglob("zarr.json"):
            part.unlink()
    else:
        Path(file.url).write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match=Path(file.url).name.replace(".", r"\.")):
        read(file)


def test_nodata_from_file_or_configuration_and_nonfinite_values_are_invalid(tmp_path: Path) -> None:
    values = np.ones((2, 10, 10), np.float32)
    values[0, 1, 1], values[1, 2, 2], values[0, 3, 3], values[1, 4, 4] = np.nan, np.inf, -9999, -1
    path = str(write_raster(tmp_path / "a.tif", values, nodata=-9999))
    everywhere = Window(0, 0, 10, 10)
    missing = {tuple(p) for p in np.argwhere(~read(RasterFile(path), everywhere)[1]).tolist()}
    assert missing == {(1, 1), (2, 2), (3, 3)}
    missing = {tuple(p) for p in np.argwhere(~read(RasterFile(path, nodata=-1), everywhere)[1]).tolist()}
    assert missing == {(1, 1), (2, 2), (4, 4)}
    # A nodata value outside the range of the data type matches no pixel.
    bytes_ = str(write_raster(tmp_path / "b.tif", np.full((1, 10, 10), 241, np.uint8)))
    assert read(RasterFile(bytes_, nodata=-9999), everywhere)[1].all()


def test_internal_mask_of_a_file_is_applied(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES)
    mask = np.full((ROWS, COLUMNS), 255, np.uint8)
    mask[10:12, 9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert (read(RasterFile(str(path)))[1] == (mask[WINDOW.slices] > 0)).all()


def test_scale_and_offset_of_a_file_are_applied_only_with_unscale(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,) * 3, (-1.0,) * 3
    plain, _, head = read(RasterFile(str(path)))
    assert plain.dtype == np.uint8
    assert head.unscaled
    physical, _, _ = read(RasterFile(str(path), unscale=True))
    np.testing.assert_allclose(physical, plain * 0.5 - 1)


def source(folder: Path, **declared: Any) -> Source:
    return Source("s", ((RasterFile(str(write_raster(folder / "a.tif", VALUES))),),), **declared)


GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)


def test_declared_gain_and_offset_give_float32(tmp_path: Path) -> None:
    opened = open_source(source(tmp_path, gain=0.01, offset=-0.5), GRID)
    values, valid = opened.read(WINDOW)
    assert opened.dtype == values.dtype == np.float32
    assert valid.all()
    np.testing.assert_allclose(values, VALUES[:, *WINDOW.slices] * 0.01 - 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "expected_valid"),
    [
        ({"valid": (4, 5)}, lambda q: (q == 4) | (q == 5)),
        ({"invalid": (0, 9)}, lambda q: (q != 0) & (q != 9)),
        ({"bits": (1, 3)}, lambda q: (q & 0b1010) == 0),
        ({"invalid": (4,), "bits": (0,)}, lambda q: (q != 4) & (q & 1 == 0)),
    ],
)
def test_quality_mask_limits_valid_pixels_of_a_source(
    tmp_path: Path, rule: dict[str, tuple[int, ...]], expected_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The quality band has a 20 m grid, as that of Sentinel-2."""
    quality = np.random.default_rng(1).integers(0, 10, (1, ROWS // 2, COLUMNS // 2)).astype(np.uint8)
    coarse = write_raster(tmp_path / "q.tif", quality, transform=TRANSFORM * Affine.scale(2))
    opened = open_source(source(tmp_path, mask=Mask(RasterFile(str(coarse), bands=(1,)), **rule)), GRID)
    values, valid = opened.read(Window(0, 0, ROWS, COLUMNS))
    wanted = expected_valid(quality[0].repeat(2, axis=0).repeat(2, axis=1))
    assert (valid == wanted).all()
    assert (values[:, ~valid] == 0).all(), "values of masked pixels are set to 0"
    assert 0 < valid.mean() < 1


def test_mosaicked_files_use_the_first_file_with_data(tmp_path: Path) -> None:
    left, right = VALUES[:, :, :20].copy(), VALUES[:, :, 10:] + np.uint8(50)
    left[:, 0, 15] = 0
    files = (
        RasterFile(str(write_raster(tmp_path / "l.tif", left, nodata=0))),
        RasterFile(str(write_raster(tmp_path / "r.tif", right, transform=TRANSFORM * Affine.translation(10, 0)))),
    )
    values, valid = open_source(Source("s", (files,)), GRID).read(Window(0, 0, ROWS, COLUMNS))
    wanted = np.concatenate([VALUES[:, :, :20], right[:, :, 10:]], axis=2)
    wanted[:, 0, 15] = right[:, 0, 5]
    assert valid.all()
    assert (values == wanted).all()


@pytest.mark.parametrize("scale", [2, 4])
def test_finer_source_is_read_exactly_on_the_nested_grid(tmp_path: Path, scale: int) -> None:
    fine = np.random.default_rng(2).integers(0, 999, (1, ROWS * scale, COLUMNS * scale)).astype(np.uint16)
    path = write_raster(tmp_path / "f.tif", fine, transform=TRANSFORM * Affine.scale(1 / scale))
    opened = open_source(Source("s", ((RasterFile(str(path)),),), scale=scale), GRID)
    values, valid = opened.read(WINDOW)
    assert opened.layers[0][0].alignment.kind == "exact"
    assert valid.all()
    assert (values == fine[:, WINDOW.y * scale : 25 * scale, WINDOW.x * scale : 18 * scale]).all()


def misaligned(name: str, folder: Path, values: np.ndarray, **tags: Any) -> str:
    """Write a raster that is half a pixel off the grid, so it must be resampled."""
    return str(write_raster(folder / name, values, transform=TRANSFORM * Affine.translation(0.5, 0.5), **tags))


def resampled(file: RasterFile, *, resampling: str = "nearest", mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray]:
    opened = open_source(Source("s", ((file,),), resampling=resampling, mask=mask), GRID)
    return opened.read(Window(0, 0, ROWS, COLUMNS))


def test_declared_nodata_overrides_the_file_when_resampling(tmp_path: Path) -> None:
    values = np.ones((1, ROWS + 2, COLUMNS + 2), np.float32)
    values[0, :10] = -9999
    url = misaligned("a.tif", tmp_path, values, nodata=np.nan)
    found, valid = resampled(RasterFile(url, nodata=-9999), resampling="bilinear")
    assert not valid[:9].any()
    assert (found[0][valid] == 1).all()
    assert valid[12:-1, 1:-1].all()
    # A nodata value outside the range of the file's data type matches no pixel.
    assert resampled(RasterFile(misaligned("b.tif", tmp_path, values.astype(np.uint8)), nodata=-9999))[1][12:-1, 1:-1].all()


def test_nodata_values_may_differ_between_bands(tmp_path: Path) -> None:
    values = np.full((2, ROWS + 2, COLUMNS + 2), 5, np.int16)
    values[0, 3], values[1, 7] = 1, 2
    source = misaligned("a.tif", tmp_path, values)
    with rasterio.open(source) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    for band, absent in ((1, 1), (2, 2)):
        start = f'band="{band}"'
        head, tail = text.split(start, 1)
        opening, rest = tail.split(">", 1)
        text = f"{head}{start}{opening}><NoDataValue>{absent}</NoDataValue>{rest}"
    (tmp_path / "a.vrt").write_text(text)
    _, valid = resampled(RasterFile(str(tmp_path / "a.vrt")))
    invalid = {int(y) for y in np.argwhere(~valid[:, 5]).ravel()}
    assert len(invalid & {2, 3, 4}) == len(invalid & {6, 7, 8}) == 1
    assert valid[9:-1, 1:-1].all()


@pytest.mark.parametrize("nested", [True, False])
def test_high_bits_of_a_quality_band_do_not_affect_low_bits(tmp_path: Path, nested: bool) -> None:
    bits = np.full((1, ROWS + 2, COLUMNS + 2), 1 << 30, np.uint32)
    bits[0, :, 10:] |= 1
    if nested:
        quality = str(write_raster(tmp_path / "q.tif", bits[:, :ROWS, :COLUMNS]))
    else:
        quality = misaligned("q.tif", tmp_path, bits)
    file = RasterFile(str(write_raster(tmp_path / "a.tif", VALUES)))
    _, valid = resampled(file, mask=Mask(RasterFile(quality, nodata=np.nan), bits=(0,)))
    assert valid[1:, 1:9].all()
    assert not valid[:, 12:].any()


@pytest.mark.parametrize("nested", [True, False])
def test_pixels_with_zero_alpha_are_invalid_and_alpha_band_is_refused(tmp_path: Path, nested: bool) -> None:
    values = np.full((4, ROWS + 2, COLUMNS + 2), 200, np.uint8)
    values[3], values[3, :8] = 255, 0
    transform = TRANSFORM * Affine.translation(0, 0) if nested else TRANSFORM * Affine.translation(0.5, 0.5)
    url = str(write_raster(tmp_path / "rgba.tif", values, transform=transform))
    with pytest.raises(InputError, match=r"band 4 is tagged as transparency.*Leave it out with `bands`"):
        resampled(RasterFile(url))
    _, valid = resampled(RasterFile(url, bands=(1, 2, 3)))
    assert not valid[:7].any()
    assert valid[9:-1, 1:-1].all()


def test_bands_of_different_types_are_read_as_a_common_type(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", VALUES[:1].astype(t)) for n, t in enumerate((np.uint8, np.int16))]
    with rasterio.open(paths[0]) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    begin, end = text.index("<VRTRasterBand"), text.index("</VRTRasterBand>") + len("</VRTRasterBand>")
    second = text[begin:end].replace('dataType="Byte" band="1"', 'dataType="Int16" band="2"').replace("0.tif", "1.tif")
    (tmp_path / "a.vrt").write_text(text[:end] + second + text[end:])
    values, valid, head = read(RasterFile(str(tmp_path / "a.vrt")))
    assert head.dtypes == ("uint8", "int16")
    assert valid.all()
    assert (values == VALUES[0][WINDOW.slices]).all()


def test_error_of_damaged_zarr_chunk_names_store_and_variable(tmp_path: Path) -> None:
    file = as_zarr(tmp_path)
    (chunk,) = (p for p in Path(file.url).rglob("c/*/*/*") if "reflectance" in str(p) and p.is_file())
    chunk.write_bytes(b"not a Zarr chunk")
    with pytest.raises(InputError, match=r"a\.zarr \(inner/reflectance\): cannot be read"):
        read(file)


def test_signature_of_a_url_is_not_in_messages() -> None:
    signed = "https://127.0.0.1:1/a.tif?sig=secret"
    with pytest.raises(InputError) as refused:
        header(RasterFile(signed))
    assert "secret" not in str(refused.value)
    assert "https://127.0.0.1:1/a.tif" in str(refused.value)
    assert "secret" not in str(RasterFile(signed))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97, 0.999])
@pytest.mark.parametrize("kind", ["JPEG 2000", "ENVI", "compressed ENVI"])
def test_truncated_file_that_gdal_opens_silently_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = Path(KINDS[kind](tmp_path).url)
    assert header(RasterFile(str(path))).bands == BANDS
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
        header(RasterFile(str(path)))


def test_compressed_raw_raster_with_more_bytes_than_its_pixels_is_read(tmp_path: Path) -> None:
    file = as_compressed_envi(tmp_path)
    Path(file.url).write_bytes(gzip.compress(VALUES.tobytes() + b"padding"))
    assert header(file).bands == BANDS
    assert (read(file)[0] == VALUES[:, *WINDOW.slices]).all()


def test_per_band_mask_is_applied(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", VALUES[:1])
    mask = np.full((1, ROWS, COLUMNS), 255, np.uint8)
    mask[0, :8] = 0
    write_raster(tmp_path / "m.tif", mask)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    mask_band = (
        '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">m.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></MaskBand></VRTRasterBand>"
    )
    (tmp_path / "a.vrt").write_text(text.replace("</VRTRasterBand>", mask_band, 1))
    _, valid, _ = read(RasterFile(str(tmp_path / "a.vrt")), Window(0, 0, ROWS, COLUMNS))
    assert (valid == (mask[0] > 0)).all()


def test_unevenly_spaced_coordinates_are_refused(tmp_path: Path) -> None:
    y = np.concatenate([np.arange(20) * 10.0, 200 + np.arange(20) * 30.0])[::-1]
    array = xr.DataArray(VALUES[0], dims=("y", "x"), coords={"y": y, "x": np.arange(COLUMNS) * 10.0})
    xr.Dataset({"a": array}).rio.write_crs(CRS).to_zarr(tmp_path / "a.zarr", consolidated=False)
    with pytest.raises(InputError, match="coordinates along y are not evenly spaced"):
        read(RasterFile(str(tmp_path / "a.zarr"), "a"))
