"""What a map refuses: a message that says what to do, exit status 2, nothing written. And maps by a model from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_raster
from tests.mapped import TILES, Mapped

pytestmark = pytest.mark.slow


@pytest.fixture
def mapped(trained: Mapped, tmp_path: Path) -> Mapped:
    """A trained scene of the test's own, without a map."""
    return trained.copy(tmp_path / "scene")


def elsewhere(mapped: Mapped) -> Path:
    """The model, moved to where no workspace is."""
    return Path(shutil.move(mapped.folder / "work/models/main", mapped.folder / "model"))


def two_bands(mapped: Mapped) -> list[str]:
    write_raster(mapped.folder / "optical.tif", mapped.scene.optical[:2], nodata=0)
    mapped.does("prepare")
    return [f"map.model={elsewhere(mapped)}"]


def no_radar(mapped: Mapped) -> list[str]:
    with mapped.changed() as values:
        sources = values["scenes"][0]["sources"]
        sources["sonar"] = sources.pop("radar")
    mapped.does("prepare")
    return [f"map.model={elsewhere(mapped)}"]


def cut_weights(mapped: Mapped) -> list[str]:
    model = elsewhere(mapped)
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return [f"map.model={model}"]


def changed_weights(mapped: Mapped) -> list[str]:
    weights = mapped.folder / "work/models/main/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(bytes(content))
    return []


def no_weights(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/models/main/weights.safetensors").unlink()
    return []


def no_model(mapped: Mapped) -> list[str]:
    return [f"map.model={mapped.folder}/nowhere"]


def other_classes(mapped: Mapped) -> list[str]:
    with mapped.changed() as values:
        values["classes"][1]["name"] = "wood"
    return []


def no_records(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/stores/small.shards.json").unlink()
    return []


def no_store(mapped: Mapped) -> list[str]:
    shutil.rmtree(mapped.folder / "work/stores/small.zarr")
    return []


def never_prepared(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/manifests/prepare.json").unlink()
    return []


def never_dropped(_: Mapped) -> list[str]:
    return ["map.missing=map"]


def brighter(mapped: Mapped) -> list[str]:
    write_raster(mapped.folder / "optical.tif", mapped.scene.optical * 3, nodata=0)
    mapped.does("prepare")
    return ["map.drift=refuse"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (two_bands, "optical (2 bands), radar (1 bands); the model was trained on optical (3 bands), radar (1 bands)"),
        (no_radar, "the model was trained on optical (3 bands), radar (1 bands)"),
        (cut_weights, "weights.safetensors"),
        (changed_weights, "weights.safetensors"),
        (no_weights, "has model.json and no weights.safetensors; copy the bundle again"),
        (no_model, "nowhere"),
        (
            other_classes,
            "predicts the classes 1 water, 2 forest, 5 town; the configuration declares 1 water, 2 wood, 5 town",
        ),
        (no_records, "small.shards.json: is missing; run `mibf prepare` again"),
        (no_store, "small.zarr"),
        (never_prepared, "`prepare` is not finished; run `mibf prepare` or `mibf run` first"),
        (never_dropped, "map.missing is `map`, and"),
        (brighter, "is not like what the model was trained on"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    mapped: Mapped, change: Callable[[Mapped], list[str]], told: str
) -> None:
    parts = change(mapped)
    before = mapped.files()
    for command in ("map", "rerun", "status"):
        if command == "status" and change == brighter:
            continue  # it tells of tiles; nothing is wrong with them
        assert told in mapped.does(command, *parts, status=2).stderr
    assert mapped.files() == before


def test_a_scene_that_drifted_is_mapped_with_a_warning_where_that_is_asked_for(mapped: Mapped) -> None:
    brighter(mapped)
    warned = mapped.does("map", "map.drift=warn")
    assert "scene 'small' is not like what the model was trained on: " in warned.stderr
    assert "optical" in warned.stderr
    assert mapped.states() == {"done": 9}


def test_a_scene_without_labels_is_mapped_by_a_model_from_elsewhere(whole: Mapped, trained: Mapped, tmp_path: Path) -> None:
    """`mibf run` then has nothing to train on, evaluate or report, and does `prepare` and `map` alone."""
    other = trained.copy(tmp_path / "other")
    shutil.rmtree(other.folder / "work")
    with other.changed() as values:
        del values["scenes"][0]["labels"]
    model = f"map.model={trained.folder / 'work' / 'models' / 'main'}"
    done = other.does("run", model, "--json")
    assert [stage["stage"] for stage in done.json["stages"]] == ["prepare", "map"]
    assert not (other.folder / "work/models").exists()
    assert other.states(model) == {"done": 9}
    assert other.count("done") == dict.fromkeys(TILES, 1)
    for product in ("class", "confidence"):
        np.testing.assert_array_equal(other.pixels(product), whole.pixels(product))
    again = other.does("run", model, "--json")
    assert all(stage["skipped"] for stage in again.json["stages"])
