"""Configuration sections: defaults, allowed values, and error messages that name the key and the file."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobs.config.loader import load
from tests.support.paths import ROOT
from tests.support.refusals import load_error
from tests.support.scenes import SmallScene


def test_missing_optional_keys_get_defaults(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    assert config.run == "main"
    assert config.split.method == "blocks"
    assert config.map.products == ("class", "confidence")
    assert config.scenes[0].sources["radar"].resampling is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("scenes.0.datetime=summer", "scenes.0.datetime: is not an ISO 8601 time: use an instant"),
        ("scenes.0.datetime=2024-07-01", "scenes.0.datetime: 2024-07-01 has no time zone: add Z for UTC"),
        ("scenes.0.datetime=2024-07-01T10:30:00", "has no time zone"),
        ("scenes.0.datetime=2024-07-02T00:00:00Z/2024-07-01T00:00:00Z", "scenes.0.datetime: the end of an interval"),
        ("scenes.0.datetime=2024", "scenes.0.datetime: must be text"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("trian.epochs=3", "trian: unknown key; did you mean 'train'?"),
        ("split.blok=9", "split.blok: unknown key; did you mean 'block'?"),
        (
            "scenes.0.sources.radar.resamplng=mode",
            "scenes.0.sources.radar.resamplng: unknown key; did you mean 'resampling'?",
        ),
        ("map.products=[class, class]", "map.products: class, class: the same product is listed twice"),
        ("map.products=[]", "map.products: has too few entries"),
        ("map.products=class", "map.products: must be a list in brackets, such as [a, b]"),
        ("map.products=[doubt]", "map.products"),
        ("map.mc_samples=1", "map.mc_samples"),
        ("map.zzzz=1", "map.zzzz: unknown key; known keys here: model, tile_size, products, dtype, missing, block,"),
        ("map.drift=stop", "map.drift: Input should be 'warn', 'refuse' or 'ignore' (found 'stop')"),
        ("map.drift_distance=0", "map.drift_distance: Input should be greater than 0"),
        ("model.patch=6", "model.patch: the patch side must be an odd number of pixels from 5 to 15 (found 6)"),
        ("map.tile_size=100", "map.tile_size: the tile side must be a multiple of 64 pixels"),
        ("sampling.frequencies=even", "Input should be 'natural', 'balanced' or 'sqrt' (found 'even')"),
        ("train={batch_size: 5, workers: 3}", "`batch_size` 5 is too small for 3 workers: each needs at least 2 samples"),
        ("scenes.0.bbox=[9, 46, 10, 45]", "scenes.0.bbox: `bbox` must be [west, south, east, north] in degrees"),
        ("scenes.0.bbox=[9, 45, 10, 91]", "with -90 <= south < north <= 90"),
        ("scenes.0.bbox=[9, 45, 9, 46]", "scenes.0.bbox: `bbox` must be"),
        ("scenes.0.bbox=[9, 45, 190, 46]", "west and east from -180 to 180 (west > east crosses the antimeridian)"),
        ("scenes.0.area.file=a.gpkg", "scenes.0.area.file: unknown key"),
        ("scenes.0.grid={crs: auto, resolution: 10}", "`grid.crs: auto` needs an area; give `area: {url: FILE}` or `bbox:"),
        ("scenes.0.grid={crs: EPSG:32633, resolution: 10}", "`grid.bounds` is missing; give `area: {url: FILE}` or"),
        ("scenes.0.grid={crs: auto, resolution: 9, bounds: [0, 0, 1, 1]}", "`crs: auto` takes the bounds of the area"),
        ("scenes.0.grid={crs: auto}", "give either `like` (a source name) or all of `crs`, `resolution` and `bounds`"),
        ("scenes.0.grid={like: optical, bounds: [0, 0, 1, 1]}", "give either `like` (a source name) or all of"),
        ("scenes.0.grid.like=sonar", "`grid.like` is 'sonar'; the sources are optical, radar"),
        ("split.fractions.train=0.9", "the fractions sum to 1.4"),
        ("classes.1.id=1", "duplicate class id: 1"),
        ("classes.1.color=green", "classes.1.color"),
        ("split.method=random", "split"),
        ("train.epochs=many", "train.epochs: must be an integer (found 'many')"),
        ("name=two words", "name: may contain only letters, digits"),
        ("classes.0.color=blue", "classes.0.color: must be written #rrggbb, such as #1c5f2c (found 'blue')"),
        ("map.license=CC BY 4.0", "map.license: must be an SPDX identifier such as CC-BY-4.0, or `other` with the text at"),
        ("map.license_url=s3://x/text", "map.license_url: must begin with https:// or http://"),
        ("map.providers=[{name: a, url: 'https://me@b.org'}]", "map.providers.0.url: must begin with https://"),
        ("classes.0.name=no", "classes.0.name: must be text; put it in quotes (found False)"),
        ("train.seed=99999999999999999999", "train.seed: Input should be less than or equal to 9223372036854775807"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1"),
        ("train.validate_steps=9", "train: `validate_steps` is 9, but the length of training is given in epochs"),
        ("train.seeds=[]", "train.seeds: has too few entries"),
        ("model.without=[noise, noise]", "model.without: noise, noise: the same part is listed twice"),
        ("train.source_dropout=1", "train.source_dropout: Input should be less than 1"),
        ("train.source_dropout=-0.1", "train.source_dropout: Input should be greater than or equal to 0"),
        ("train.augment=mirror", "train.augment: must be true, false or one of mirror_east_west, "),
        ("train.learning_rate=0", "train.learning_rate: must be a number above 0, or `auto` (found 0)"),
        ("train.learning_rate=fast", "train.learning_rate: must be a number above 0, or `auto` (found 'fast')"),
        ("train.recipe=default", "train.recipe: this recipe is now called `standard`; rename it (found 'default')"),
        ("train.band_dropout=1", "train.band_dropout: Input should be less than 1"),
        ("train.dropout=1", "train.dropout: Input should be less than 1"),
        ("train.label_smoothing=1", "train.label_smoothing: Input should be less than 1"),
        ("train.jitter=-0.1", "train.jitter: Input should be greater than or equal to 0"),
        ("train.mixup=-1", "train.mixup: Input should be greater than or equal to 0"),
        ("train.class_weights=even", "train.class_weights: must be `balanced`, `sqrt` or weights by class"),
        ("train.class_weights=[1, 2, 1]", "train.class_weights: must be `balanced`, `sqrt` or weights by class"),
        ("train.class_weights={1: 2}", "train.class_weights: has the key 1; use class names here"),
        (
            "train.class_weights={water: 0}",
            "train.class_weights: gives class 'water' the weight 0; a weight must be a number above 0",
        ),
        ("train.class_weights={sand: 2}", "train.class_weights contains sand; the classes are water, forest, town"),
    ],
)
def test_invalid_value_error_names_key_and_file(scene: SmallScene, override: str, expected: str) -> None:
    message = load_error(scene, [override])
    assert expected in message
    assert str(scene.folder) in message, "the message names the file"


def test_area_and_box_together_are_refused(scene: SmallScene) -> None:
    message = load_error(scene, ["scenes.0.area.url=a.gpkg", "scenes.0.bbox=[9, 45, 10, 46]"])
    assert "scenes.0: give either `area` or `bbox`" in message


def test_early_stopping_without_validation_pixels_is_refused(scene: SmallScene) -> None:
    message = load_error(scene, ["train.early_stopping_patience=2"], split={"method": "random", "validation": 0})
    assert "`train.early_stopping_patience` needs validation pixels, and the split has none" in message


def test_epoch_fraction_with_a_length_in_steps_is_refused(scene: SmallScene) -> None:
    message = load_error(scene, ["train.steps=90", "sampling.epoch_fraction=0.5"])
    assert "sampling.epoch_fraction is 0.5, but with train.steps an epoch has train.validate_steps steps" in message


def test_source_dropout_with_a_single_source_is_refused(scene: SmallScene) -> None:
    alone = ["model={patch: 5, sources: [radar], without: [noise, relation]}"]
    message = load_error(scene, [*alone, "train.source_dropout=0.2"])
    assert "train.source_dropout is 0.2, but model.sources has only one source" in message
    assert load(str(scene.write_config()), overrides=alone).train.source_dropout == 0


def one_source(scene: SmallScene) -> list[dict[str, Any]]:
    """The scene without its radar source."""
    (section,) = scene.config()["scenes"]
    return [section | {"sources": {"optical": section["sources"]["optical"]}}]


@pytest.mark.parametrize(
    "override", ["train.recipe=auto", "train.recipe=paper", "model.kind=boosting", "model.kind=linear", "train.blend=true"]
)
def test_scene_may_have_a_single_source(scene: SmallScene, override: str) -> None:
    config = load(str(scene.write_config(scenes=one_source(scene))), overrides=[override])
    assert config.model_sources == ("optical",)
    assert config.model.without == ()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.source_dropout=0.2", "train.source_dropout is 0.2, but the scenes have only one source"),
        ("map.products=[class, gate]", "map.products contains gate, .* but the scenes have only one source \\(optical\\)"),
        ("scenes.0.sources={}", "scenes.0.sources: has too few entries: at least one source per scene"),
    ],
)
def test_what_only_several_sources_have_is_refused_with_one(scene: SmallScene, override: str, expected: str) -> None:
    message = load_error(scene, [override], scenes=one_source(scene))
    assert re.search(expected, message)
    assert len(message.splitlines()) == 2, "one line for the file, one for the error"


def test_at_most_as_many_sources_as_a_mask_has_bits(scene: SmallScene) -> None:
    (section,) = one_source(scene)
    sources = {f"s{i}": section["sources"]["optical"] for i in range(65)}
    scenes = [section | {"grid": {"like": "s0"}, "sources": sources}]
    assert "scenes.0.sources: has too many entries: at most 64 sources per scene" in load_error(scene, [], scenes=scenes)
    del sources["s64"]
    assert len(load(str(scene.write_config(scenes=scenes))).model_sources) == 64


def test_tile_size_is_a_multiple_of_the_cell_side() -> None:
    from mibf.inference.cell import CELL

    assert CELL == 64, "config.MapSection hard-codes 64 to avoid importing torch when a configuration is loaded"


def test_class_both_declared_and_ignored_is_refused(scene: SmallScene) -> None:
    assert "contains declared classes: 5" in load_error(scene, ["scenes.0.labels.ignore=[5]"])


@pytest.mark.parametrize("name", ["zion", "terramind", "indian_pines_paper", "embeddings"])
def test_example_configurations_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    assert load(str(ROOT / "examples" / f"{name}.yaml")).name == name


def test_every_map_product_can_be_configured() -> None:
    from jobs.config.map import MapSection
    from mibf.inference.outputs import PRODUCT_NAMES
    from pipeline.maps.products import MAP_PRODUCTS, SET_PRODUCTS

    assert MapSection(products=MAP_PRODUCTS).products == MAP_PRODUCTS
    assert set(MAP_PRODUCTS) == set(PRODUCT_NAMES) - {"logits"} | {"sources"} | SET_PRODUCTS


@pytest.mark.parametrize("override", ["map.block=1000", "map.block=0", "map.dtype=int16", "map.missing=exclude"])
def test_invalid_map_settings_are_refused(scene: SmallScene, override: str) -> None:
    assert override.split("=")[0] in load_error(scene, [override])


@pytest.mark.parametrize(
    ("train", "rate", "warmup"),
    [
        ({}, 1e-3 * 64 / 256, 10 / 300),
        ({"batch_size": 256}, 1e-3, 10 / 300),
        ({"batch_size": 1024, "epochs": 100}, 4e-3, 10 / 100),
        ({"batch_size": "128"}, 5e-4, 10 / 300),
        ({"batch_size": 256, "learning_rate": 2e-4, "epochs": 50, "warmup": 0.0}, 2e-4, 0.0),
        ({"steps": 500, "epochs": 50}, 2.5e-4, 1 / 30),
        ({"epochs": 2}, 2.5e-4, 10 / 300),
    ],
)
def test_paper_recipe_scales_rate_and_warmup_as_the_released_code(
    scene: SmallScene, train: dict[str, object], rate: float, warmup: float
) -> None:
    section = load(str(scene.write_config(train={"recipe": "paper", "workers": 0} | train))).train
    assert (section.learning_rate, section.warmup) == pytest.approx((rate, warmup))
    default = load(str(scene.write_config(train={"batch_size": 512}))).train
    assert (default.learning_rate, default.warmup) == (2e-3, 0.05)


@pytest.mark.parametrize(("batch_size", "rate"), [(256, 2e-3), (64, 1e-3), (32, 2e-3 / 8**0.5), (1024, 4e-3)])
def test_automatic_learning_rate_follows_the_root_of_the_batch_size(scene: SmallScene, batch_size: int, rate: float) -> None:
    path = str(scene.write_config())
    section = load(path, overrides=[f"train.batch_size={batch_size}", "train.learning_rate=auto"]).train
    assert section.peak_learning_rate == pytest.approx(rate)
    workers = load(path, overrides=[f"train.batch_size={batch_size}", "train.learning_rate=auto", "train.workers=4"]).train
    assert workers.peak_learning_rate == section.peak_learning_rate, "the batch is that of all workers"
    assert load(path, overrides=["train.learning_rate=5e-4"]).train.peak_learning_rate == 5e-4


def test_invalid_batch_size_of_the_paper_recipe_is_named(scene: SmallScene) -> None:
    message = load_error(scene, train={"recipe": "paper", "batch_size": "many"})
    assert "train.batch_size: must be an integer (found 'many')" in message
