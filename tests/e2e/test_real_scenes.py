"""Pixel-by-pixel checks on real scenes: the embedded sample and, where available, the example scenes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.io
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT

from jobs.config.loader import load
from jobs.inspection.verify import verify
from jobs.prepare.stage import prepare
from jobs.sample import demo_config
from jobs.workflow.manifest import Manifest
from jobs.workflow.runner import run_stage
from pipeline.codes import UNLABELLED
from pipeline.store.patch_store import PatchStore
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def test_embedded_sample_is_resampled_to_ten_metres(tmp_path: Path) -> None:
    config = load(demo_config(), overrides=[f"workspace={tmp_path}"])
    manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
    store = PatchStore(manifest.outputs[0])
    assert store.shape == (768, 1536)
    assert [(s.name, s.bands) for s in store.sources] == [("s2_10m", 4), ("s2_20m", 6)]
    with rasterio.open(Path(demo_config()).parent / "B03.jp2") as dataset:
        assert (store.array("sources/s2_10m")[1] == dataset.read(1)).all(), "a source on the grid is copied unchanged"
    with rasterio.open(Path(demo_config()).parent / "B11.jp2") as dataset:
        coarse = dataset.read(1).astype(float)
    fine = store.array("sources/s2_20m")[4]
    # A 10 m pixel's centre is a quarter of a 20 m pixel from that pixel's centre: bilinear weights of 3/4 and 1/4 per axis.
    rows = 0.75 * coarse[1:] + 0.25 * coarse[:-1]
    wanted = 0.75 * rows[:, 1:] + 0.25 * rows[:, :-1]
    assert np.abs(fine[2::2, 2::2] - wanted).max() < 0.01
    counts = manifest.figures["counts"]
    assert all(n > 0 for subset in counts.values() for n in subset.values())
    assert sum(sum(subset.values()) for subset in counts.values()) < 427_000  # labelled pixels minus the buffers
    assert manifest.figures["overlap"] == {"brandenburg": 0.0}


@pytest.fixture
def example(
    shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], tuple[PatchStore, Path, Manifest]]:
    """Return a function that prepares an example: its store, the folder of its files and the manifest."""

    def prepared(name: str, folder: str) -> tuple[PatchStore, Path, Manifest]:
        files = shared(f"data/{folder}")
        monkeypatch.setenv("DATA", str(files.parent))
        config = load(str(ROOT / f"examples/{name}.yaml"), overrides=[f"workspace={tmp_path}"])
        manifest, _ = run_stage(config, "prepare", prepare, keep_current=False)
        (checked,) = verify(config).stores
        assert checked.broken == []
        return PatchStore(manifest.outputs[0]), files, manifest

    return prepared


Example = Callable[[str, str], tuple[PatchStore, Path, Manifest]]


def read(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return np.asarray(dataset.read())


def full(store: PatchStore, name: str) -> np.ndarray:
    return np.asarray(store.array(name)[:])


def test_zion_store_equals_gdal_warp_of_its_files(example: Example) -> None:
    """Three coordinate systems; the reference is rasterio warping each complete file. The counts of split.tif are known."""
    store, files, manifest = example("zion", "zion")
    totals = {subset: sum(counts.values()) for subset, counts in manifest.figures["counts"].items()}
    assert totals == {"train": 717_300, "validation": 254_340, "test": 410_544}
    assert manifest.figures["overlap"] == {"zion": 0.0}
    optical = np.concatenate([read(files / f"landsat_b{n}.tif") for n in (2, 3, 4, 5)])
    valid = (optical != 65535).all(axis=0)
    assert (full(store, "valid/optical") == valid).all()
    assert (full(store, "sources/optical") == np.where(valid, optical, 0)).all()

    def warped(name: str, resampling: Resampling) -> np.ndarray:
        with (
            rasterio.open(files / "landsat_b2.tif") as grid,
            rasterio.open(files / name) as dataset,
            WarpedVRT(
                dataset,
                crs=grid.crs,
                transform=grid.transform,
                height=grid.height,
                width=grid.width,
                resampling=resampling,
                nodata=np.nan,
                dtype="float32",
                tolerance=1e-6,
            ) as view,
        ):
            return np.asarray(view.read(1))

    elevation = warped("srtm.tif", Resampling.bilinear)
    assert (full(store, "valid/elevation") == np.isfinite(elevation)).all()
    assert (full(store, "sources/elevation")[0] == np.nan_to_num(elevation)).all()
    assert 0.98 < np.isfinite(elevation).mean() < 0.99
    labels = warped("nlcd.tif", Resampling.nearest)
    assert (full(store, "labels") == np.where(np.isfinite(labels), labels, UNLABELLED)).all()
    assert (full(store, "split") == np.where(np.isfinite(labels) & valid, read(files / "split.tif")[0], 0)).all()


def test_terramind_store_equals_its_files(example: Example) -> None:
    store, files, _ = example("terramind", "terramind_282D_485L_3_3")
    for source, name in (("optical", "s2_l2a"), ("radar", "s1_rtc"), ("elevation", "dem")):
        values = read(files / f"{name}.tif")
        assert (full(store, f"sources/{source}") == values.astype(store.array(f"sources/{source}").dtype)).all()
        assert full(store, f"valid/{source}").all()
    assert store.array("sources/optical").dtype == np.int16
    assert (full(store, "labels") == read(files / "lulc.tif")[0]).all()


def test_pleiades_store_keeps_panchromatic_pixels_and_reports_shift(example: Example) -> None:
    """Images without a CRS whose corners do not match: aligned pixel to pixel at a ratio of 4. Their shift is reported."""
    store, files, manifest = example("pleiades", "pleiades_toulouse")
    assert [(s.name, s.bands, s.scale) for s in store.sources] == [("multispectral", 4, 1), ("panchromatic", 1, 4)]
    assert (full(store, "sources/multispectral") == read(files / "phr_xs.tif")).all()
    assert (full(store, "sources/panchromatic") == read(files / "phr_pan.tif")).all()
    assert (full(store, "labels") == UNLABELLED).all()
    shift = manifest.figures["stores"]["toulouse"]["shifts"]["panchromatic"]
    assert shift["credible"]
    assert 0.75 < np.hypot(shift["dy"], shift["dx"]) < 2


def test_muufl_store_equals_its_matlab_arrays(example: Example) -> None:
    store, files, _ = example("muufl_lidar", "muufl_lidar_gt")
    lidar = scipy.io.loadmat(files / "data_SAR_HR.mat")["lidar_data"]
    assert (full(store, "sources/height")[0] == lidar[..., 0]).all()
    assert (full(store, "sources/intensity")[0] == lidar[..., 1]).all()
    labels = scipy.io.loadmat(files / "gt.mat")["labels"]
    assert (full(store, "labels") == np.where(labels < 0, UNLABELLED, labels)).all()


def test_indian_pines_is_divided_into_two_sources_with_the_published_split(example: Example) -> None:
    store, files, manifest = example("indian_pines", "indian_pines")
    cube = read(files / "cube.tif")
    assert (full(store, "sources/visible") == cube[:100]).all()
    assert (full(store, "sources/infrared") == cube[100:]).all()
    truth = read(files / "gt.tif")[0]
    assert (full(store, "labels") == np.where(truth == 0, UNLABELLED, truth)).all()
    for position, c in enumerate(store.classes):
        assert manifest.figures["counts"]["train"][c.name] == round(0.1 * (truth == position + 1).sum())
    assert manifest.figures["overlap"]["indian_pines"] > 0.99
