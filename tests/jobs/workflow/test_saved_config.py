"""Saved configurations: absolute paths, no signatures, and the relative paths of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.workflow import saved_config
from jobs.workflow.saved_config import INLINE_SCENES, as_run, relative_paths, save_map_config, save_training_config
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


def test_defaults_are_not_saved(scene: SmallScene) -> None:
    config = loaded(scene)
    saved = yaml.safe_load(as_run(config))
    assert saved["map"] == {"tile_size": 64, "workers": 1}
    again = load(str(write(scene, saved)), saved=True)
    assert again.scenes[0].sources["optical"].model_fields_set == {"url"}, "what was set decides some rules"


def write(scene: SmallScene, values: dict[str, Any]) -> Path:
    path = scene.folder / "saved.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_many_scenes_are_saved_as_a_table_that_moves_with_the_workspace(scene: SmallScene, tmp_path: Path) -> None:
    config = scene.config()
    (one,) = config["scenes"]
    mask = {"url": "https://host/mask.tif?sig=secret", "valid": [1]}
    one["sources"]["optical"] |= {"select": {"time": "2021-06-11"}, "mask": mask}
    many = [one | {"name": f"s{i}"} | ({"labels": None} if i else {}) for i in range(INLINE_SCENES + 1)]
    (scene.folder / "many.json").write_text(json.dumps(many))
    listed, table = (
        load(str(write(scene, config | {"scenes": s}))) for s in (many, {"table": str(scene.folder / "many.json")})
    )
    assert table == listed
    workspace = Workspace.of(listed)
    for save, url in (
        (save_map_config, workspace.map_configuration),
        (save_training_config, workspace.configuration),
    ):
        save(listed, workspace)
        saved = load(url, saved=True)
        assert load(url) == saved, "also by a person"
        assert saved.scenes[0].sources["optical"].mask is not None
        assert saved.scenes[0].sources["optical"].mask.url == "https://host/mask.tif"
        assert saved.scenes[1:3] == load(str(write(scene, yaml.safe_load(as_run(listed))))).scenes[1:3]
        assert saved.scenes[1].labels is None
    (kept,) = Path(workspace.run_folder).glob("scenes-*.json")
    assert "secret" not in kept.read_text()
    moved = Path(workspace.url).rename(tmp_path / "elsewhere")
    found = str(moved / "runs/main/map.yaml")
    assert load(found, saved=True) == saved
    damaged = moved / "runs/main" / kept.name
    damaged.write_text(damaged.read_text().replace("s7", "s007"))
    with pytest.raises(InputError, match="is not the table that was saved"):
        load(found, saved=True)


def test_configuration_too_large_to_be_read_again_is_refused_before_it_is_saved(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded(scene)
    monkeypatch.setattr(saved_config, "MAX_VALUES", 10)
    with pytest.raises(InputError, match=r"the configuration has \d+ lines, .* to be read again by a rerun"):
        save_map_config(config, Workspace.of(config))
    assert not Path(Workspace.of(config).map_configuration).exists()
