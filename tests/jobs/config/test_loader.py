"""Loading a configuration: paths and URLs, `--set` overrides, and all mistakes reported together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config.loader import load
from mibf.errors import InputError
from pipeline.io import storage
from tests.support.refusals import load_error
from tests.support.scenes import SmallScene


def test_several_errors_are_reported_together(scene: SmallScene) -> None:
    message = load_error(scene, ["train.epoch=3", "model.patch=8"])
    assert "epochs" in message
    assert "odd number" in message


def test_missing_required_key_is_named(scene: SmallScene) -> None:
    values = scene.config()
    del values["workspace"]
    path = scene.folder / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="workspace: is missing"):
        load(str(path))


def test_overrides_set_list_items_and_new_keys(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["classes.0.name=lake", "split.seed=4", "map.products=[class]"])
    assert config.classes[0].name == "lake"
    assert config.split.seed == 4
    assert config.map.products == ("class",)
    for wrong in ("train.epochs", "classes.9.name=x", "name.x=1"):
        assert "--set" in load_error(scene, [wrong])


@pytest.mark.parametrize("text", ["a: [", "just words", "- 1\n- 2", ""])
def test_file_that_is_not_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml"):
        load(str(path))


def test_configuration_loads_from_any_url(scene: SmallScene) -> None:
    path, url = scene.write_config(), "memory://configurations/small.yaml"
    storage.write_bytes(url, path.read_bytes())
    assert load(url, overrides=["model.patch=9"]) == load(str(path), overrides=["model.patch=9"])
    with pytest.raises(InputError, match=r"memory://configurations/none\.yaml: cannot be read \(no such file\)"):
        load("memory://configurations/none.yaml")
    storage.write_bytes(url, b"# \n" * 3 * 2**20)
    with pytest.raises(InputError, match="is larger than 8 MiB"):
        load(url)
