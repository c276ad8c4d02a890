"""Write synthetic scenes as cloud-optimised GeoTIFFs, window by window, and count what was written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from pipeline.grid import Window, windows
from pipeline.parallel.cpu_count import cpu_count
from pipeline.scenes.synthetic import BLOCK, NODATA, SyntheticScene

#: Side of the temporary file's tiles; small, because GDAL reads full tiles of all bands for each band of an overview.
PLAIN_TILE = 128
#: Maximum bytes of a tile of a cloud-optimised file, all bands together; with more bands, tiles are smaller.
TILE_BYTES = 2**23


@dataclass(frozen=True)
class WrittenScene:
    """What was written: the files by name, and pixel counts on the reference grid."""

    files: dict[str, Path]
    classes: dict[int, int]  #: pixels by class id
    labelled: dict[int, int]  #: labelled pixels by class id
    missing: dict[str, int]  #: reference pixels without data by source

    def single_source_accuracy(self, scene: SyntheticScene) -> dict[str, float]:
        """Per source, the best possible accuracy when only its bit and the class shares are known."""
        best = {}
        for k, source in enumerate(scene.sources):
            by_bit = [[n for c, n in self.classes.items() if scene.class_bits(c)[k] == bit] for bit in (0, 1)]
            best[source.name] = sum(map(max, by_bit)) / sum(self.classes.values())
        return best


def write_steps(scene: SyntheticScene) -> int:
    """Number of steps that `write_scene` reports: each window of each file, once computed and once compressed."""
    shapes = [scene.source_shape(k) for k in range(len(scene.sources))] + [scene.shape_yx] * 2
    return 2 * sum(-(-rows // BLOCK) * -(-columns // BLOCK) for rows, columns in shapes)


def bytes_needed(scene: SyntheticScene) -> int:
    """Upper bound of the peak disk space for writing a scene; noise hardly compresses.

    All files with their overviews, plus an uncompressed copy of the pixels and overviews of the largest one.
    """
    raw = [2 * source.bands * source.scale**2 * scene.shape_yx[0] * scene.shape_yx[1] for source in scene.sources]
    return (sum(raw) + max(raw)) * 4 // 3 + scene.shape_yx[0] * scene.shape_yx[1] // 2 + 2**20


def write_scene(
    scene: SyntheticScene,
    folder: Path,
    *,
    transform: Affine,
    crs: str,
    colors: dict[int, tuple[int, int, int, int]],
    each: Callable[[int], None] = lambda count: None,
) -> WrittenScene:
    """Write a scene into a folder as cloud-optimised GeoTIFFs: SOURCE.tif for each source, labels.tif and truth.tif.

    Pixels are first written window by window to a temporary file, so memory is bounded by GDAL's cache, set low here, and
    a window of all bands of a source. Files get their final names only when all are complete; otherwise none is left.

    Args:
        scene: the scene to write.
        folder: existing output folder.
        transform: from columns and rows of the reference grid to coordinates.
        crs: CRS of these coordinates, in any notation that GDAL accepts.
        colors: red, green, blue and alpha of each class id, 0 to 255.
        each: called with the number of newly completed steps, see `write_steps`.
    """
    counted = _CountedScene(scene)
    georeference: dict[str, Any] = {"crs": crs}
    with (
        rasterio.Env(GDAL_CACHEMAX=64 * 2**20),
        tempfile.TemporaryDirectory(prefix=".mibf-synth-", dir=folder) as temporary,
    ):
        done: dict[str, Path] = {}
        for k, source in enumerate(scene.sources):
            name, finer = f"{source.name}.tif", Affine.scale(1 / source.scale)
            placed = georeference | {"transform": transform * finer, "nodata": NODATA}
            bands = [f"{source.name} band {band + 1}" for band in range(source.bands)]
            done[name] = _write_cog(
                Path(temporary) / name,
                scene.source_shape(k),
                partial(counted.values, k),
                dtype="uint16",
                georeference=placed,
                bands=bands,
                overviews="average",
                each=each,
            )
        for name, make in (("labels", counted.labels), ("truth", counted.truth)):
            done[f"{name}.tif"] = _write_cog(
                Path(temporary) / f"{name}.tif",
                scene.shape_yx,
                make,
                dtype="uint8",
                georeference=georeference | {"transform": transform},
                bands=[name],
                overviews="nearest",
                colors=colors,
                each=each,
            )
        files = {name: path.replace(folder / name) for name, path in done.items()}
    return counted.written(files)


class _CountedScene:
    """The windows of a scene as (band, y, x), with pixel counts of all windows so far; each window is to be read once."""

    def __init__(self, scene: SyntheticScene) -> None:
        self._scene = scene
        self._missing = [0] * len(scene.sources)  # pixels without data
        self._labelled, self._classes = np.zeros(256, np.int64), np.zeros(256, np.int64)

    def values(self, source: int, window: Window) -> NDArray[np.uint16]:
        values = self._scene.values(source, window)
        self._missing[source] += int((values[0] == NODATA).sum()) if source and self._scene.nodata else 0
        return values

    def labels(self, window: Window) -> NDArray[np.uint8]:
        return _count_classes(self._scene.labels(window), self._labelled)

    def truth(self, window: Window) -> NDArray[np.uint8]:
        return _count_classes(self._scene.truth(window), self._classes)

    def written(self, files: dict[str, Path]) -> WrittenScene:
        """The result of writing these files."""
        ids, sources = self._scene.class_ids, self._scene.sources
        labelled, classes = ({c: int(counts[c]) for c in ids} for counts in (self._labelled, self._classes))
        missing = {s.name: n // s.scale**2 for s, n in zip(sources, self._missing, strict=True)}
        return WrittenScene(files, classes, labelled, missing)


def _count_classes(classes: NDArray[np.uint8], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Add a window's classes (y, x) to the pixel counts by class id; return it as (1, y, x)."""
    counts += np.bincount(classes.ravel(), minlength=256)
    return classes[None]


def _write_cog(
    path: Path,
    shape_yx: tuple[int, int],
    make: Callable[[Window], NDArray[Any]],
    *,
    dtype: str,
    georeference: dict[str, Any],
    bands: Sequence[str],
    overviews: str,
    each: Callable[[int], None],
    colors: dict[int, tuple[int, int, int, int]] | None = None,
) -> Path:
    """Write one raster, computed window by window, as a cloud-optimised GeoTIFF, via a temporary plain one next to it."""
    plain = path.with_suffix(".plain.tif")
    profile = georeference | {
        "driver": "GTiff",
        "height": shape_yx[0],
        "width": shape_yx[1],
        "count": len(bands),
        "dtype": dtype,
        "tiled": True,
        "blockxsize": PLAIN_TILE,
        "blockysize": PLAIN_TILE,
        "bigtiff": "if_safer",
    }
    parts = windows(shape_yx, BLOCK)
    pixel = len(bands) * np.dtype(dtype).itemsize
    tile = next(side for side in (512, 256, 128) if side**2 * pixel <= TILE_BYTES or side == 128)
    with rasterio.open(plain, "w", **profile) as target:
        for band, name in enumerate(bands, start=1):
            target.set_band_description(band, name)
        if colors is not None:
            target.write_colormap(1, colors)
        for window in parts:
            target.write(make(window), window=rasterio.windows.Window(window.x, window.y, window.width, window.height))
            each(1)
    rasterio.shutil.copy(
        plain,
        path,
        driver="COG",
        compress="zstd",
        level=1,
        predictor=2,
        blocksize=tile,
        overviews="auto",
        overview_resampling=overviews,
        bigtiff="if_safer",
        num_threads=cpu_count(),
    )
    plain.unlink()
    valid, errors, _ = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise RuntimeError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join(errors)}")
    each(len(parts))
    return path
