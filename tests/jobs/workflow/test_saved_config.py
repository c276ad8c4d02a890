"""Saved configurations: absolute paths, no signatures, and the relative paths of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.workflow.saved_config import as_run, relative_paths, save_map_config, save_training_config
from jobs.workflow.workspace import Workspace
from pipeline.io import storage
from tests.support.scenes import SmallScene


def loaded(scene: SmallScene, *overrides: str) -> Config:
    return load(str(scene.write_config()), overrides=overrides)


def test_saved_configuration_loads_as_the_same_configuration(scene: SmallScene) -> None:
    config = loaded(scene, "map.products=[class, entropy]")
    (scene.folder / "saved.yaml").write_text(as_run(config))
    assert load(str(scene.folder / "saved.yaml"), saved=True) == config


def test_relative_paths_are_saved_as_absolute_ones(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene.folder)
    config = loaded(scene, "workspace=work", "scenes.0.sources.radar.url=radar.tif", "map.model=models/a")
    saved = yaml.safe_load(as_run(config))
    assert saved["workspace"] == str(scene.folder / "work")
    assert saved["scenes"][0]["sources"]["radar"]["url"] == str(scene.folder / "radar.tif")
    assert saved["map"]["model"] == str(scene.folder / "models/a")
    assert saved["name"] == "small", "names are no paths"


def test_saved_configuration_contains_no_signatures(scene: SmallScene) -> None:
    signed = "https://host/radar.tif?sig=secret"
    text = as_run(loaded(scene, f"scenes.0.sources.radar.url={signed}"))
    assert "secret" not in text
    assert "https://host/radar.tif" in text


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("radar.tif", True),
        ("../data/radar.tif", True),
        ("file://radar.tif", True),
        ("/data/radar.tif", False),
        ("~/radar.tif", False),
        ("s3://bucket/radar.tif", False),
        ("https://host/radar.tif", False),
    ],
)
def test_relative_paths_are_detected(scene: SmallScene, path: str, relative: bool) -> None:
    config = loaded(scene, f"scenes.0.sources.radar.url={path}")
    assert relative_paths(config) == ([path] if relative else [])


def test_training_and_map_configurations_are_saved_apart(scene: SmallScene) -> None:
    workspace = Workspace.of(loaded(scene))
    save_training_config(loaded(scene, "train.epochs=3"), workspace)
    save_map_config(loaded(scene, "train.epochs=4"), workspace)
    found = [load(url, saved=True).train.epochs for url in (workspace.configuration, workspace.map_configuration)]
    assert found == [3, 4]
    assert Path(workspace.configuration).parent == Path(storage.local_path(workspace.run_folder))
