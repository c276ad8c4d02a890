"""Report images of map products, for every product and storage dtype."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
import zarr

from jobs.report.pictures import BACKGROUND
from jobs.report.stage import PICTURE, PICTURE_CHUNKS, _product_picture, read_bands, subsampling
from jobs.workflow.workspace import Workspace
from pipeline.maps.products import MAP_PRODUCTS, MapDtype, product
from pipeline.publishing.published_map import PublishedMap
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import CHUNK
from tests.support.commands import run
from tests.support.raster_files import build_raster
from tests.support.scenes import COLUMNS, ROWS, SmallScene, write_raster


def test_report_and_model_card_of_a_leaking_split_claim_no_unseen_ground(scene: SmallScene) -> None:
    write_raster(scene.folder / "split.tif", np.tile(np.arange(COLUMNS) % 3 + 1, (1, ROWS, 1)).astype(np.uint8))
    changes: dict[str, Any] = {
        "split": {"method": "raster", "url": str(scene.folder / "split.tif")},
        "train": {"epochs": 1, "batch_size": 256, "workers": 0},
        "map": {"workers": 0},
    }
    run(scene, command="run", **changes)
    work = scene.folder / "work"
    page = (work / "report/index.html").read_text()
    card = (work / "models/main/README.md").read_text()
    caveat = "he raster split leaks: up to 100% of a scene"
    assert caveat in page
    assert caveat in card
    assert caveat in json.loads((work / "runs/main/evaluation.json").read_text())["caveat"]
    assert "not trained on" not in page + card

    # Test samples in a single block have no intervals, and evaluations of earlier versions lack the keys.
    path = work / "runs/main/evaluation.json"
    evaluation = json.loads(path.read_text()) | {"intervals": None}
    for row in evaluation["classes"]:
        row.pop("f1_interval")
    path.write_text(json.dumps(evaluation))
    run(scene, command="report", **changes)
    page = (work / "report/index.html").read_text()
    assert "overall accuracy" in page
    assert "from a bootstrap" not in page


@pytest.mark.parametrize("dtype", get_args(MapDtype))
def test_product_images_have_the_expected_pixels_and_captions(
    prepared: tuple[SmallScene, Workspace], tmp_path: Path, dtype: MapDtype
) -> None:
    store = PatchStore(prepared[1].store("small"))
    products = [product(name, dtype, sources=2) for name in MAP_PRODUCTS]
    layers = {}
    for shown in products:
        if shown.name in ("class", "second_class", "sources"):
            codes = np.full((1, ROWS, COLUMNS), 2, shown.dtype)
        else:
            codes = shown.encode(np.full((2, ROWS, COLUMNS), 0.5))
        codes[:, :10] = shown.nodata
        layers[shown.name] = codes
    (tmp_path / "map").mkdir()
    for shown in products:
        names = [str(i) for i in range(len(layers[shown.name]))]
        build_raster(
            tmp_path / "map",
            shown,
            layers[shown.name],
            block=512,
            grid=store.grid,
            names=names,
            classes=store.classes,
            tags={},
        )
    captions = []
    for shown in products:
        caption, url = _product_picture(PublishedMap(str(tmp_path / "map")), shown, store, store.classes, 2)
        captions.append(caption)
        with rasterio.MemoryFile(base64.b64decode(url.partition(",")[2])) as file, file.open() as picture:
            pixels = picture.read()[:3]
        assert pixels.shape == (3, ROWS // 2, COLUMNS // 2)
        assert (pixels[:, :5] == np.array(BACKGROUND)[:, None, None]).all()
        assert (pixels[:, 5:] != np.array(BACKGROUND)[:, None, None]).any(axis=0).all()
    assert captions == [
        "map",
        "second class",
        "confidence: 0.33 (dark) to 1 (bright)",
        "probabilities, band 1: 0 (dark) to 0.50 (bright)",
        "entropy: 0 (dark) to 0.50 nat (bright)",
        "mutual information: 0 (dark) to 0.50 nat (bright)",
        "KL term: 0 (dark) to 0.50 nat (bright)",
        "gate, band 1: 0 (dark) to 0.50 (bright)",
        "sources with data: 0 (dark) to 1 (bright)",
        "classes in the prediction set: 0 (dark) to 1 (bright)",
        "classes in the prediction set: 0 (dark) to 1 (bright)",
    ]


@pytest.mark.parametrize("side", [1, 640, 641, 20_480, 20_481, 100_000, 1_000_000])
def test_picture_reads_a_limited_number_of_chunks_and_has_a_limited_size(side: int) -> None:
    step, enlarged = subsampling((side, side // 2 + 1))
    positions = np.arange(0, side, step)
    assert len(np.unique(positions // CHUNK)) <= PICTURE_CHUNKS
    assert len(positions) * enlarged <= PICTURE + enlarged
    assert len(positions) * enlarged > min(side, PICTURE // 2) - enlarged
    assert step % enlarged == 0, "the pictures of the map have the finer step"


def test_picture_of_many_bands_takes_the_memory_of_those_shown() -> None:
    shape = (400, 512, 512)
    array = zarr.create_array({}, shape=shape, chunks=(400, 32, 512), dtype="uint8", fill_value=0)
    rows = np.random.default_rng(0).integers(1, 255, (400, 32, 512)).astype(np.uint8)
    array[:, 32:64] = rows
    tracemalloc.start()
    try:
        found = read_bands(array, [300, 200, 0], 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    wanted = np.zeros((3, 256, 256), np.uint8)
    wanted[:, 16:32] = rows[[300, 200, 0], ::2, ::2]
    np.testing.assert_array_equal(found, wanted)
    assert peak < array.nbytes / 4, "every second pixel of all bands is a quarter of the array"
