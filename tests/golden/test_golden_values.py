"""Golden values: what each stage computes from a small scene, and the defaults and algorithm versions that belong to them.

A change of these values makes existing stores, models and maps outdated, and users need to know: bump the stage's
ALGORITHM_VERSION, then record the values again with

    MIBF_RECORD_GOLDEN=1 .venv/bin/python -m pytest tests/golden

which refuses a change without a new version. To record after a change of this test's own scene or settings, delete
golden.json first.

Defaults belong to the values because fingerprints leave them out (see jobs/workflow/fingerprint.py): without a new
version, the results made with the previous default would count as current.

Values that no library computes are compared exactly. What GDAL resamples and torch sums in floating point may differ in
the last digits between versions and processors, and is compared with a tolerance far below the effect of any change of
the algorithm. Compressed bytes are not compared: they depend on the version of the compressor, not on ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

import mibf.bundle
from jobs.config.config import Config
from jobs.workflow.fingerprint import (
    ALGORITHM_VERSIONS,
    MAP_KEYS_WITHOUT_EFFECT,
    SEARCH_KEYS_WITHOUT_EFFECT,
    TRAIN_KEYS_WITHOUT_EFFECT,
)
from mibf.bundle.reference_checkpoint import from_bytes
from tests.support.mapped_scene import Mapped
from tests.support.reference_checkpoint import network_of, reference_state, saved
from tests.support.scenes import make_scene

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).with_name("golden.json")
CHANGED = "values changed: bump ALGORITHM_VERSION or fix the code"
RECORD = "not recorded: record the golden values again"
#: Pixels between two that are compared with a tolerance, along each axis.
STRIDE = 17
#: Noise added to the sources, in their units: the classes overlap, so that every product takes many values.
NOISE = {"optical": 1500.0, "radar": 3.0}
#: At a low rate: training amplifies the last digits, which differ between processors. At 1e-3, sums in another order changed
#: 1 % of the classes.
TRAIN = {"epochs": 4, "batch_size": 256, "learning_rate": 1e-4, "workers": 0, "threads": 1, "seed": 3}
MAP = {
    "tile_size": 64,
    "workers": 0,
    "products": ["class", "second_class", "confidence", "entropy", "mutual_information", "kl", "gate", "sources"],
}
#: Products of classes: all pixels are compared, those at the seams of tiles and shards included.
CLASSES = ("class", "second_class")
#: Largest difference of a product's codes that processors and library versions explain.
TOLERANCE = {"confidence": 100, "entropy": 100, "mutual_information": 1, "kl": 20, "gate": 20}
#: Code of pixels without data.
EMPTY = 65535
VERSIONS: dict[str, int] = {
    **{stage: ALGORITHM_VERSIONS[stage] for stage in ("prepare", "train", "evaluate", "map")},
    "import": mibf.bundle.ALGORITHM_VERSION,
}
#: Keys of the configuration whose defaults the fingerprint of a stage leaves out.
READS = {
    "prepare": ("scenes", "classes", "split"),
    "train": ("sampling", "model", "train"),
    "evaluate": ("prediction",),
    "map": ("map", "prediction"),
    "import": (),
}
WITHOUT_EFFECT = {
    "TrainSection": TRAIN_KEYS_WITHOUT_EFFECT,
    "MapSection": MAP_KEYS_WITHOUT_EFFECT,
    "SearchSection": SEARCH_KEYS_WITHOUT_EFFECT,
}


def digest(values: NDArray[Any]) -> str:
    """SHA-256 of an array's shape, type and values."""
    header = f"{values.shape} {values.dtype.str} ".encode()
    return hashlib.sha256(header + np.ascontiguousarray(values).tobytes()).hexdigest()


def sample(values: NDArray[Any]) -> list[float]:
    """Every `STRIDE`-th pixel of each band."""
    return [round(float(v), 6) for v in np.nan_to_num(values[..., ::STRIDE, ::STRIDE].astype(float), nan=-9999.0).ravel()]


def packed(values: NDArray[np.uint8]) -> str:
    """All pixels, compressed, as text."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def unpacked(text: str) -> NDArray[np.uint8]:
    """The pixels of `packed`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def make_noisy(folder: Path) -> Mapped:
    """Write a small scene whose classes overlap."""
    folder.mkdir()
    scene = make_scene(folder)
    generator = np.random.default_rng(11)
    for name, spread in NOISE.items():
        with rasterio.open(folder / f"{name}.tif", "r+") as dataset:
            values = dataset.read()
            noisy = values + generator.normal(0, spread, values.shape) + 6 * spread
            if dataset.nodata == 0:
                noisy = np.where(values == 0, 0, np.clip(noisy, 1, 65534))
            dataset.write(noisy.astype(values.dtype))
    scene.write_config(train=TRAIN, map=MAP, prepare={"shard": 128})
    return Mapped(scene)


def measure(folder: Path) -> dict[str, Any]:
    """Prepare, train, evaluate and map a small scene, and import a checkpoint; the values of each stage."""
    scene = make_noisy(folder)
    for stage in ("prepare", "train", "evaluate", "map"):
        scene.does(stage)
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
            "classes": {name: packed(products[name]) for name in CLASSES},
            "codes": {name: sample(products[name]) for name in TOLERANCE},
        },
        "import": {form: imported(**sizes) for form, sizes in FORMS.items()},
    }


#: Both forms of a reference checkpoint's bottleneck.
FORMS = {"described": {"classes": 3, "hidden": 128}, "released": {"classes": 128, "hidden": 3}}


def imported(*, classes: int, hidden: int) -> dict[str, str]:
    """Digests of the weights imported from a reference checkpoint whose values need no random generator."""
    state = reference_state(network_of(classes=classes, hidden=hidden))
    numbered = {
        name: (torch.arange(tensor.numel()).reshape(tensor.shape) % 251 + position + 1).to(tensor.dtype) / 256
        for position, (name, tensor) in enumerate(sorted(state.items()))
    }
    network = from_bytes(saved({"state_dict": numbered}), name="checkpoint.pth", patch=5)
    return {name: digest(tensor.numpy()) for name, tensor in network.state_dict().items()}


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections of the configuration in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for part in typing.get_args(annotation):
        yield from sections(part)


def defaults(stage: str) -> dict[str, Any]:
    """The default of each key that changes the fingerprint of a stage."""
    return {
        f"{section.__name__}.{key}": to_jsonable_python(field.get_default(call_default_factory=True))
        for top in READS[stage]
        for section in sections(Config.model_fields[top].annotation)
        for key, field in section.model_fields.items()
        if not field.is_required() and key not in WITHOUT_EFFECT.get(section.__name__, ())
    }


def changed(stage: str, new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Names of a stage's values and defaults that differ from the recorded ones; keys that are new do not count."""
    found = [key for key, value in old["defaults"].items() if key not in new["defaults"] or new["defaults"][key] != value]
    now, then = new["values"], old["values"]
    if now.keys() != then.keys():
        return [*found, *(now.keys() ^ then.keys())]
    return found + [name for name, value in then.items() if not alike(stage, name, now[name], value)]


def alike(stage: str, name: str, new: Any, old: Any) -> bool:
    """Whether values equal the recorded ones, within the tolerance for what libraries compute."""
    if stage == "map" and name == "classes":
        return new.keys() == old.keys() and all((unpacked(new[k]) == unpacked(old[k])).mean() > 0.998 for k in old)
    if stage == "map" and name == "codes":
        return new.keys() == old.keys() and all(
            (np.abs(np.subtract(new[k], old[k])) <= TOLERANCE[k]).mean() > 0.99 for k in old
        )
    tolerances: dict[tuple[str, str], dict[str, float]] = {
        ("prepare", "radar"): {"abs": 1e-4},
        ("prepare", "normalization"): {"rel": 1e-4},
    }
    by_stage: dict[str, dict[str, float]] = {"train": {"rel": 1e-3}, "evaluate": {"abs": 1e-3}}
    tolerance = tolerances.get((stage, name)) or by_stage.get(stage)
    return bool(new == old if tolerance is None else flat(new) == pytest.approx(flat(old), **tolerance))


def flat(values: Any) -> list[float]:
    """All numbers of nested JSON, in order."""
    if isinstance(values, dict):
        return [x for key in sorted(values) for x in flat(values[key])]
    if isinstance(values, list):
        return [x for value in values for x in flat(value)]
    return [float(values)] if isinstance(values, int | float) else []


def record(measured: dict[str, Any]) -> None:
    """Write the golden values, unless a stage's values changed and its version did not."""
    if GOLDEN.exists():
        recorded = json.loads(GOLDEN.read_text())
        for stage, new in measured.items():
            old = recorded[stage]
            differing = changed(stage, new, old)
            assert not differing or new["version"] != old["version"], f"{stage}: {', '.join(differing)}: {CHANGED}"
    GOLDEN.write_text(json.dumps(measured) + "\n")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = measure(tmp_path_factory.mktemp("golden") / "scene")
    found = {
        stage: {"version": version, "defaults": defaults(stage), "values": values[stage]}
        for stage, version in VERSIONS.items()
    }
    if os.environ.get("MIBF_RECORD_GOLDEN"):
        record(found)
    return found


@pytest.fixture(scope="module")
def golden(measured: dict[str, Any]) -> dict[str, Any]:
    """The recorded values, which `measured` may have written."""
    assert measured
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.parametrize("stage", VERSIONS)
def test_stage_computes_the_recorded_values(stage: str, measured: dict[str, Any], golden: dict[str, Any]) -> None:
    differing = changed(stage, measured[stage], golden[stage])
    assert not differing, f"{', '.join(differing)}: {CHANGED}"


@pytest.mark.parametrize("stage", VERSIONS)
def test_recorded_values_have_the_current_version_and_keys(
    stage: str, measured: dict[str, Any], golden: dict[str, Any]
) -> None:
    assert golden[stage]["version"] == measured[stage]["version"], RECORD
    assert golden[stage]["defaults"].keys() == measured[stage]["defaults"].keys(), RECORD


@pytest.mark.parametrize("product", sorted(TOLERANCE.keys() - {"mutual_information"}))  # near 0 after so few epochs
def test_recorded_products_spread_far_beyond_the_tolerance(product: str, golden: dict[str, Any]) -> None:
    codes = np.array(golden["map"]["values"]["codes"][product])
    assert np.ptp(codes[codes != EMPTY]) > 10 * TOLERANCE[product]


def test_defaults_of_every_fingerprinted_key_are_recorded() -> None:
    """The other keys are not part of any fingerprint, or with their value even where it is the default."""
    assert {key for keys in READS.values() for key in keys} == set(Config.model_fields) - {
        "name",
        "workspace",
        "run",
        "prepare",
        "baselines",
        "resources",
        "stale_on_upgrade",
    }


@pytest.mark.parametrize("stage", [stage for stage in VERSIONS if READS[stage]])
def test_changed_default_counts_as_a_change_and_a_new_key_does_not(stage: str) -> None:
    old = {"defaults": defaults(stage), "values": {}}
    key = next(iter(old["defaults"]))
    assert changed(stage, {"defaults": old["defaults"] | {key: "other"}, "values": {}}, old) == [key]
    assert changed(stage, {"defaults": old["defaults"] | {"Section.new": 1}, "values": {}}, old) == []


def test_recording_refuses_changed_values_without_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.GOLDEN", tmp_path / "golden.json")
    old = {"evaluate": {"version": 1, "defaults": {}, "values": {"kappa": 0.5}}}
    record(old)
    new = {"evaluate": {"version": 1, "defaults": {}, "values": {"kappa": 0.6}}}
    with pytest.raises(AssertionError, match=r"evaluate: kappa: values changed: bump ALGORITHM_VERSION"):
        record(new)
    new["evaluate"]["version"] = 2
    record(new)
    assert json.loads((tmp_path / "golden.json").read_text()) == new
