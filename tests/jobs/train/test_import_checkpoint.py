"""The command `mibf import-checkpoint` writes a bundle that evaluates and maps, or refuses and writes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.workflow.workspace import Workspace
from mibf.network.mibfnet import MIBFNet
from pipeline.grid import Tile, Window
from pipeline.maps.predictor import TilePredictor
from pipeline.maps.products import product
from pipeline.store.patch_store import PatchStore
from tests.support.commands import mibf
from tests.support.reference_checkpoint import network_of, reference_state, saved
from tests.support.scenes import SmallScene, write_raster


@pytest.fixture
def place(prepared: tuple[SmallScene, Any], tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a folder with a modifiable copy of a prepared workspace (`work`), and the arguments that select it."""
    scene, workspace = prepared
    shutil.copytree(workspace.url, tmp_path / "work")
    config = ["--config", str(scene.write_config()), "--set", f"workspace={tmp_path / 'work'}"]
    return tmp_path, config


def run_import(place: tuple[Path, list[str]], network: MIBFNet | bytes, *more: str, name: str = "checkpoint.pth.tar") -> Any:
    """Run the command on a checkpoint of the network, or on a file with the given bytes."""
    content = network if isinstance(network, bytes) else saved({"epoch": 1, "state_dict": reference_state(network)})
    (place[0] / name).write_bytes(content)
    return CliRunner().invoke(app, ["import-checkpoint", str(place[0] / name), *place[1], *more])


def command(name: str, place: tuple[Path, list[str]], *more: str) -> Any:
    return CliRunner().invoke(app, [name, place[1][1], *place[1][2:], *more])


def refused(place: tuple[Path, list[str]], network: MIBFNet | bytes, *more: str) -> str:
    """Return the message for a checkpoint that must be refused; check that nothing is written."""
    work = place[0] / "work"
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    folders = {p for p in work.rglob("*") if p.is_dir()}
    result = run_import(place, network, *more)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()} == before
    assert {p for p in work.rglob("*") if p.is_dir()} == folders
    return str(result.stderr)


@torch.no_grad()
def test_command_writes_bundle_usable_for_mapping(place: tuple[Path, list[str]]) -> None:
    result = run_import(place, network_of(classes=128, hidden=3), "--json")
    assert result.exit_code == 0, result.output
    stage = json.loads(result.stdout)["stages"][0]
    sha256 = hashlib.sha256((place[0] / "checkpoint.pth.tar").read_bytes()).hexdigest()
    assert stage["figures"]["authors"] == {
        "checkpoint": "checkpoint.pth.tar",
        "sha256": sha256,
        "form": "released",
        "trained_on": "unknown",
    }
    workspace = Workspace(str(place[0] / "work"), "main")
    bundle = workspace.read_bundle()
    assert bundle.provenance["authors"] == stage["figures"]["authors"]
    assert [(s.name, s.bands) for s in bundle.spec.sources] == [("optical", 3), ("radar", 1)]
    assert [c.name for c in bundle.classes] == ["water", "forest", "town"]
    store = PatchStore(workspace.store("small"))
    products = [product("class"), product("confidence", "float32")]
    predictor = TilePredictor(bundle, products=products, precision="float32")
    layers = predictor.predict(store, Tile("small", Window(64, 64, 64, 64)))
    assert set(np.unique(layers["class"])) <= {1, 2, 5}
    assert (layers["confidence"] >= 1 / 3).all(), "confidence must be over 3 classes, not 128"


def test_evaluate_warns_that_training_data_may_include_test_pixels(place: tuple[Path, list[str]]) -> None:
    assert run_import(place, network_of()).exit_code == 0
    result = command("evaluate", place)
    assert result.exit_code == 0, result.output
    assert "not current" not in result.stderr
    assert "note: the model was imported from a reference checkpoint, and its training data are unknown" in result.stdout
    evaluation = json.loads((place[0] / "work/runs/main/evaluation.json").read_text())
    assert "they may include test pixels" in evaluation["caveat"]


def test_evaluate_after_new_prepare_requires_reimport(place: tuple[Path, list[str]]) -> None:
    assert run_import(place, network_of()).exit_code == 0
    assert command("prepare", place, "--set", "split.seed=1").exit_code == 0
    for name in ("evaluate", "run"):
        result = command(name, place, "--set", "split.seed=1")
        assert result.exit_code == 2, result.output
        assert "run `mibf import-checkpoint` again" in result.stderr
    assert run_import(place, network_of(), "--set", "split.seed=1").exit_code == 0
    assert command("evaluate", place, "--set", "split.seed=1").exit_code == 0


def test_train_does_not_overwrite_imported_model(place: tuple[Path, list[str]]) -> None:
    assert run_import(place, network_of()).exit_code == 0
    before = (place[0] / "work/models/main/weights.safetensors").read_bytes()
    result = command("train", place)
    assert result.exit_code == 2
    assert "was imported from a reference checkpoint, and training would overwrite it" in result.stderr
    assert (place[0] / "work/models/main/weights.safetensors").read_bytes() == before
    assert run_import(place, network_of(classes=128, hidden=3)).exit_code == 0, "another checkpoint may replace it"


def test_import_does_not_overwrite_trained_model(place: tuple[Path, list[str]]) -> None:
    started = place[0] / "work/runs/main/started.json"
    started.parent.mkdir(parents=True)
    started.write_text("{}")
    message = refused(place, network_of())
    assert "run 'main' was trained or started by `mibf train`; its model is not overwritten" in message
    assert "--set run=authors" in message
    assert run_import(place, network_of(), "--set", "run=authors").exit_code == 0
    assert (place[0] / "work/models/authors/model.json").exists()


def test_import_does_not_overwrite_bundle_of_unknown_origin(place: tuple[Path, list[str]]) -> None:
    assert run_import(place, network_of()).exit_code == 0
    path = place[0] / "work/models/main/model.json"
    model = json.loads(path.read_text())
    del model["provenance"]["authors"]
    path.write_text(json.dumps(model))
    assert "its model is not overwritten" in refused(place, network_of())


def test_import_with_mismatched_bands_or_classes_is_refused(place: tuple[Path, list[str]]) -> None:
    message = refused(place, network_of((64, 2)))
    assert "takes 64 bands from its first source and 2 from its second" in message
    assert "the scenes' sources have optical 3 and radar 1" in message
    assert "swap the sources" in refused(place, network_of((1, 3)))
    message = refused(place, network_of(classes=4))
    assert "has 4 classes; the configuration declares 3 (water, forest, town)" in message


def test_import_with_centre_path_is_refused(place: tuple[Path, list[str]]) -> None:
    message = refused(place, network_of(), "--set", "model.centre=true")
    assert "model.centre is true, but the authors' network has no centre path; remove model.centre" in message


def test_invalid_checkpoint_files_are_refused_by_name(place: tuple[Path, list[str]]) -> None:
    assert "checkpoint.pth.tar: is not a checkpoint written by torch.save" in refused(place, b"text")
    assert "checkpoint.pth.tar: these are not the weights" in refused(place, saved({"a": torch.ones(2)}))
    for name, cause in (("nowhere.pth", "file not found"), ("", "cannot be read")):
        result = CliRunner().invoke(app, ["import-checkpoint", str(place[0] / name), *place[1]])
        assert result.exit_code == 2
        assert cause in result.stderr
    assert not (place[0] / "work/models").exists()


def test_import_before_prepare_is_refused(scene: SmallScene, tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(saved(reference_state(network_of())))
    result = CliRunner().invoke(app, ["import-checkpoint", str(tmp_path / "c.pth"), "--config", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare`" in result.stderr
    assert not (tmp_path / "work").exists()


def test_import_with_three_sources_is_refused(scene: SmallScene, tmp_path: Path) -> None:
    write_raster(tmp_path / "height.tif", np.ones((1, 150, 130), np.uint8))
    scenes = scene.config()["scenes"]
    scenes[0]["sources"]["height"] = {"url": str(tmp_path / "height.tif")}
    config = str(scene.write_config(scenes=scenes))
    assert CliRunner().invoke(app, ["prepare", config]).exit_code == 0
    message = refused((tmp_path, ["--config", config]), network_of())
    assert "has two sources; the scenes have 3 (optical, radar, height)" in message


def test_checkpoint_path_accepts_home_relative_and_file_url(
    place: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place[0]))
    monkeypatch.chdir(place[0])
    (place[0] / "c.pth").write_bytes(saved(reference_state(network_of())))
    for path in ("~/c.pth", "c.pth", f"file://{place[0]}/c.pth"):
        result = CliRunner().invoke(app, ["import-checkpoint", path, *place[1]])
        assert result.exit_code == 0, result.output


def test_import_warns_when_patch_differs_from_paper(place: tuple[Path, list[str]]) -> None:
    result = run_import(place, network_of())
    assert "the paper uses patches of 7 pixels" in result.stderr
    assert "model.patch (5) is used" in result.stderr


@pytest.mark.slow
def test_run_after_import_skips_train_and_completes_other_stages(place: tuple[Path, list[str]]) -> None:
    assert run_import(place, network_of()).exit_code == 0
    result = mibf("run", place[1][1], *place[1][2:], "--set", "map.workers=0", "--json")
    assert result.status == 0, result.stderr
    stages = {stage["stage"]: stage["skipped"] for stage in json.loads(result.stdout)["stages"]}
    assert stages == {"prepare": True, "train": True, "evaluate": False, "map": False, "report": False}
    with rasterio.open(place[0] / "work/maps/small/main/class.tif") as dataset:
        assert set(np.unique(dataset.read(1))) <= {1, 2, 5, 255}
    page = (place[0] / "work/report/index.html").read_text()
    assert "The training data of the model are unknown" in page
    assert "checkpoint.pth.tar" in page
