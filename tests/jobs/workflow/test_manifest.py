"""Manifests: a stage without a readable one is not finished; a moved workspace keeps its outputs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.loader import load
from jobs.workflow.manifest import Manifest, check_dependencies, dependencies, outputs_exist, read_manifest
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from tests.support.scenes import SmallScene


def write_manifest(folder: Path) -> Manifest:
    """Write a workspace in which `prepare` finished, with one output and one input elsewhere."""
    (folder / "stores").mkdir(parents=True)
    outputs = [str(folder / "stores"), "s3://bucket/elsewhere"]
    manifest = Manifest("prepare", "abc", "2026-01-02T03:04:05+00:00", 1.5, 1000, outputs=outputs, workspace=str(folder))
    storage.write_json(Workspace(str(folder), "main").manifest("prepare"), vars(manifest))
    return manifest


def test_manifest_reads_back(tmp_path: Path) -> None:
    assert read_manifest(Workspace(str(tmp_path), "main"), "prepare") is None
    written = write_manifest(tmp_path)
    assert read_manifest(Workspace(str(tmp_path), "main"), "prepare") == written
    assert read_manifest(Workspace(str(tmp_path), "other"), "prepare") == written, "runs share `prepare`"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "prepare"}', '{"unknown": 1}'])
def test_unreadable_manifest_means_unfinished(tmp_path: Path, content: str) -> None:
    write_manifest(tmp_path)
    (tmp_path / "manifests/prepare.json").write_text(content)
    assert read_manifest(Workspace(str(tmp_path), "main"), "prepare") is None


def test_outputs_follow_a_moved_workspace(tmp_path: Path) -> None:
    write_manifest(tmp_path / "before")
    shutil.move(tmp_path / "before", tmp_path / "after")
    found = read_manifest(Workspace(str(tmp_path / "after"), "main"), "prepare")
    assert found is not None
    assert found.outputs == [str(tmp_path / "after/stores"), "s3://bucket/elsewhere"]
    assert outputs_exist(replace(found, outputs=found.outputs[:1]))
    (tmp_path / "after/stores").rmdir()
    assert not outputs_exist(replace(found, outputs=found.outputs[:1]))


def test_identity_differs_between_results_with_equal_fingerprints(tmp_path: Path) -> None:
    made = write_manifest(tmp_path)
    assert made.identity == replace(made, seconds=9.0).identity
    assert made.identity != replace(made, finished="2026-01-02T03:04:06+00:00").identity


def test_map_with_an_external_model_needs_no_training(scene: SmallScene) -> None:
    path = str(scene.write_config())
    assert dependencies(load(path), "map") == ("prepare", "train")
    assert dependencies(load(path, overrides=["map.model=/models/a"]), "map") == ("prepare",)


def test_report_uses_baselines_that_are_on_but_does_not_need_them(scene: SmallScene) -> None:
    config = load(str(scene.write_config(baselines={})))
    assert dependencies(config, "report") == ("prepare", "train", "evaluate", "baseline", "map")
    off = load(str(scene.write_config(baselines={"enabled": False})))
    assert dependencies(off, "report") == ("prepare", "train", "evaluate", "map")
    for stage in ("prepare", "train", "evaluate", "map"):
        storage.write_json(Workspace.of(config).manifest(stage), vars(Manifest(stage, "abc", "2026", 1.5, 1000)))
    check_dependencies(config, "report")


def test_unfinished_dependency_is_refused_with_the_command_to_run(scene: SmallScene) -> None:
    path = str(scene.write_config())
    with pytest.raises(InputError, match="`prepare` is not finished; run `mibf prepare` or `mibf run` first"):
        check_dependencies(load(path), "train")
    write_manifest(scene.folder / "work")
    check_dependencies(load(path), "train")
    with pytest.raises(InputError, match="`train` is not finished for run 'main'; run `mibf train`"):
        check_dependencies(load(path), "map")
    with pytest.raises(InputError, match=r"no scene has `labels` to train one on; set map\.model"):
        check_dependencies(load(path, overrides=["scenes.0.labels=null"]), "map")
