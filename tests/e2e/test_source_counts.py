"""Scenes with one source and with twelve, of 400 bands, from `mibf init` or a configuration to the report. Without Ray."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke
from tests.support.scenes import CLASSES, write_raster

pytestmark = pytest.mark.slow
SIDE = 40
#: Overrides with which a written configuration trains in seconds.
QUICK = [
    "train.recipe=standard", "train.steps=3", "train.batch_size=32", "train.workers=0", "train.threads=1", "model.patch=5",
    "split.block=10", "split.buffer=4", "baselines.enabled=false", "map.workers=0",
]  # fmt: skip  # a list of names: one per line would fill a page
#: The sentence on a network of one source.
ALONE = "with one source, the network has neither a relation between sources nor noise adaptation"


def overrides(*changes: str) -> list[str]:
    return [part for change in (*QUICK, *changes) for part in ("--set", change)]


def write_labels(folder: Path) -> str:
    """Write labels of three classes in squares of 4 pixels, on every fifth pixel."""
    squares = np.random.default_rng(0).integers(0, 3, (SIDE // 4, SIDE // 4))
    truth = np.array([1, 2, 5], np.uint8)[np.kron(squares, np.ones((4, 4), int))]
    truth.flat[np.arange(truth.size) % 5 > 0] = 0
    return str(write_raster(folder / "labels.tif", truth[None], nodata=0))


def values_of(bands: int, seed: int) -> np.ndarray:
    """Random values of a source; a square of 8 x 8 pixels, at another place for each seed, has no data (0)."""
    values = np.random.default_rng(seed).integers(1, 4000, (bands, SIDE, SIDE)).astype(np.uint16)
    row, column = divmod(seed, 5)
    values[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
    return values


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration that `mibf init` wrote for one raster of 400 bands."""
    folder = tmp_path_factory.mktemp("single")
    cube = write_raster(folder / "cube.tif", values_of(400, 7), nodata=0)
    written = invoke(
        "init", str(cube), "--labels", write_labels(folder), "--output", str(folder / "mibf.yaml"),
        "--workspace", str(folder / "work"),
    )  # fmt: skip  # options stay beside their values
    assert "400 bands of uint16" in written.stdout
    return folder


def test_one_raster_of_400_bands_is_configured_trained_mapped_and_reported(single: Path) -> None:
    (scene,) = yaml.safe_load((single / "mibf.yaml").read_text())["scenes"]
    assert list(scene["sources"]) == ["cube"]
    shown = invoke("run", str(single / "mibf.yaml"), *overrides("map.products=[class, confidence, sources]")).stdout
    assert shown.count(ALONE) == 1
    model = json.loads((single / "work/models/main/model.json").read_text())
    assert model["network"]["without"] == ["noise", "relation"]
    for page in ("models/main/README.md", "report/index.html"):
        text = unescape((single / "work" / page).read_text())
        assert text.count(ALONE[0].upper() + ALONE[1:]) == 1, page
    has_data = values_of(400, 7)[0] > 0
    folder = single / "work/maps" / scene["name"] / "main"
    with rasterio.open(folder / "sources.tif") as mask, rasterio.open(folder / "class.tif") as classes:
        np.testing.assert_array_equal(mask.read(1), has_data.astype(np.uint8))
        np.testing.assert_array_equal(classes.read_masks(1) > 0, has_data)


@pytest.mark.parametrize("kind", ["boosting", "linear"])
def test_classifiers_of_one_source_are_trained_evaluated_and_mapped(single: Path, kind: str) -> None:
    changes = overrides(f"model.kind={kind}", f"run={kind}")
    shown = invoke("run", str(single / "mibf.yaml"), *changes).stdout
    assert ALONE not in shown, "it has no network"
    card = (single / "work/models" / kind / "README.md").read_text()
    assert "from one source." in card
    assert ALONE[1:] not in card


def test_twelve_sources_of_400_bands_are_prepared_trained_evaluated_mapped_and_reported(tmp_path: Path) -> None:
    bands = [1] * 10 + [200, 190]
    sources: dict[str, Any] = {
        f"s{i}": {
            "url": str(write_raster(tmp_path / f"s{i}.tif", values_of(count, i), nodata=0)),
            "missing": "fill" if i else "exclude",
        }
        for i, count in enumerate(bands)
    }
    config = tmp_path / "twelve.yaml"
    values = {
        "name": "twelve",
        "workspace": str(tmp_path / "work"),
        "scenes": [
            {"name": "twelve", "grid": {"like": "s0"}, "sources": sources, "labels": {"url": write_labels(tmp_path)}}
        ],
        "classes": CLASSES,
        "map": {"products": ["class", "gate", "sources"]},
    }
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    shown = invoke("run", str(config), *overrides()).stdout
    assert "12 sources" in shown
    assert ALONE not in shown
    present = np.stack([values_of(1, i)[0] > 0 for i in range(12)])
    folder = tmp_path / "work/maps/twelve/main"
    with rasterio.open(folder / "sources.tif") as dataset:
        assert dataset.dtypes == ("uint16",)
        np.testing.assert_array_equal(dataset.read(1), (present * 2 ** np.arange(12)[:, None, None]).sum(axis=0))
    with rasterio.open(folder / "gate.tif") as dataset:
        assert dataset.descriptions == tuple(f"s{i}" for i in range(12))
        gate = dataset.read(masked=True) * dataset.scales[0]
    np.testing.assert_array_equal(~gate.mask, np.broadcast_to(present[0], gate.shape))
    np.testing.assert_allclose(gate.sum(axis=0).compressed(), 1, atol=12 * 0.5e-4)
    item = json.loads((folder / "item.json").read_text())
    assert item["assets"]["sources"]["data_type"] == "uint16"
    offsets = [bit["offset"] for bit in item["assets"]["sources"]["classification:bitfields"]]
    assert offsets == list(range(12))


def test_embeddings_of_64_and_128_bands_are_prepared_trained_and_mapped_together(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    alphaearth = drawn.integers(-127, 128, (64, SIDE, SIDE)).astype(np.int8)
    alphaearth[:, :8, :8] = -128
    tessera, scales = drawn.integers(-127, 128, (128, SIDE, SIDE)).astype(np.int8), drawn.random((1, SIDE, SIDE))
    files = {"alphaearth": alphaearth, "tessera": tessera, "scales": scales.astype(np.float32)}
    urls = {name: str(write_raster(tmp_path / f"{name}.tif", values)) for name, values in files.items()}
    sources = {
        "alphaearth": {"url": urls["alphaearth"], "decode": "alphaearth"},
        "tessera": {"url": urls["tessera"], "decode": {"tessera": {"scales": urls["scales"]}}},
    }
    scene = {"name": "both", "grid": {"like": "alphaearth"}, "sources": sources, "labels": {"url": write_labels(tmp_path)}}
    values = {"name": "both", "workspace": str(tmp_path / "work"), "scenes": [scene], "classes": CLASSES}
    config = tmp_path / "both.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    invoke("run", str(config), *overrides())
    store = PatchStore(str(tmp_path / "work/stores/both.zarr"))
    valid = alphaearth[0] > -128
    for name, wanted in (
        ("alphaearth", np.sign(alphaearth) * (alphaearth / 127.5) ** 2),
        ("tessera", tessera * files["scales"]),
    ):
        np.testing.assert_allclose(store.array(f"sources/{name}")[:][:, valid], wanted[:, valid], rtol=1e-6)
    with rasterio.open(tmp_path / "work/maps/both/main/class.tif") as classes:
        np.testing.assert_array_equal(classes.read_masks(1) > 0, valid)
