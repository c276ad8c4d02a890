"""The configuration file: what it may say, and how mistakes in it are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config import load
from jobs.stages import fingerprint
from mibf.errors import InputError
from pipeline import storage
from tests.conftest import SmallScene

ROOT = Path(__file__).resolve().parents[1]


def refusal(scene: SmallScene, overrides: list[str] | None = None, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(str(scene.write_config(**changes)), overrides=overrides or [])
    return str(caught.value)


def test_defaults_fill_what_is_not_said(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    assert config.run == "main"
    assert config.split.method == "blocks"
    assert config.map.products == ("class", "confidence")
    assert config.scenes[0].sources["radar"].resampling is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("scenes.0.datetime=summer", "scenes.0.datetime: is no time of ISO 8601: write an instant"),
        ("scenes.0.datetime=2024-07-01", "scenes.0.datetime: 2024-07-01 has no time zone: add Z for UTC"),
        ("scenes.0.datetime=2024-07-01T10:30:00", "has no time zone"),
        ("scenes.0.datetime=2024-07-02T00:00:00Z/2024-07-01T00:00:00Z", "scenes.0.datetime: an interval's end"),
        ("scenes.0.datetime=2024", "scenes.0.datetime: must be text"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("split.blok=9", "split.blok: unknown key; did you mean 'block'?"),
        (
            "scenes.0.sources.radar.resamplng=mode",
            "scenes.0.sources.radar.resamplng: unknown key; did you mean 'resampling'?",
        ),
        ("map.products=[class, class]", "map.products: a product is named twice in class, class"),
        ("map.products=[]", "map.products: holds too few"),
        ("map.products=class", "map.products: must be a list, in brackets, such as [a, b]"),
        ("map.products=[doubt]", "map.products"),
        ("map.draws=1", "map.draws"),
        ("map.zzzz=1", "map.zzzz: unknown key; known here are model, tile, products, dtype, missing, block,"),
        ("map.drift=stop", "map.drift: Input should be 'warn', 'refuse' or 'ignore' (found 'stop')"),
        ("map.drift_distance=0", "map.drift_distance: Input should be greater than 0"),
        ("model.patch=6", "model.patch: the patch's side is an odd number of pixels from 5 to 15 (found 6)"),
        ("map.tile=100", "map.tile: a tile's side is a multiple of 64 pixels"),
        ("sampling.frequencies=even", "Input should be 'natural', 'balanced' or 'sqrt' (found 'even')"),
        ("train={batch: 5, workers: 3}", "`batch` 5 is too small for 3 workers: 2 samples or more each"),
        ("scenes.0.grid.like=sonar", "`grid.like` is 'sonar'; the sources are optical, radar"),
        ("split.fractions.train=0.9", "the fractions add up to 1.4"),
        ("classes.1.id=1", "class id given twice: 1"),
        ("classes.1.color=green", "classes.1.color"),
        ("split.method=random", "split"),
        ("train.epochs=many", "train.epochs: must be a whole number (found 'many')"),
        ("name=two words", "name: may hold letters, digits"),
        ("classes.0.name=no", "classes.0.name: must be text; put it in quotes (found False)"),
        ("train.seed=99999999999999999999", "train.seed: Input should be less than or equal to 9223372036854775807"),
        ("train.seeds=[]", "train.seeds: holds too few"),
        ("model.without=[noise, noise]", "model.without: a part is named twice in noise, noise"),
        ("train.source_dropout=1", "train.source_dropout: Input should be less than 1"),
        ("train.source_dropout=-0.1", "train.source_dropout: Input should be greater than or equal to 0"),
        ("train.class_weights=even", "train.class_weights: is `balanced`, `sqrt` or weights by class"),
        ("train.class_weights=[1, 2, 1]", "train.class_weights: is `balanced`, `sqrt` or weights by class"),
        ("train.class_weights={1: 2}", "train.class_weights: names class 1; classes go by their names"),
        (
            "train.class_weights={water: 0}",
            "train.class_weights: gives class 'water' the weight 0; a weight is a number above 0",
        ),
        ("train.class_weights={sand: 2}", "train.class_weights names sand; the classes are water, forest, town"),
    ],
)
def test_mistakes_are_told_with_their_place(scene: SmallScene, override: str, told: str) -> None:
    message = refusal(scene, [override])
    assert told in message
    assert str(scene.folder) in message, "names the file"


def test_patience_wants_validation_pixels(scene: SmallScene) -> None:
    message = refusal(scene, ["train.patience=2"], split={"method": "random", "validation": 0})
    assert "`train.patience` waits for a better epoch, and the split has no validation pixels" in message


def test_a_source_alone_cannot_be_lost(scene: SmallScene) -> None:
    alone = ["model={patch: 5, sources: [radar], without: [noise, relation]}"]
    message = refusal(scene, [*alone, "train.source_dropout=0.2"])
    assert "train.source_dropout is 0.2, and model.sources names one source" in message
    assert load(str(scene.write_config()), overrides=alone).train.source_dropout == 0


def test_several_mistakes_are_told_at_once(scene: SmallScene) -> None:
    message = refusal(scene, ["train.epoch=3", "model.patch=8"])
    assert "epochs" in message
    assert "odd number" in message


def test_missing_keys_are_named(scene: SmallScene) -> None:
    values = scene.config()
    del values["workspace"]
    path = scene.folder / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="workspace: is missing"):
        load(str(path))


def test_environment_variables_are_put_in_or_asked_for(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    values = scene.config(workspace="${PLACE}/work")
    path = scene.folder / "env.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"\$\{PLACE\} is used but not set"):
        load(str(path))
    monkeypatch.setenv("PLACE", "/somewhere")
    assert load(str(path)).workspace == "/somewhere/work"


def test_overrides_reach_lists_and_new_keys(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["classes.0.name=lake", "split.seed=4", "map.products=[class]"])
    assert config.classes[0].name == "lake"
    assert config.split.seed == 4  # type: ignore[union-attr]  # blocks, by the file
    assert config.map.products == ("class",)
    for wrong in ("train.epochs", "classes.9.name=x", "name.x=1"):
        assert "--set" in refusal(scene, [wrong])


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("train: {epochs: 7}\ntrain: {epochs: 8}\n")
    with pytest.raises(InputError, match="key 'train' is given twice"):
        load(str(path))


@pytest.mark.parametrize("text", ["a: [", "just words", "- 1\n- 2", ""])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.yaml"):
        load(str(path))


def test_a_tile_is_whole_cells() -> None:
    from mibf.cell import CELL

    assert CELL == 64, "config.MapSection says 64 so that reading a configuration does not import torch"


def test_a_class_cannot_be_declared_and_ignored(scene: SmallScene) -> None:
    assert "names declared classes: 5" in refusal(scene, ["scenes.0.labels.ignore=[5]"])


def test_a_python_object_in_the_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="not valid YAML"):
        load(str(path))


@pytest.mark.parametrize("name", ["zion", "terramind", "indian_pines_paper"])
def test_the_examples_are_configurations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    assert load(str(ROOT / "examples" / f"{name}.yaml")).name == name


def test_every_product_of_a_map_can_be_asked_for() -> None:
    from jobs.config import MapSection
    from mibf.products import PRODUCT_NAMES
    from pipeline.products import MAP_PRODUCTS

    assert MapSection(products=MAP_PRODUCTS).products == MAP_PRODUCTS
    assert set(MAP_PRODUCTS) == set(PRODUCT_NAMES) - {"logits"} | {"sources"}


@pytest.mark.parametrize("override", ["map.block=1000", "map.block=0", "map.dtype=int16", "map.missing=exclude"])
def test_forms_of_a_map_that_cannot_be_are_refused(scene: SmallScene, override: str) -> None:
    assert override.split("=")[0] in refusal(scene, [override])


@pytest.mark.parametrize("override", ["sampling.frequencies=balanced", "train.augment=true"])
def test_what_training_draws_makes_it_stale_and_prepare_not(scene: SmallScene, override: str) -> None:
    path = str(scene.write_config())
    before, after = load(path), load(path, overrides=[override])
    assert fingerprint(before, "train") != fingerprint(after, "train")
    assert fingerprint(before, "prepare") == fingerprint(after, "prepare")


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("2024-07-01T10:30:00Z", "2024-07-01T10:30:00+00:00"),  # YAML makes a time of it
        ("'2024-07-01T10:30:00+02:00'", "2024-07-01T10:30:00+02:00"),
        ("2024-06-01T00:00:00Z/2024-08-31T23:59:59Z", "2024-06-01T00:00:00Z/2024-08-31T23:59:59Z"),
    ],
)
def test_when_a_scene_was_taken_makes_the_map_stale_alone(scene: SmallScene, told: str, kept: str) -> None:
    path = str(scene.write_config())
    before, after = load(path), load(path, overrides=[f"scenes.0.datetime={told}"])
    assert (before.scenes[0].datetime, after.scenes[0].datetime) == (None, kept)
    assert fingerprint(before, "map") != fingerprint(after, "map")
    for stage in ("prepare", "train", "evaluate"):
        assert fingerprint(before, stage) == fingerprint(after, stage)


def test_a_configuration_is_read_from_any_url(scene: SmallScene) -> None:
    path, url = scene.write_config(), "memory://configurations/small.yaml"
    storage.write_bytes(url, path.read_bytes())
    assert load(url, overrides=["model.patch=9"]) == load(str(path), overrides=["model.patch=9"])
    with pytest.raises(InputError, match=r"memory://configurations/none\.yaml: cannot be read \(no such file\)"):
        load("memory://configurations/none.yaml")
    storage.write_bytes(url, b"# \n" * 3 * 2**20)
    with pytest.raises(InputError, match="is larger than 8 MiB"):
        load(url)
