"""Bad input: one clear message, exit status 2, nothing written."""

from __future__ import annotations

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


def test_polygons_without_an_attribute(scene: SmallScene) -> None:
    path = write_polygons(scene.folder / "x.gpkg", [(shapely.box(400000, 5799000, 401000, 5800000), "water")])
    assert "x.gpkg: is a vector file" in refused(scene, [f"scenes.0.labels.url={path}"])


def test_scenes_that_share_labelled_ground(scene: SmallScene) -> None:
    first = scene.config()["scenes"][0]
    message = refused(scene, scenes=[first, {**first, "name": "again"}])
    assert "'small' and 'again' share labelled ground" in message


def test_a_workspace_that_would_not_last(scene: SmallScene) -> None:
    assert "gone with the process" in refused(scene, ["workspace=memory://x"])


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
