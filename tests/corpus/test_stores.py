"""Files of the corpus are prepared to a patch store with labels: what training reads is what the files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.labels import Labels, open_labels
from pipeline.scenes.source import Source, open_source
from pipeline.store.build import PreparedScene, build_store
from pipeline.store.patch_store import PatchStore
from tests.corpus.case import COLUMNS, ROWS, Case, Truth
from tests.corpus.oracle import EVERYTHING, north_up
from tests.corpus.table import all_cases, write
from tests.support.scenes import write_raster

#: One in this many cases of the corpus is prepared.
EVERY = 30
CASES = [*all_cases()[::EVERY]]
CLASSES = (ClassName(1, "water", "#0072b2"), ClassName(2, "forest", "#009e73"))
#: Class ids, some of which no class has been given to.
LABELS = (
    np.where(np.arange(ROWS * COLUMNS) % 5 == 0, 255, np.arange(ROWS * COLUMNS) % 2 + 1)
    .reshape(ROWS, COLUMNS)
    .astype(np.uint8)
)


class Training:
    """A split with training samples alone."""

    def codes(self, window: Window, labels: np.ndarray) -> np.ndarray:
        """All pixels are for training."""
        del window
        return np.full(labels.shape, CODES["train"], np.uint8)


def prepare(folder: Path, case: Case, layers: tuple[tuple[RasterFile, ...], ...]) -> tuple[PatchStore, np.ndarray]:
    """Build the store of a scene whose grid is north up, with labels, and return it with the labels that it must have."""
    affine = north_up(np.zeros((1, ROWS, COLUMNS)), np.ones((ROWS, COLUMNS), bool), case.affine)[2]
    grid = GeoBox((ROWS, COLUMNS), type(case.affine)(*affine[:6]), case.wkt)
    write_raster(folder / "labels.tif", LABELS[None], transform=grid.affine, crs=case.wkt, nodata=255)
    labels = open_labels(Labels(str(folder / "labels.tif")), grid, CLASSES)
    source = open_source(Source("odd", layers, resampling="nearest"), grid)
    scene = PreparedScene("odd", grid, (source,), labels, Training(), CLASSES, 128)
    build_store(ThreadExecutor(1), scene, str(folder / "odd.zarr"), fingerprint="odd")
    return PatchStore(str(folder / "odd.zarr")), LABELS


def check_store(case: Case, store: PatchStore, truth: Truth, labels: np.ndarray) -> None:
    """Compare values, validity, labels and samples of a store with what is known of a case."""
    values, valid = store.read_source("odd", EVERYTHING)
    wanted, there, _ = north_up(truth.values, truth.valid, case.affine)
    np.testing.assert_array_equal(valid, there)
    kept = wanted.dtype.kind in "iu" and wanted.dtype.itemsize <= 2
    assert values.dtype == (wanted.dtype if kept else np.float32)
    np.testing.assert_allclose(values[:, there], wanted[:, there].astype(np.float32), rtol=1e-6)
    assert (values[:, ~there] == 0).all()
    np.testing.assert_array_equal(store.array("labels")[:], labels)
    np.testing.assert_array_equal(store.array("split")[:] == CODES["train"], there & (labels != UNLABELLED))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_store_holds_the_pixels_of_the_file(case: Case, tmp_path: Path) -> None:
    file, truth = write(tmp_path, case)
    store, labels = prepare(tmp_path, case, ((file,),))
    check_store(case, store, truth, labels)


@pytest.mark.parametrize("nodata", ["in-range", "mask", "per-band"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_store_of_a_mosaic_holds_the_pixels_of_its_tiles(dtype: str, nodata: str, tmp_path: Path) -> None:
    case = Case("vrt", "vrt", dtype, nodata)
    file, truth = write(tmp_path, case)
    tiles = []
    for name, (column, width) in {"west": (0, 4), "east": (3, 4)}.items():  # they share a column
        cut = RasterFile(str(tmp_path / f"{name}.vrt"), nodata=file.nodata)
        text = (tmp_path / "a.vrt").read_text()
        text = text.replace(f'rasterXSize="{COLUMNS}"', f'rasterXSize="{width}"').replace(
            "400000.0", str(400000.0 + 10 * column)
        )
        size = f'xSize="{width}" ySize="{ROWS}"'
        moved = f'<SrcRect xOff="{column}" yOff="0" {size}/><DstRect xOff="0" yOff="0" {size}/>'
        Path(cut.url).write_text(text.replace("</SimpleSource>", f"{moved}</SimpleSource>"))
        tiles.append(cut)
    store, labels = prepare(tmp_path, case, (tuple(tiles),))
    check_store(case, store, truth, labels)
