"""From a map to suggested places, to labels that come back, to the gain: real commands on a small scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize

from pipeline.store.patch_store import PatchStore
from tests.support.mapped_scene import Mapped
from tests.support.scenes import TRANSFORM

pytestmark = pytest.mark.slow
NAMES = {1: "water", 2: "forest", 5: "town"}


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Mapped:
    """A scene with few labels, mapped and evaluated."""
    made = Mapped.make(tmp_path_factory.mktemp("suggest"))
    made.does("evaluate")
    made.does("map", "map.products=[class, second_class, confidence]")
    return made


def subsets(scene: Mapped) -> tuple[np.ndarray, np.ndarray]:
    """Class ids and subset codes of the prepared samples."""
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    ids, codes = np.asarray(store.array("labels")[:]), np.asarray(store.array("split")[:])
    return ids, codes


def test_labels_that_come_back_train_and_the_report_shows_the_gain(mapped: Mapped, tmp_path: Path) -> None:
    scene = mapped.copy(tmp_path / "copy")
    before = subsets(scene)
    found = scene.does("suggest", "--n", "12", "--json").json
    path = Path(found["files"]["small"])
    assert path == scene.folder / "work/runs/main/suggestions/small.gpkg"
    frame = geopandas.read_file(path)
    assert len(frame) == 12
    assert frame["label"].isna().all()
    assert set(frame["class"]) <= set(NAMES.values())
    assert (frame["class"] != frame["second_class"]).all()
    assert frame.crs.to_epsg() == 32633
    ids, codes = before
    for place in frame.itertuples():  # not labelled, on training ground
        assert ids[place.row, place.column] in (0, 255)
        assert codes[place.row, place.column] == 0
    again = scene.does("suggest", "--n", "12", "--json").json
    assert again["places"] == found["places"]
    truth = scene.scene.truth
    frame["label"] = [NAMES[int(truth[row, column])] for row, column in zip(frame["row"], frame["column"], strict=True)]
    frame.loc[0, "label"] = " "
    frame.to_file(path)
    refused = scene.does("suggest", status=2)
    assert "has 11 labels, which would be overwritten" in refused.stderr
    with scene.changed() as values:
        values["scenes"][0]["labels"]["also"] = [{"url": str(path), "attribute": "label"}]
        values["map"]["products"] = ["class", "second_class", "confidence"]
    first = json.loads((scene.folder / "work/runs/main/evaluation.json").read_text())
    scene.does("run")
    after = subsets(scene)
    for code in (2, 3):
        np.testing.assert_array_equal(before[1] == code, after[1] == code)
        np.testing.assert_array_equal(before[0][before[1] == code], after[0][after[1] == code])
    squares = rasterize(frame.geometry[1:], out_shape=truth.shape, transform=TRANSFORM)
    new = (after[1] == 1) & (before[1] != 1)
    assert new.any()
    assert not (new & (squares == 0)).any()
    evaluation = json.loads((scene.folder / "work/runs/main/evaluation.json").read_text())
    (earlier,) = evaluation["earlier"]
    assert earlier["overall_accuracy"] == first["overall_accuracy"]
    assert evaluation["train_samples"] - earlier["train_samples"] == new.sum()
    report = (scene.folder / "work/report/index.html").read_text()
    assert "Compared with other models" in report
    assert "main, before" in report
    scene.does("evaluate")  # again: the earlier model is still the one before
    assert json.loads((scene.folder / "work/runs/main/evaluation.json").read_text())["earlier"] == [earlier]


def test_maps_without_uncertainty_are_refused_with_the_remedy(mapped: Mapped, tmp_path: Path) -> None:
    scene = mapped.copy(tmp_path / "copy")
    refused = scene.does("suggest", "run=other", status=2)
    assert "run `mibf train` or `mibf run` first" in refused.stderr
    scene.does("map", "map.products=[class]")
    refused = scene.does("suggest", status=2)
    assert "the map has class; places to label are found from `class` and `entropy` or `confidence`" in refused.stderr
    assert "map.products=[class, second_class, confidence, entropy]" in refused.stderr


def test_prediction_sets_are_calibrated_mapped_verified_and_evaluated(mapped: Mapped, tmp_path: Path) -> None:
    scene = mapped.copy(tmp_path / "copy")
    model = scene.folder / "work/models/main/model.json"
    content: dict[str, Any] = json.loads(model.read_text())
    fitted = content.pop("prediction_sets")
    model.write_text(json.dumps(content))  # as of an earlier version
    products = "map.products=[class, set_size, prediction_set]"
    refused = scene.does("map", products, status=2)
    assert "has no thresholds of prediction sets" in refused.stderr
    assert "run `mibf calibrate CONFIG`" in refused.stderr
    scene.does("evaluate")
    assert json.loads((scene.folder / "work/runs/main/evaluation.json").read_text())["prediction_sets"] is None
    scene.does("calibrate")
    assert json.loads(model.read_text())["prediction_sets"] == fitted
    (stage,) = scene.does("evaluate", "--json").json["stages"]
    sets = stage["figures"]["prediction_sets"]
    assert sets["wanted"] == 0.9
    assert sets["coverage"] > 0.8
    assert 1 <= sets["mean_size"] <= 3
    scene.does("map", products)
    scene.does("verify", products)
    masks, sizes, ids = (scene.pixels(name)[0] for name in ("prediction_set", "set_size", "class"))
    np.testing.assert_array_equal(np.bitwise_count(masks), sizes)
    position = np.searchsorted([1, 2, 5], ids)
    assert ((masks[ids != 255] >> position[ids != 255]) & 1).all()
    assert scene.states(products, "prediction.sets.coverage=0.8") == {"stale": 9}
    assert scene.states(products, "prediction.priors=trained") == {"done": 9}
    item = json.loads((scene.map / "item.json").read_text())
    assert item["properties"]["mibf:prediction_sets"]["coverage"] == 0.9
    bits = item["assets"]["prediction_set"]["classification:bitfields"]
    assert [(bit["offset"], bit["name"]) for bit in bits] == [(0, "water"), (1, "forest"), (2, "town")]
    with rasterio.open(scene.map / "prediction_set.tif") as dataset:
        assert dataset.nodata == 0
