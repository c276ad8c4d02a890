"""Maps of a prepared scene in this process, on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import torch
from numpy.typing import NDArray

from jobs.bench.map import MapsElsewhere
from jobs.config.config import Config
from jobs.map.stage import map_scenes
from jobs.workflow.workspace import Workspace
from mibf.device import Precision
from mibf.transfer import to_host
from pipeline.grid import tile_grid
from pipeline.io.lease import Lease
from pipeline.maps.predictor import RowMemoryError, TilePredictor
from pipeline.maps.products import MAP_PRODUCTS, SET_PRODUCTS, MapDtype, product
from pipeline.store.patch_store import PatchStore
from tests.support.gpu import DEVICE, ON_GPU, PRECISIONS, Figures

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


def mapped(config: Config, folder: Path, **changes: Any) -> dict[str, NDArray[Any]]:
    """Map a scene with all products but prediction sets, for which the model is not calibrated; return their pixels."""
    products = tuple(name for name in MAP_PRODUCTS if name not in SET_PRODUCTS)
    config = config.model_copy(update={"map": config.map.model_copy(update={"products": products} | changes)})
    workspace = Workspace.of(config)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(folder))
    map_scenes(config, elsewhere, "", Lease())
    found = {}
    for path in sorted(Path(elsewhere.map_folder(config.scenes[0].name)).glob("*.tif")):
        with rasterio.open(path) as dataset:
            found[path.stem] = dataset.read()
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_map_is_the_same_bytes_for_any_tile_size(precision: Precision, small: Config, tmp_path: Path) -> None:
    reference = mapped(small, tmp_path / "64", tile_size=64, precision=precision)
    assert {"class", "confidence"} <= set(reference)
    for side in (128, 256):
        found = mapped(small, tmp_path / str(side), tile_size=side, precision=precision)
        assert found.keys() == reference.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, reference[name], err_msg=f"{name}, tiles of {side}")


@pytest.mark.skipif(not ON_GPU, reason="needs a limit of device memory")
def test_out_of_memory_halves_the_rows_and_maps_the_tile(small: Config, figures: Figures) -> None:
    store = PatchStore(Workspace.of(small).store(small.scenes[0].name))
    tile = tile_grid("random", store.shape, 128)[0]
    predictor = TilePredictor(Workspace.of(small).read_bundle(), products=[product("class")], precision="float32")
    content, before = predictor.read(store, tile), predictor.rows
    expected = predictor.compute(content)["class"]
    torch.cuda.empty_cache()
    # Enough for some rows at a time; all rows of a cell take about 400 MB.
    allowed = torch.cuda.memory_allocated() + (1 << 27)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        found = predictor.compute(content)["class"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    figures.add("out of memory", rows_before=before, rows_after=predictor.rows)
    assert predictor.rows < before
    assert (found == expected).mean() > 0.999


@pytest.mark.skipif(not ON_GPU, reason="needs a limit of device memory")
def test_too_little_memory_for_one_row_is_an_error_that_says_so(small: Config) -> None:
    store = PatchStore(Workspace.of(small).store(small.scenes[0].name))
    tile = tile_grid("random", store.shape, 128)[0]
    predictor = TilePredictor(Workspace.of(small).read_bundle(), products=[product("class")], precision="float32")
    content = predictor.read(store, tile)
    expected = predictor.compute(content)["class"]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (1 << 20)) / total)
    try:
        with pytest.raises(RowMemoryError, match="one row of pixels at a time does not fit into the memory of cuda"):
            predictor.compute(content)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert predictor.rows == 1
    assert (predictor.compute(content)["class"] == expected).mean() > 0.999


def test_codes_encoded_on_the_device_are_those_of_the_cpu() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**32, 1 << 20, np.uint32).view(np.float32)
    for name in ("confidence", "probabilities", "entropy", "mutual_information", "kl", "gate"):
        for dtype in get_args(MapDtype):
            layer = product(name, dtype)  # type: ignore[arg-type]  # a name from the list
            halves = ((np.arange(1 << 16) + 0.5) * layer.scale).astype(np.float32)
            for each in (values, halves, np.nextafter(halves, np.float32(-1))):
                (found,) = to_host([layer.codes(torch.from_numpy(each).to(DEVICE))])
                np.testing.assert_array_equal(layer.stored(found), layer.encode(each), err_msg=f"{name}, {dtype}")


def test_prediction_sets_on_the_device_are_those_of_the_cpu(small: Config) -> None:
    bundle = Workspace.of(small).read_bundle()
    classes = bundle.spec.classes
    probabilities = torch.randn(classes, 64, 64).mul(3).softmax(dim=0)
    probabilities[:, 5, :9] = torch.nan
    products = [product(name, classes=classes) for name in ("set_size", "prediction_set")]
    predictor = TilePredictor(bundle, products=products, precision="float32", set_thresholds=[0.1] * classes)
    for layer in products:
        ours, expected = to_host([predictor._sets(layer, probabilities.to(DEVICE))]), predictor._sets(layer, probabilities)
        np.testing.assert_array_equal(layer.stored(ours[0]), layer.stored(expected))


def test_ledger_names_the_device(small: Config, tmp_path: Path) -> None:
    workspace = Workspace.of(small)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(tmp_path))
    map_scenes(small, elsewhere, "", Lease())
    segments = Path(elsewhere.map_folder(small.scenes[0].name), "ledger").rglob("*.parquet")
    workers = {worker for path in segments for worker in pyarrow.parquet.read_table(path)["worker"].to_pylist()}
    assert {worker.rpartition("/")[2] for worker in workers if worker} == {DEVICE.type}
