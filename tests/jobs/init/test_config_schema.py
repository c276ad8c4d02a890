"""The JSON Schema of the configuration accepts what the loader accepts, and the shipped file is current."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.init.config_schema import ALTERNATIVES, DIALECT, KEY_RULES, config_schema, config_schema_text
from tests.support.scenes import SmallScene

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "jobs/sample/demo.yaml"]
VALIDATOR = jsonschema.Draft202012Validator(config_schema())


def minimal(**changes: Any) -> dict[str, Any]:
    """A small valid configuration with some top-level keys replaced."""
    scene = {
        "name": "a",
        "grid": {"like": "optical"},
        "sources": {"optical": {"url": "a.tif"}, "radar": {"url": "b.tif"}},
        "labels": {"url": "l.tif"},
    }
    classes = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}]
    return {"name": "a", "workspace": "work", "scenes": [scene], "classes": classes} | changes


def changed(path: str, value: Any) -> dict[str, Any]:
    """The small configuration with a value at a dotted path."""
    config = copy.deepcopy(minimal())
    *parents, last = path.split(".")
    place: Any = config
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return config


def is_loaded(config: dict[str, Any], folder: Path) -> bool:
    """Whether the loader accepts a configuration."""
    from mibf.errors import InputError

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        load(str(path))
    except InputError:
        return False
    return True


def test_schema_is_valid_in_its_declared_dialect() -> None:
    schema = config_schema()
    assert schema["$schema"] == DIALECT
    assert schema["$id"].startswith("urn:")
    assert schema["title"]
    assert schema["description"]
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example_configurations_are_valid(path: Path) -> None:
    assert [e.message for e in VALIDATOR.iter_errors(yaml.safe_load(path.read_text()))] == []


def test_small_scene_configuration_is_valid(scene: SmallScene) -> None:
    assert [e.message for e in VALIDATOR.iter_errors(scene.config())] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.epochs", 3),
        ("train.epochs", "${EPOCHS}"),
        ("train.augment", "${AUGMENT}"),
        ("train.precision", "${PRECISION}"),
        ("train.class_weights", "balanced"),
        ("train.class_weights", {"water": 2.5}),
        ("train.class_weights", {"water": "${WEIGHT}"}),
        ("train.seeds", [0, "${SEED}"]),
        ("split", {"block": 20}),
        ("split", {"method": "random", "validation": 0}),
        ("split", {"method": "raster", "url": "split.tif"}),
        ("split.fractions", {"train": "${SHARE}", "validation": 0.2, "test": 0.3}),
        ("scenes.0.sources.optical.bands", "1-3, 8"),
        ("scenes.0.sources.optical.bands", [1, 2]),
        ("scenes.0.sources.optical.bands", "${BANDS}"),
        ("scenes.0.sources.optical.scale", 2),
        ("scenes.0.sources.optical.decode", "alphaearth"),
        ("scenes.0.sources.optical.decode", "${DECODE}"),
        ("scenes.0.sources.optical.decode", {"tessera": {"scales": "scales.tif"}}),
        ("scenes.0.sources.optical", {"url": "a.tif", "band_names": ["red", "nir"], "derive": {"ratio": "nir / red"}}),
        ("scenes.0.grid", {"crs": "EPSG:32633", "resolution": "${RESOLUTION}", "bounds": [0, 0, 10, "${TOP}"]}),
        ("scenes.0.labels", None),
        ("scenes.0.labels.ignore", [0, "unknown"]),
        ("classes.0.color", "#0072b2"),
        ("classes.0.color", "${COLOR}"),
        ("model.patch", 9),
        ("name", "${NAME}"),
    ],
)
def test_schema_accepts_what_the_loader_accepts(
    path: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "EPOCHS": "3", "AUGMENT": "true", "PRECISION": "bf16", "WEIGHT": "2", "SEED": "4", "SHARE": "0.5", "BANDS": "1-2",
        "RESOLUTION": "10", "TOP": "20", "COLOR": "#ffffff", "NAME": "valley", "DECODE": "db",
    }  # fmt: skip  # pairs: one per line would fill a page
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    config = changed(path, value)
    assert is_loaded(config, tmp_path)
    assert [e.message for e in VALIDATOR.iter_errors(config)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("epochs", 3),
        ("train.epoch", 3),
        ("train.epochs", "three"),
        ("train.epochs", 0),
        ("train.class_weights", "heavy"),
        ("train.class_weights", {"water": -1}),
        ("train.workers", [1]),
        ("split", {"method": "raster"}),
        ("split", {"method": "circles"}),
        ("split", {"block": 20, "url": "split.tif"}),
        ("scenes.0.sources", {}),
        ("scenes.0.sources", {"optical": {"url": "a.tif"}, "no spaces": {"url": "b.tif"}}),
        ("scenes.0.sources.optical", {"url": "a.tif", "urls": ["b.tif"]}),
        ("scenes.0.sources.optical", {"nodata": 0}),
        ("scenes.0.sources.optical.bands", "first"),
        ("scenes.0.sources.optical.scale", 3),
        ("scenes.0.sources.optical.decode", "tessera"),
        ("scenes.0.sources.optical.decode", {"tessera": {}}),
        ("scenes.0.sources.optical.band_names", ["red", "2nd"]),
        ("scenes.0.grid", {}),
        ("scenes.0.grid", {"crs": "EPSG:32633"}),
        ("classes", [{"id": 1, "name": "water"}]),
        ("classes.0.id", 255),
        ("classes.0.color", "blue"),
        ("model.patch", 8),
        ("name", "no spaces"),
        ("workspace", 3),
    ],
)
def test_schema_rejects_what_the_loader_rejects(path: str, value: Any, tmp_path: Path) -> None:
    config = changed(path, value)
    assert not is_loaded(config, tmp_path)
    assert not VALIDATOR.is_valid(config)


def test_added_rules_refer_to_existing_keys() -> None:
    sections = Config.model_json_schema()["$defs"]
    for name, rules in KEY_RULES.items():
        assert set(rules) <= set(sections[name]["properties"])
    for name, alternatives in ALTERNATIVES.items():
        assert {key for keys in alternatives for key in keys} <= set(sections[name]["properties"])


def test_shipped_schema_is_current() -> None:
    shipped = (ROOT / "docs/mibf.schema.json").read_text(encoding="utf-8")
    assert shipped == config_schema_text(), "run `mibf schema --output docs/mibf.schema.json`"


def test_schema_command_prints_or_writes(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.exit_code == 0
    assert printed.stdout == config_schema_text()
    written = CliRunner().invoke(app, ["schema", "--output", str(tmp_path / "schema.json")])
    assert written.exit_code == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == config_schema_text()
