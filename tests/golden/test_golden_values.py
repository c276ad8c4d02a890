"""Golden values: what prepare, train, evaluate and map compute from a small scene, recorded once.

A change of these values makes existing stores, models and maps outdated, and users need to know: bump the stage's
ALGORITHM_VERSION, then record the values again with

    MIBF_RECORD_GOLDEN=1 .venv/bin/python -m pytest tests/golden

Values that no library computes are compared exactly. What GDAL resamples and torch sums in floating point may differ in
the last digits between versions and processors, and is compared with a tolerance far below the effect of any change of
the algorithm. Compressed bytes are not compared: they depend on the version of the compressor, not on ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tests.support.mapped_scene import Mapped

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).with_name("golden.json")
CHANGED = "values changed: bump ALGORITHM_VERSION or fix the code"
#: Pixels between two that are compared with a tolerance, along each axis.
STRIDE = 17
#: Few steps at a low rate, so that the predictions are far from certain and every product has something to show.
TRAIN = {"epochs": 4, "batch_size": 256, "learning_rate": 1e-4, "workers": 0, "threads": 1, "seed": 3}
MAP = {
    "tile_size": 64,
    "workers": 0,
    "products": ["class", "second_class", "confidence", "entropy", "mutual_information", "kl", "gate", "sources"],
}


def digest(values: NDArray[Any]) -> str:
    """SHA-256 of an array's shape, type and values."""
    header = f"{values.shape} {values.dtype.str} ".encode()
    return hashlib.sha256(header + np.ascontiguousarray(values).tobytes()).hexdigest()


def sample(values: NDArray[Any]) -> list[float]:
    """Every `STRIDE`-th pixel of each band."""
    return [round(float(v), 6) for v in np.nan_to_num(values[..., ::STRIDE, ::STRIDE].astype(float), nan=-9999.0).ravel()]


def measure(folder: Path) -> dict[str, Any]:
    """Prepare, train, evaluate and map a small scene; the values of each stage."""
    folder.mkdir()
    scene = Mapped.make(folder, train=TRAIN, map=MAP)
    scene.does("evaluate")
    scene.does("map")
    work = folder / "work"
    store: Any = zarr.open_group(str(work / "stores/small.zarr"), mode="r")
    exact = {name: store[name][:] for name in ("sources/optical", "valid/optical", "labels", "split")}
    lines = [json.loads(line) for line in (work / "runs/main/metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((work / "runs/main/evaluation.json").read_text())
    products = {name: scene.pixels(name) for name in MAP["products"]}
    return {
        "prepare": {
            "exact": {name: digest(values) for name, values in exact.items()},
            "radar": sample(store["sources/radar"][:]),
            "normalization": json.loads((work / "scaling.json").read_text()),
        },
        "train": {
            name: [line[name] for line in lines] for name in ("train_loss", "train_rate", "validation_loss", "temperature")
        },
        "evaluate": {name: evaluation[name] for name in ("overall_accuracy", "average_accuracy", "kappa", "macro_f1")},
        "map": {
            "sources": digest(products["sources"]),
            "codes": {name: sample(values) for name, values in products.items()},
        },
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = measure(tmp_path_factory.mktemp("golden") / "scene")
    if os.environ.get("MIBF_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(found) + "\n")
    return found


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


def test_prepare_writes_the_recorded_store(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    new, old = measured["prepare"], golden["prepare"]
    assert new["exact"] == old["exact"], CHANGED
    assert new["radar"] == pytest.approx(old["radar"], abs=1e-4), CHANGED
    assert flat(new["normalization"]) == pytest.approx(flat(old["normalization"]), rel=1e-4), CHANGED


def test_train_reproduces_the_recorded_loss_sequence(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    for name, values in golden["train"].items():
        assert measured["train"][name] == pytest.approx(values, rel=1e-3), f"{name}: {CHANGED}"


def test_evaluate_reproduces_the_recorded_accuracies(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    assert measured["evaluate"] == pytest.approx(golden["evaluate"], abs=1e-3), CHANGED


def test_map_writes_the_recorded_pixels(measured: dict[str, Any], golden: dict[str, Any]) -> None:
    new, old = measured["map"], golden["map"]
    assert new["sources"] == old["sources"], CHANGED
    for name, codes in old["codes"].items():
        exact = name in ("class", "second_class", "sources")
        agreeing = np.isclose(new["codes"][name], codes, rtol=0 if exact else 5e-3, atol=0 if exact else 100)
        assert agreeing.mean() > 0.99, f"{name}: {CHANGED}"


def flat(values: Any) -> list[float]:
    """All numbers of nested JSON, in order."""
    if isinstance(values, dict):
        return [x for key in sorted(values) for x in flat(values[key])]
    if isinstance(values, list):
        return [x for value in values for x in flat(value)]
    return [float(values)] if isinstance(values, int | float) else []
