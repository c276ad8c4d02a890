"""Bad input: one clear message, exit status 2, nothing written."""

from __future__ import annotations

import re
import shutil
from typing import Any

import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from jobs.cli import app
from tests.conftest import TRANSFORM, SmallScene, write_polygons, write_raster


def refused(scene: SmallScene, overrides: list[str] | None = None, *, command: str = "prepare", **changes: Any) -> str:
    """Run a command that must be refused; its message, having seen that nothing new is in the folder."""
    path = scene.write_config(**changes)
    before = {p: p.stat().st_mtime_ns for p in scene.folder.rglob("*")}
    arguments = [command, str(path)] + [part for o in overrides or [] for part in ("--set", o)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    after = {p: p.stat().st_mtime_ns for p in scene.folder.rglob("*") if p.is_file()}
    assert after == {p: t for p, t in before.items() if p.is_file()}, "nothing is written or lost"
    assert {p for p in scene.folder.rglob("*") if p.is_dir()} <= set(before), "no folder is left behind"
    return str(result.stderr)


def test_an_unknown_key(scene: SmallScene) -> None:
    assert "did you mean 'epochs'" in refused(scene, ["train.epoch=3"])


def test_a_missing_file(scene: SmallScene) -> None:
    (scene.folder / "radar.tif").unlink()
    message = refused(scene)
    assert "radar.tif: no such file" in message


def test_an_unreadable_file(scene: SmallScene) -> None:
    (scene.folder / "radar.tif").write_text("not a raster")
    assert "radar.tif: cannot be read as a raster" in refused(scene)


def test_a_source_elsewhere(scene: SmallScene) -> None:
    write_raster(
        scene.folder / "radar.tif", np.ones((1, 20, 20), np.uint8), transform=TRANSFORM * TRANSFORM.translation(9000, 0)
    )
    assert "radar.tif: does not overlap the reference grid" in refused(scene)


def test_a_file_without_a_crs_where_one_is_needed(scene: SmallScene) -> None:
    write_raster(scene.folder / "radar.tif", np.ones((1, 20, 20), np.uint8), crs=None)
    assert "radar.tif: has no CRS" in refused(scene)


def test_a_label_that_no_class_declares(scene: SmallScene) -> None:
    message = refused(scene, ["scenes.0.labels.ignore=[]"])
    assert "labels.tif: labels that no class declares: 0 (" in message


def test_a_class_without_a_training_pixel(scene: SmallScene) -> None:
    classes = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}, {"id": 5, "name": "town"}, {"id": 6, "name": "ice"}]
    assert "no training pixel of class 6 (ice)" in refused(scene, classes=classes)


def test_a_class_whose_training_pixels_have_no_data(scene: SmallScene) -> None:
    """Known only once a store is written, which is taken back."""
    optical = scene.optical.copy()
    optical[:, scene.truth == 5] = 0
    write_raster(scene.folder / "optical.tif", optical, nodata=0)
    assert "no training pixel of class 5 (town)" in refused(scene)


def test_a_file_that_is_cut_short(scene: SmallScene) -> None:
    path = scene.folder / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(scene)
    assert "optical.tif" in message
    assert "cut short" in message


def test_a_band_tagged_as_transparency(scene: SmallScene) -> None:
    write_raster(scene.folder / "optical.tif", np.ones((4, 150, 130), np.uint8))
    assert "band 4 is tagged as transparency" in refused(scene)


def test_complex_numbers(scene: SmallScene) -> None:
    write_raster(scene.folder / "radar.tif", np.ones((1, 150, 130), np.complex64))
    assert "radar.tif: holds complex numbers" in refused(scene)


def test_sources_of_several_systems_and_no_grid(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    del first["grid"]
    assert "scenes.0.grid: is missing; say which grid to map on" in refused(scene, scenes=[first])


def test_a_source_without_any_data(scene: SmallScene) -> None:
    """Known only once a store is written, which is taken back."""
    for nothing in (np.nan, -np.inf):
        write_raster(scene.folder / "radar.tif", np.full((1, 150, 130), nothing, np.float32))
        assert "source 'radar' has no data in any pixel" in refused(scene)
    write_raster(scene.folder / "radar.tif", np.full((1, 150, 130), 7, np.uint8), nodata=7)
    message = refused(scene)
    assert "source 'radar' has no data in any pixel" in message
    assert "radar.tif" in message


def test_a_band_that_is_not_there(scene: SmallScene) -> None:
    assert "optical.tif: has no band 4; its bands are 1 to 3" in refused(scene, ["scenes.0.sources.optical.bands=[1, 4]"])
    assert "`bands` are numbers from 1" in refused(scene, ["scenes.0.sources.optical.bands=red"])


def test_two_ways_to_name_the_files_of_a_source(scene: SmallScene) -> None:
    assert "give one of `url`" in refused(scene, ["scenes.0.sources.optical.urls=[a.tif]"])


def test_a_mask_that_says_nothing(scene: SmallScene) -> None:
    assert "give `valid` values" in refused(scene, ["scenes.0.sources.optical.mask={url: a.tif}"])


def test_a_stac_item_that_is_none(scene: SmallScene) -> None:
    path = scene.folder / "item.json"
    for content, message in (("{}", "is of type None"), ("nonsense", "cannot be read as a STAC item")):
        path.write_text(content)
        first = scene.config()["scenes"][0]
        first["sources"]["optical"] = {"stac": {"url": str(path), "assets": ["red"]}}
        assert message in refused(scene, scenes=[first])


def test_polygons_without_an_attribute(scene: SmallScene) -> None:
    path = write_polygons(scene.folder / "x.gpkg", [(shapely.box(400000, 5799000, 401000, 5800000), "water")])
    assert "x.gpkg: is a vector file" in refused(scene, [f"scenes.0.labels.url={path}"])


def test_scenes_that_share_labelled_ground(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    message = refused(scene, scenes=[first, {**first, "name": "again"}])
    assert "'small' and 'again' share labelled ground" in message


def test_a_workspace_that_would_not_last(scene: SmallScene) -> None:
    assert "gone with the process" in refused(scene, ["workspace=memory://x"])


def test_nothing_to_train_on(scene: SmallScene) -> None:
    path = scene.write_config()
    arguments = [str(path), "--set", "scenes.0.labels=null"]
    assert CliRunner().invoke(app, ["prepare", *arguments]).exit_code == 0
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert "nothing to train on" in result.stderr


def test_an_unset_variable(scene: SmallScene) -> None:
    assert "${NOWHERE_SET} is used but not set" in refused(scene, ["workspace=${NOWHERE_SET}/w"])


def test_a_workspace_that_cannot_be_written(scene: SmallScene) -> None:
    (scene.folder / "file").write_text("in the way")
    message = refused(scene, [f"workspace={scene.folder / 'file' / 'work'}"])
    assert "file/work cannot be written" in message


def test_a_workspace_of_an_unknown_kind(scene: SmallScene) -> None:
    assert "nonsense://" in refused(scene, ["workspace=nonsense://bucket/work"])


def test_a_stage_whose_earlier_stage_is_not_finished(scene: SmallScene) -> None:
    assert "run `mibf prepare`" in refused(scene, command="train")


def test_a_configuration_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["run", "nowhere.yaml"])
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot be read" in result.stderr


@pytest.mark.parametrize("arguments", [["run"], ["fly"], ["run", "a.yaml", "--nonsense"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_refused_input_leaves_an_earlier_result_alone(prepared: Any, tmp_path: Any) -> None:
    scene, _ = prepared
    assert "no such file" in refused(scene, [f"scenes.0.labels.url={tmp_path / 'none.tif'}"])
    assert "no sample in the validation subset" in refused(scene, ["split.block=140"])


def test_a_cluster_that_is_not_there(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = prepared
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(app, ["train", str(scene.write_config()), "--set", "run=nowhere"])
    assert result.exit_code == 2
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster can be reached there" in result.stderr
    assert not (scene.folder / "work" / "runs" / "nowhere").exists()


@pytest.fixture
def trainable(prepared: Any, tmp_path: Any) -> SmallScene:
    """A scene with a workspace of its own, in which training could begin."""
    scene, _ = prepared
    folder = tmp_path / "trainable"
    shutil.copytree(scene.folder, folder)
    return SmallScene(folder, scene.truth, scene.optical)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["train.batch=9999"],
            r"train\.batch is 9999, more than the \d,?\d+ training samples there are; take a smaller one",
        ),
        (["train.workers=5"], r"train\.workers is 5, yet the training samples lie in 4 windows .* take 4 at the most"),
        (["train.precision=fp16", "train.workers=0"], r"fp16, which wants a GPU"),
        (["train.class_weights={water: 2, ice: 1}"], r"train\.class_weights.*ice.*water, forest, town"),
    ],
    ids=["batch", "workers", "precision", "class weights"],
)
def test_a_training_that_cannot_be(trainable: SmallScene, overrides: list[str], told: str) -> None:
    assert re.search(told, refused(trainable, overrides, command="train"))
