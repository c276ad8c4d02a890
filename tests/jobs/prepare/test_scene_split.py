"""Splits by scene: entire scenes for testing and validation, blocks of the others, and scenes on the same ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from jobs.cli.common import app
from jobs.config.loader import load
from jobs.workflow.fingerprint import fingerprint
from mibf.errors import InputError
from pipeline.codes import CODES
from pipeline.scenes.split import dilate
from pipeline.store.patch_store import PatchStore
from pipeline.stratification.assign import assign_blocks
from tests.support.scenes import CLASSES, write_raster
from tests.support.tiles import SIDE, tile_truth, write_tile, write_tiles_config

TRAIN, VALIDATION, TEST = (CODES[name] for name in ("train", "validation", "test"))


def mibf(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result


def tiles(folder: Path, split: dict[str, Any], *places: int, **changes: Any) -> Path:
    """Write tiles a, b, ... at these places, by default 0 to 2, and their configuration."""
    scenes = [write_tile(folder, name, place=place) for name, place in zip("abcd", places or (0, 1, 2), strict=False)]
    return write_tiles_config(folder, "tiles", scenes, split={"method": "scenes", **split}, **changes)


def codes(folder: Path, scene: str) -> NDArray[np.uint8]:
    return np.asarray(PatchStore(str(folder / f"work-tiles/stores/{scene}.zarr")).array("split")[:])


def test_test_scene_is_entire_and_blocks_of_the_others_are_kept_apart(tmp_path: Path) -> None:
    stage = json.loads(mibf("prepare", str(tiles(tmp_path, {"test": ["c"], "block": 16})), "--json").stdout)["stages"][0]
    assert (codes(tmp_path, "c") == TEST).all()
    for name in "ab":
        found = codes(tmp_path, name)
        assert set(np.unique(found)) <= {0, TRAIN, VALIDATION}
        for code in (TRAIN, VALIDATION):  # patches of 5 x 5 pixels overlap if their centres are less than 5 apart
            near = dilate(np.pad(found == code, 4), 4)
            assert set(np.unique(found[near])) <= {0, code}
    counts = {name: {s: int((codes(tmp_path, name) == CODES[s]).sum()) for s in CODES} for name in "abc"}
    assert stage["figures"]["scenes"] == json.loads((tmp_path / "work-tiles/split.json").read_text())["scenes"] == counts
    assert min(counts["a"]["train"] + counts["b"]["train"], counts["a"]["validation"] + counts["b"]["validation"]) > 0
    assert stage["figures"]["overlap"] == {"a": None, "b": None, "c": 0}
    assert stage["figures"]["buffer"] == 4
    assert f"c: train 0, validation 0, test {SIDE * SIDE:,}" in stage["lines"]
    assert not [line for line in stage["lines"] + stage["warnings"] if "leak" in line]


def test_validation_is_the_share_of_blocks(tmp_path: Path) -> None:
    mibf("prepare", str(tiles(tmp_path, {"test": ["b"], "validation": 0.25, "block": 10}, 0, 1)))
    found = codes(tmp_path, "a")
    # Without the buffer: the blocks by majority of their kept pixels.
    blocks = [found[y : y + 10, x : x + 10].max() for y in range(0, SIDE, 10) for x in range(0, SIDE, 10)]
    assert 0.1 < np.mean(np.array(blocks) == VALIDATION) < 0.4


def test_validation_scene_is_entire_and_the_rest_trains(tmp_path: Path) -> None:
    mibf("prepare", str(tiles(tmp_path, {"test": ["a"], "validation": ["c"]})))
    for name, code in zip("abc", (TEST, TRAIN, VALIDATION), strict=True):
        assert (codes(tmp_path, name) == code).all()


def test_limits_are_fitted_without_the_test_scene(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["c"], "validation": ["b"]})
    mibf("prepare", str(config))
    fitted = json.loads((tmp_path / "work-tiles/scaling.json").read_text())["optical"]
    values = PatchStore(str(tmp_path / "work-tiles/stores/a.zarr")).array("sources/optical")[:].reshape(2, -1)
    expected = np.quantile(values, [0.005, 0.995], axis=1, method="inverted_cdf")
    assert [fitted["low"], fitted["high"]] == expected.tolist()


def test_same_ground_is_refused_across_subsets_and_accepted_within_one(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["b"], "validation": ["d"]}, 0, 1, 1, 2)
    message = mibf("prepare", str(config), status=2).output
    assert "scenes 'b' and 'c' share labelled ground" in " ".join(message.split())
    config = tiles(tmp_path, {"test": ["d"]}, 0, 1, 1, 2)  # b and c each have blocks for training and for validation
    message = mibf("prepare", str(config), status=2).output
    assert "scenes 'b' and 'c' share labelled ground" in " ".join(message.split())
    config = tiles(tmp_path, {"test": ["b", "c"], "validation": ["d"]}, 0, 1, 1, 2)
    mibf("prepare", str(config))
    assert (codes(tmp_path, "b") == codes(tmp_path, "c")).all()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"test": ["x"]}, "split.test contains x; the scenes are a, b, c"),
        ({"test": ["c"], "validation": ["y", "b"]}, "split.validation contains y; the scenes are a, b, c"),
        ({"test": ["c"], "validation": ["b", "c"]}, "split: scene c is listed twice; a scene belongs to one subset"),
        ({"test": ["a", "b", "c"]}, "leave no scene with labels to train on"),
        ({"test": ["a", "b"], "validation": ["c"]}, "leave no scene with labels to train on"),
        ({"test": []}, "split.test: has too few entries"),
        ({}, "split.test: is missing"),
        ({"test": ["c"], "validation": 1.5}, "split.validation: must be a list of scenes, or the share"),
        ({"test": ["c"], "validation": []}, "split.validation: must be a list of scenes, or the share"),
        ({"test": ["c"], "validation": ["b"], "block": 40}, "`block` would have no effect, because `validation` lists"),
        ({"test": ["c"], "blok": 40}, "split.blok: unknown key; did you mean 'block'?"),
        ({"test": ["c"], "buffer": 2}, "split.buffer is 2 pixels; patches of 5 pixels overlap across it. Use 4 or more"),
        ({"test": ["c"], "block": 8}, "split.block is 8 pixels, too small for a buffer of 4"),
    ],
)
def test_split_by_scene_that_cannot_be_is_refused(tmp_path: Path, split: dict[str, Any], message: str) -> None:
    output = mibf("prepare", str(tiles(tmp_path, split)), status=2).output
    assert message in " ".join(output.split())
    assert not (tmp_path / "work-tiles/stores").exists()


def test_keys_of_scenes_keep_their_place_in_messages(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["c"]})
    with pytest.raises(InputError, match=r"scenes\.0\.sources\.optical\.scale: "):
        load(str(config), overrides=["scenes.0.sources.optical.scale=3"])


def test_test_scene_without_labels_is_refused(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["c"]})
    with pytest.raises(InputError, match=r"split\.test contains c, which has no `labels`"):
        load(str(config), overrides=["scenes.2.labels="])


def test_class_that_only_the_test_scene_has_is_refused(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["b"], "block": 16}, 0, 1)
    labels = tile_truth(0)
    write_raster(tmp_path / "a_labels.tif", np.where(labels == 5, 1, labels)[None].astype(np.uint8))
    output = " ".join(mibf("prepare", str(config), status=2).output.split())
    assert "no training pixels for class 5 (town). Label some in a training scene, take a scene that contains" in output


def test_scene_for_testing_an_existing_model_needs_no_training_pixels(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["a"]}, 0, map={"model": str(tmp_path / "model")})
    labels = tile_truth(0)
    write_raster(tmp_path / "a_labels.tif", np.where(labels == 5, 1, labels)[None].astype(np.uint8))  # no town
    mibf("prepare", str(config))
    assert (codes(tmp_path, "a") == TEST).all()
    assert json.loads((tmp_path / "work-tiles/split.json").read_text())["counts"]["test"]["town"] == 0
    assert "there is nothing to train on" in mibf("train", str(config), status=2).output
    assert "nothing to fit to" in mibf("baseline", str(config), status=2).output


def test_plan_follows_the_split_by_scene(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["b"], "block": 16}, 0, 1)
    assert set(json.loads(mibf("plan", str(config), "--json").stdout)["scenes"]) == {"a", "b"}


def test_only_subsets_with_a_fraction_get_blocks() -> None:
    counts = np.random.default_rng(0).integers(0, 100, (400, len(CLASSES)))
    counts[::5] = 0  # blocks without labels are drawn
    assigned = assign_blocks(counts, {"train": 0.75, "validation": 0.25}, seed=3)
    assert set(np.unique(assigned)) == {TRAIN, VALIDATION}
    share = counts[assigned == VALIDATION].sum(axis=0) / counts.sum(axis=0)
    assert np.abs(share - 0.25).max() < 0.05
    assert 0.1 < np.mean(assigned[::5] == VALIDATION) < 0.4


def test_scene_names_and_seed_change_the_fingerprint(tmp_path: Path) -> None:
    config = tiles(tmp_path, {"test": ["c"], "block": 16})
    changes = ([], ["split.test=[b]"], ["split.seed=1"], ["split.validation=0.3"])
    found = {fingerprint(load(str(config), overrides=change), "prepare") for change in changes}
    assert len(found) == len(changes)
