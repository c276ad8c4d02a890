"""Old names of keys and products: refused in a file with the new name, accepted in what a run has saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config.loader import load
from jobs.config.renamed import RENAMED_KEYS, translate
from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.maps.products import MAP_PRODUCTS
from tests.support.scenes import SmallScene

#: A value that each old key took.
VALUES = {
    "train.clip": 1.0,
    "train.average": 0.05,
    "train.optimiser": "adam",
    "sampling.rate": 0.5,
    "map.tile": 64,
    "prepare.scheduler": "tcp://10.0.0.1:8786",
}


def write(scene: SmallScene, old: str) -> Path:
    values = scene.config()
    section, _, key = old.partition(".")
    new = RENAMED_KEYS[old].partition(".")[2]
    below = {k: v for k, v in values.get(section, {}).items() if k != new}
    values[section] = below | {key: VALUES.get(old, 4)}
    path = scene.folder / "old.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_old_key_is_refused_with_the_new_one(scene: SmallScene, old: str) -> None:
    with pytest.raises(InputError, match=rf"{old}: this key is now called `{RENAMED_KEYS[old]}`"):
        load(str(write(scene, old)))


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_old_key_in_a_saved_configuration_is_read(scene: SmallScene, old: str) -> None:
    config = load(str(write(scene, old)), saved=True)
    section, _, key = RENAMED_KEYS[old].partition(".")
    assert getattr(getattr(config, section), key) == VALUES.get(old, 4)


@pytest.mark.parametrize("old", RENAMED_PRODUCTS)
def test_old_product_is_refused_with_the_new_one(scene: SmallScene, old: str) -> None:
    path = scene.write_config(map={"products": ["class", old]})
    with pytest.raises(InputError, match=f"is now called `{RENAMED_PRODUCTS[old]}`"):
        load(str(path))
    assert load(str(path), saved=True).map.products == ("class", RENAMED_PRODUCTS[old])


def test_new_product_names_are_valid() -> None:
    assert set(RENAMED_PRODUCTS.values()) <= set(MAP_PRODUCTS)


def test_translating_leaves_other_values_alone() -> None:
    values = {"name": "a", "train": {"rate": 1, "epochs": 2}, "map": None}
    assert translate(values) == {"name": "a", "train": {"learning_rate": 1, "epochs": 2}, "map": None}


def test_old_recipe_in_a_saved_configuration_is_read(scene: SmallScene) -> None:
    found = load(str(scene.write_config(train={"recipe": "default", "epochs": 3})), saved=True).train
    assert found == load(str(scene.write_config(train={"recipe": "standard", "epochs": 3}))).train
