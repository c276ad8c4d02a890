"""Saved configurations: absolute paths, no signatures, and the relative paths of a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.config import yaml_loader
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.workflow import saved_config
from jobs.workflow.saved_config import as_run, relative_paths, save_map_config, save_training_config
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
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


def test_configuration_written_by_a_run_can_be_read_again_where_its_source_can(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All defaults are saved, so the file of a run is larger; the limits are lowered to keep the test short."""
    config = scene.config()
    (one,) = config["scenes"]
    path = scene.folder / "many.yaml"
    path.write_text(json.dumps(config | {"scenes": [one | {"name": f"s{i}"} for i in range(40)]}))
    monkeypatch.setattr(yaml_loader, "MAX_BYTES", path.stat().st_size)
    monkeypatch.setattr(yaml_loader, "MAX_VALUES", 1500)
    loaded_config = load(str(path))
    workspace = Workspace.of(loaded_config)
    save_map_config(loaded_config, workspace)
    assert Path(workspace.map_configuration).stat().st_size > yaml_loader.MAX_BYTES
    assert load(workspace.map_configuration, saved=True) == loaded_config


def test_configuration_too_large_to_be_read_again_is_refused_before_it_is_saved(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded(scene)
    monkeypatch.setattr(saved_config, "MAX_VALUES", 10)
    with pytest.raises(InputError, match=r"1 scene has \d+ values with all defaults, too many to be read again"):
        save_map_config(config, Workspace.of(config))
    assert not Path(Workspace.of(config).map_configuration).exists()
