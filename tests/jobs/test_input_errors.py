"""Invalid input: one clear message, exit status 2, nothing written."""

from __future__ import annotations

import re
import shutil
from typing import Any

import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from jobs.cli.common import app
from tests.support.refusals import refused
from tests.support.scenes import TRANSFORM, SmallScene, write_polygons, write_raster


def test_unknown_key_exits_2_with_a_suggestion(scene: SmallScene) -> None:
    assert "did you mean 'epochs'" in refused(scene, ["train.epoch=3"])


def test_missing_raster_exits_2(scene: SmallScene) -> None:
    (scene.folder / "radar.tif").unlink()
    message = refused(scene)
    assert "radar.tif: no such file" in message


def test_unreadable_raster_exits_2(scene: SmallScene) -> None:
    (scene.folder / "radar.tif").write_text("not a raster")
    assert "radar.tif: cannot be read as a raster" in refused(scene)


def test_source_outside_the_grid_exits_2(scene: SmallScene) -> None:
    write_raster(
        scene.folder / "radar.tif", np.ones((1, 20, 20), np.uint8), transform=TRANSFORM * TRANSFORM.translation(9000, 0)
    )
    assert "radar.tif: does not overlap the reference grid" in refused(scene)


def test_raster_without_required_crs_exits_2(scene: SmallScene) -> None:
    write_raster(scene.folder / "radar.tif", np.ones((1, 20, 20), np.uint8), crs=None)
    assert "radar.tif: has no CRS" in refused(scene)


def test_undeclared_label_value_exits_2(scene: SmallScene) -> None:
    message = refused(scene, ["scenes.0.labels.ignore=[]"])
    assert "labels.tif: labels that no class declares: 0 (" in message


def test_class_without_training_pixels_exits_2(scene: SmallScene) -> None:
    classes = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}, {"id": 5, "name": "town"}, {"id": 6, "name": "ice"}]
    assert "no training pixels for class 6 (ice)" in refused(scene, classes=classes)


def test_class_with_training_pixels_only_on_nodata_exits_2(scene: SmallScene) -> None:
    """Detected only after the store is written; the store is then removed."""
    optical = scene.optical.copy()
    optical[:, scene.truth == 5] = 0
    write_raster(scene.folder / "optical.tif", optical, nodata=0)
    assert "no training pixels for class 5 (town)" in refused(scene)


def test_truncated_raster_exits_2(scene: SmallScene) -> None:
    path = scene.folder / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(scene)
    assert "optical.tif" in message
    assert "truncated" in message


def test_band_tagged_as_transparency_exits_2(scene: SmallScene) -> None:
    write_raster(scene.folder / "optical.tif", np.ones((4, 150, 130), np.uint8))
    assert "band 4 is tagged as transparency" in refused(scene)


def test_complex_raster_exits_2(scene: SmallScene) -> None:
    write_raster(scene.folder / "radar.tif", np.ones((1, 150, 130), np.complex64))
    assert "radar.tif: holds complex numbers" in refused(scene)


def test_missing_grid_with_different_crs_exits_2(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    del first["grid"]
    assert "scenes.0.grid: is missing; give the reference grid as" in refused(scene, scenes=[first])


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_source_without_valid_pixels_exits_2(scene: SmallScene, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr("jobs.prepare.stage.build_store", None)  # refused before the store is written
    for nothing in (np.nan, -np.inf):
        write_raster(scene.folder / "radar.tif", np.full((1, 150, 130), nothing, np.float32))
        assert "source 'radar' has no valid pixel" in refused(scene, command=command)
    write_raster(scene.folder / "radar.tif", np.full((1, 150, 130), 7, np.uint8), nodata=7)
    message = refused(scene, command=command)
    assert "source 'radar' has no valid pixel" in message
    assert "radar.tif): all its pixels are nodata or not finite" in message
    optical = np.full((4, 150, 130), 9, np.uint16)
    optical[1] = optical[3] = 0
    write_raster(scene.folder / "optical.tif", optical, nodata=0)
    assert "optical.tif): bands 2, 4 have no data, and a pixel is valid only if" in refused(scene, command=command)


def test_missing_band_exits_2(scene: SmallScene) -> None:
    assert "optical.tif: has no band 4; its bands are 1 to 3" in refused(scene, ["scenes.0.sources.optical.bands=[1, 4]"])
    assert "`bands` must be band numbers from 1" in refused(scene, ["scenes.0.sources.optical.bands=red"])


def test_source_with_both_url_and_urls_exits_2(scene: SmallScene) -> None:
    assert "give exactly one of `url`" in refused(scene, ["scenes.0.sources.optical.urls=[a.tif]"])


def test_mask_without_values_exits_2(scene: SmallScene) -> None:
    assert "give `valid` values" in refused(scene, ["scenes.0.sources.optical.mask={url: a.tif}"])


def test_invalid_stac_item_exits_2(scene: SmallScene) -> None:
    path = scene.folder / "item.json"
    for content, message in (("{}", "has type None"), ("nonsense", "cannot be read as a STAC item")):
        path.write_text(content)
        first = scene.config()["scenes"][0]
        first["sources"]["optical"] = {"stac": {"url": str(path), "assets": ["red"]}}
        assert message in refused(scene, scenes=[first])


def test_vector_labels_without_attribute_exits_2(scene: SmallScene) -> None:
    path = write_polygons(scene.folder / "x.gpkg", [(shapely.box(400000, 5799000, 401000, 5800000), "water")])
    assert "x.gpkg: is a vector file" in refused(scene, [f"scenes.0.labels.url={path}"])


def test_scenes_with_overlapping_labels_exit_2(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    message = refused(scene, scenes=[first, {**first, "name": "again"}])
    assert "'small' and 'again' share labelled ground" in message


def test_memory_workspace_exits_2(scene: SmallScene) -> None:
    assert "lost when the process ends" in refused(scene, ["workspace=memory://x"])


def test_train_without_labels_exits_2(scene: SmallScene) -> None:
    path = scene.write_config()
    arguments = [str(path), "--set", "scenes.0.labels=null"]
    assert CliRunner().invoke(app, ["prepare", *arguments]).exit_code == 0
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert "nothing to train on" in result.stderr


def test_unset_variable_exits_2(scene: SmallScene) -> None:
    assert "${NOWHERE_SET} is used but not set" in refused(scene, ["workspace=${NOWHERE_SET}/w"])


def test_unwritable_workspace_exits_2(scene: SmallScene) -> None:
    (scene.folder / "file").write_text("in the way")
    message = refused(scene, [f"workspace={scene.folder / 'file' / 'work'}"])
    assert "file/work cannot be written" in message


def test_workspace_with_unknown_scheme_exits_2(scene: SmallScene) -> None:
    assert "nonsense://" in refused(scene, ["workspace=nonsense://bucket/work"])


def test_train_before_prepare_exits_2(scene: SmallScene) -> None:
    assert "run `mibf prepare`" in refused(scene, command="train")


def test_missing_configuration_exits_2() -> None:
    result = CliRunner().invoke(app, ["run", "nowhere.yaml"])
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot be read" in result.stderr


@pytest.mark.parametrize("arguments", [["run"], ["fly"], ["run", "a.yaml", "--nonsense"]])
def test_invalid_command_line_exits_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_refused_input_keeps_earlier_results(prepared: Any, tmp_path: Any) -> None:
    scene, _ = prepared
    assert "no such file" in refused(scene, [f"scenes.0.labels.url={tmp_path / 'none.tif'}"])
    assert "no samples in the validation subset" in refused(scene, ["split.block=140"])


def test_unreachable_ray_cluster_exits_2(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = prepared
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(app, ["train", str(scene.write_config()), "--set", "run=nowhere"])
    assert result.exit_code == 2
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster can be reached there" in result.stderr
    assert not (scene.folder / "work" / "runs" / "nowhere").exists()


@pytest.fixture
def trainable(prepared: Any, tmp_path: Any) -> SmallScene:
    """A scene with its own prepared workspace, ready for training."""
    scene, _ = prepared
    folder = tmp_path / "trainable"
    shutil.copytree(scene.folder, folder)
    return SmallScene(folder, scene.truth, scene.optical)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["train.batch_size=9999"],
            r"train\.batch_size is 9999, but there are only \d,?\d+ training samples; choose a smaller batch",
        ),
        (["train.workers=5"], r"train\.workers is 5, but the training samples are in 4 windows .* use at most 4 workers"),
        (["train.precision=fp16", "train.workers=0"], r"fp16, which needs a GPU"),
        (["train.class_weights={water: 2, ice: 1}"], r"train\.class_weights.*ice.*water, forest, town"),
    ],
    ids=["batch_size", "workers", "precision", "class weights"],
)
def test_invalid_training_settings_exit_2(trainable: SmallScene, overrides: list[str], expected: str) -> None:
    assert re.search(expected, refused(trainable, overrides, command="train"))
