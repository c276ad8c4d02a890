"""Inspect the files of each source and decide how to align them with the reference grid. Reads only headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError

from jobs.init.arguments import FileArgument, SourceArgument
from mibf.errors import InputError
from pipeline.io import gdal, storage
from pipeline.io.sidecars import Listings
from pipeline.rasters.gdal_raster import PAGED
from pipeline.rasters.header import Axis, Header, RasterFile
from pipeline.rasters.longitude import cycle, extent_of, extents_in, same_crs, shifts
from pipeline.rasters.raster import header, stamped
from pipeline.rasters.resample import align
from pipeline.rasters.untrusted import open_dataset
from pipeline.rasters.variables import CONTAINERS, Variable, list_variables
from pipeline.scenes.source import AlignedSource, Source, open_source

#: Axis order of the MATLAB files of hyperspectral benchmarks; no other order is assumed.
MATLAB_AXES: tuple[Axis, ...] = ("y", "x", "band")
#: Resolution ratios at which a finer source keeps its resolution.
SCALES = (2, 4)
#: A source finer than the grid by more than this is averaged: bilinear interpolation would skip some of its pixels.
AVERAGED = 1.5
#: Minimum share of the grid that a source must cover to count as covering it.
FULL_COVERAGE = 0.999


@dataclass(frozen=True)
class InspectedSource:
    """The files of a source with their headers."""

    name: str
    files: tuple[RasterFile, ...]
    headers: tuple[Header, ...]
    urls: tuple[str, ...]  #: as given by the user
    transparent: bool = False  #: whether a transparency band is skipped

    @property
    def grid(self) -> GeoBox:
        """The grid of the first file."""
        return self.headers[0].grid

    @property
    def bands(self) -> int:
        """Bands of all files together."""
        return sum(head.bands for head in self.headers)

    def describe(self) -> str:
        """Describe the files in one line: bands, data type, CRS, resolution, size, nodata value."""
        dtypes = dict.fromkeys(dtype for head in self.headers for dtype in head.dtypes)
        nodata = dict.fromkeys(f"{value:g}" for head in self.headers for value in head.nodata if value is not None)
        files = f"{len(self.files)} files, " if len(self.files) > 1 else ""
        rows, columns = self.grid.shape
        bands = f"{self.bands} band{'s' if self.bands > 1 else ''} of {' and '.join(dtypes)}"
        absent = f"no data: {', '.join(nodata)}" if nodata else "no nodata value"
        return f"{files}{bands}, {describe_grid(self.grid)}, {rows:,} x {columns:,} pixels, {absent}"


@dataclass(frozen=True)
class PlacedSource:
    """A source and its alignment with the reference grid."""

    source: InspectedSource
    aligned: AlignedSource
    scale: int
    resampling: str | None  #: to write to the configuration; None if the pixels are not resampled
    coverage: float  #: share of the grid that the file that covers least of it covers


def describe_grid(grid: GeoBox) -> str:
    """Describe a CRS and resolution: `EPSG:32612, 30 x 30 metre`."""
    if grid.crs is None:
        return "no CRS"
    code = grid.crs.to_epsg()
    unit = grid.crs.units[0] if grid.crs.projected else "degree"
    return (
        f"{f'EPSG:{code}' if code else 'a CRS without EPSG code'}, "
        f"{abs(grid.resolution.x):.6g} x {abs(grid.resolution.y):.6g} {unit}"
    )


def choose_variable(file: FileArgument) -> Variable | None:
    """Return the array of a file to read: the named one, else the only one.

    Raises:
        InputError: the file has several arrays and none is named, or has no array of that name.
    """
    if not file.url.rstrip("/").lower().endswith(CONTAINERS):
        if file.part is None:
            return None
        if not file.url.lower().endswith(PAGED):
            raise InputError(f"{file}: `#` names an array of a file, and this is not a {', '.join(CONTAINERS)} file.")
        return Variable(file.part)
    found = list_variables(file.url)
    if file.part is not None:  # the reader refuses an unknown name
        return next((v for v in found if v.name == file.part), Variable(file.part))
    if len(found) > 1:
        listed = ", ".join(v.name + (f" ({' x '.join(map(str, v.shape))})" if v.shape else "") for v in found[:20])
        raise InputError(f"{file}: holds several arrays: {listed}. Name one, as in {file}#{found[0].name}.")
    if not found and file.url.rstrip("/").lower().endswith((".mat", ".zarr")):
        raise InputError(f"{file}: holds no array of two or three axes.")
    return found[0] if found else None


def inspect_source(argument: SourceArgument) -> InspectedSource:
    """Read the headers of a source's files.

    Raises:
        InputError: a file cannot be read, or the files need different settings, which one source cannot have.
    """
    files = [_raster_file(file) for file in argument.files]
    settings = {(file.variable, file.axes, file.bands) for file in files}
    if len(settings) > 1:
        raise InputError(
            f"source {argument.name!r}: its files differ in the array to read, its axes or its transparency bands; "
            "give them as separate sources."
        )
    listings = Listings()
    return InspectedSource(
        argument.name,
        tuple(files),
        tuple(header(stamped(file, listings)) for file in files),
        tuple(file.url for file in argument.files),
        transparent=files[0].bands is not None,
    )


def _raster_file(file: FileArgument) -> RasterFile:
    variable = choose_variable(file)
    matlab = file.url.lower().endswith(".mat")
    axes = MATLAB_AXES if matlab and variable is not None and variable.shape and len(variable.shape) == 3 else None
    bands = None if variable is not None else opaque_bands(file.url)
    return RasterFile(storage.absolute(file.url), None if variable is None else variable.name, axes, bands)


def opaque_bands(url: str) -> tuple[int, ...] | None:
    """Return the bands that are not tagged as transparency; None if all or none are."""
    gdal.configure_gdal()
    try:
        with open_dataset(url, gdal.gdal_path(url)) as dataset:
            opaque = tuple(i for i, kind in enumerate(dataset.colorinterp, 1) if kind != ColorInterp.alpha)
            return None if len(opaque) in (0, dataset.count) else opaque
    except RasterioIOError:
        return None  # `header` says what is wrong with it


def check_crs(sources: Sequence[InspectedSource]) -> None:
    """Check that all files have a CRS, or that none has one and their sizes are compatible.

    Raises:
        InputError: only some files have a CRS, or images without a CRS have incompatible sizes.
    """
    files = [(file, head.grid) for source in sources for file, head in zip(source.files, source.headers, strict=True)]
    lacking = [str(file) for file, grid in files if grid.crs is None]
    if lacking and len(lacking) < len(files):
        raise InputError(
            f"{', '.join(lacking)}: no CRS, while other files have one. Assign it first, for example with "
            "`rio edit-info --crs EPSG:32633 FILE` or `gdal_edit.py -a_srs`, or leave the file out."
        )
    if lacking:
        first = sources[0].grid.shape
        sizes = {str(file): (grid.shape[0], grid.shape[1]) for file, grid in files}
        if any(_image_scale(size, (first[0], first[1])) is None for size in sizes.values()):
            listed = ", ".join(f"{file} {rows} x {columns}" for file, (rows, columns) in sizes.items())
            raise InputError(
                f"files without a CRS are aligned pixel by pixel, and their sizes do not fit: {listed}. Assign a CRS to "
                "each, or cut and resample them to one size first."
            )


def _image_scale(size_yx: tuple[int, int], grid_yx: tuple[int, int]) -> int | None:
    """Return the scale of an image without a CRS on a grid: 1 for equal or integer-coarser sizes; None if no scale fits."""
    for scale in (1, *SCALES):
        if size_yx == (grid_yx[0] * scale, grid_yx[1] * scale):
            return scale
    coarser = grid_yx[0] // size_yx[0] if size_yx[0] else 0
    return 1 if coarser > 1 and grid_yx == (size_yx[0] * coarser, size_yx[1] * coarser) else None


def align_source(source: InspectedSource, grid: GeoBox) -> PlacedSource:
    """Decide how to align a source with the reference grid.

    Raises:
        InputError: it does not overlap the grid, or cannot be transformed to it.
    """
    choices = {_finer(file, head, grid) for file, head in zip(source.files, source.headers, strict=True)}
    if len(choices) > 1:
        listed = ", ".join(
            f"{file} ({describe_grid(head.grid)})" for file, head in zip(source.files, source.headers, strict=True)
        )
        raise InputError(
            f"source {source.name!r}: its files need different resampling: {listed}. Give them as separate sources, as in "
            f"{source.name}=FILE {source.name}_2=FILE."
        )
    ((scale, resampling),) = choices
    declared = Source(source.name, tuple((file,) for file in source.files), resampling=resampling, scale=scale)
    aligned = open_source(declared, grid)
    coverage = min(_coverage(head.grid, grid) for head in source.headers)
    resampled = [part.alignment.resampling for part in aligned.parts if part.alignment.kind == "resampled"]
    return PlacedSource(source, aligned, scale, resampled[0] if resampled else None, coverage)


def _finer(file: RasterFile, head: Header, grid: GeoBox) -> tuple[int, str | None]:
    """Return the scale of a file, and the resampling if the default does not suit a file finer than the grid."""
    own = head.grid
    if own.crs is None:
        return _image_scale((own.shape[0], own.shape[1]), (grid.shape[0], grid.shape[1])) or 1, None
    alignment = align(file, head, grid, resampling=None)
    if alignment.kind == "exact":
        return 1, None
    finer = 1 / min(alignment.reach)
    for scale in SCALES:
        if own.crs == grid.crs and all(abs(1 / reach / scale - 1) < 0.01 for reach in alignment.reach):
            return scale, None
    return 1, "average" if finer > AVERAGED else None


def _coverage(own: GeoBox, grid: GeoBox) -> float:
    """Return the share of a grid that another one covers; 1 for images without a CRS, which are aligned pixel by pixel.

    Computed in the file's CRS, because the extent of a global file cannot be transformed to every grid's.
    """
    if own.crs is None or grid.crs is None:
        return 1.0
    crs, extent = own.crs.to_wkt(), extent_of(own)
    same, around = same_crs(own.crs, grid.crs), cycle(own.crs.to_wkt())
    places = [extent_of(grid)] if same else extents_in(grid, crs)
    if around is not None and places is not None and (len(places) > 1 or list(shifts(extent, places[0], around)) != [0]):
        area = sum(place.area for place in places)
        return min(1.0, sum(p.shared(extent.shifted(s)) for p in places for s in shifts(extent, p, around)) / area)
    wanted = grid.extent if same else grid.extent.to_crs(own.crs, resolution="auto")
    return float(wanted.geom.intersection(own.extent.geom).area / wanted.area)
