"""`mibf ablate`: its variants, its table, and one complete run on a small scene."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.evaluate.ablation import Ablation, Row, ablate, variants
from jobs.workflow.manifest import Manifest, StageName
from jobs.workflow.seed_summary import format_accuracies, mean_and_deviation
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from tests.support.scenes import SmallScene, write_raster

FIGURES = {"overall_accuracy": 0.8, "average_accuracy": 0.6, "macro_f1": 0.61, "kappa": 0.5}


def test_variants_omit_each_part_and_all_but_one_source(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    found = {variant: (changed.run, changed.model.without, changed.model.sources) for variant, changed in variants(config)}
    assert found == {
        "full method": ("main", (), None),
        "without noise": ("main-without-noise", ("noise",), None),
        "without relation": ("main-without-relation", ("relation",), None),
        "without bottleneck": ("main-without-bottleneck", ("bottleneck",), None),
        "optical alone": ("main-only-optical", ("noise", "relation"), ("optical",)),
        "radar alone": ("main-only-radar", ("noise", "relation"), ("radar",)),
    }


def test_centre_path_is_one_more_part_to_leave_out_and_stays_in_the_other_variants(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["model.centre=true"])
    found = {variant: (changed.run, changed.model.centre) for variant, changed in variants(config)}
    assert found.pop("without centre") == ("main-without-centre", False)
    assert len(found) == 6
    assert all(centre for _, centre in found.values())


def test_single_source_variants_have_no_source_dropout(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["train.source_dropout=0.2"])
    found = {variant: changed.train.source_dropout for variant, changed in variants(config)}
    assert found.pop("optical alone") == found.pop("radar alone") == 0
    assert set(found.values()) == {0.2}


@pytest.mark.parametrize("without", ["[]", "[noise, relation]"])
def test_only_source_and_what_relates_sources_are_no_variants(scene: SmallScene, without: str) -> None:
    (section,) = scene.config()["scenes"]
    section["sources"].pop("radar")
    config = load(str(scene.write_config(scenes=[section])), overrides=[f"model.without={without}", "model.centre=true"])
    assert [variant for variant, _ in variants(config)] == ["full method", "without bottleneck", "without centre"]
    reduced = config.model_copy(update={"model": config.model.model_copy(update={"without": ("bottleneck",)})})
    with pytest.raises(InputError, match="starts from the full method"):
        list(variants(reduced))
    shown = text([Row("full method", "main", 1.0, [FIGURES], [])])
    assert shown.endswith("neither a relation between sources nor noise adaptation: there is less to leave out.")
    assert "keeps the branch" not in shown


def test_product_that_a_single_source_lacks_does_not_stop_an_ablation(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["map.products=[gate]"])
    found = {variant: changed.map.products for variant, changed in variants(config)}
    assert found["full method"] == found["without noise"] == ("gate",)
    assert found["optical alone"] == found["radar alone"] == ("class",)


def test_ablation_of_reduced_model_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["model.without=[noise]"])
    with pytest.raises(InputError, match="starts from the full method"):
        list(variants(config))


@pytest.mark.parametrize("change", ["train.recipe=auto", "model.kind=boosting", "train.blend=true"])
def test_ablation_of_models_that_are_not_trained_alike_is_refused(scene: SmallScene, change: str) -> None:
    config = load(str(scene.write_config()), overrides=[change])
    with pytest.raises(InputError, match=r"trained alike.*train\.recipe: standard"):
        list(variants(config))


def test_ablation_without_validation_pixels_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config(split={"method": "random", "validation": 0})))
    with pytest.raises(InputError, match="no validation pixels"):
        ablate(config, fail_if_called, test=False)


def test_ablation_of_imported_model_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    manifest = Manifest("train", "f", "now", 1.0, 1, figures={"authors": {"sha256": "aa"}})
    storage.write_json(Workspace.of(config).manifest("train"), vars(manifest))
    with pytest.raises(InputError, match="imported from a reference checkpoint"):
        ablate(config, fail_if_called, test=False)


def fail_if_called(config: Config, stage: StageName) -> Manifest:
    raise AssertionError(f"{stage} of {config.name}")


def text(rows: list[Row]) -> str:
    return "\n".join(Ablation(rows).lines())


def test_undefined_metric_is_printed_as_dash() -> None:
    undefined: dict[str, float | None] = {**FIGURES, "kappa": None}
    assert "| 0.610 | - | 1 |" in text([Row("full method", "main", 1.0, [undefined], [])])
    assert format_accuracies(undefined).endswith("macro-F1 0.610, kappa -")


def test_table_shows_mean_and_deviation_over_seeds() -> None:
    better = {key: value + 0.02 for key, value in FIGURES.items()}
    rows = [
        Row("full method", "main", 12.3, [FIGURES, better], []),
        Row("radar alone", "r", 5.0, [FIGURES, FIGURES], []),
    ]
    shown = text(rows)
    assert "Means over 2 seeds" in shown
    assert "| full method | 0.810 ± 0.014 | 0.610 ± 0.014 | 0.620 ± 0.014 | 0.510 ± 0.014 | 12 |" in shown
    assert "test" not in shown, "test pixels must not be read"
    assert "may be due to chance" in text([Row("full method", "main", 1.0, [FIGURES], [])])


def test_spread_uses_sample_standard_deviation() -> None:
    assert mean_and_deviation([{**FIGURES, "kappa": value} for value in (0.4, 0.5, 0.6)]).endswith("kappa 0.500 ± 0.100")


@pytest.mark.slow
def test_fusion_beats_each_single_source(scene: SmallScene) -> None:
    """Forest differs only in the optical source and town only in the radar source: each alone confuses two classes."""
    config = str(
        scene.write_config(train={"epochs": 1, "batch_size": 64, "learning_rate": 3e-3, "workers": 0, "threads": 1})
    )
    first, again = (CliRunner().invoke(app, ["ablate", config, "--json", "--test"]) for _ in range(2))
    assert first.exit_code == 0, first.stderr
    rows = {row["variant"]: row for row in json.loads(first.stdout)}
    for subset in ("validation", "test"):
        assert rows["full method"][subset][0]["overall_accuracy"] > 0.95
        assert rows["optical alone"][subset][0]["overall_accuracy"] < 0.85
        assert rows["radar alone"][subset][0]["overall_accuracy"] < 0.85
    assert "train: current, skipped" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert json.loads((scene.folder / "work/runs/main/ablation.json").read_text()) == json.loads(first.stdout)


@pytest.mark.slow
def test_ablation_reports_what_an_embedding_is_worth(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bands of int8 that distinguish all classes, an image that distinguishes one; each alone, and both."""
    monkeypatch.setattr("jobs.evaluate.ablation.PARTS", ())
    code = {1: -60, 2: 10, 5: 90}
    level = np.vectorize(code.get)(scene.truth)
    noise = np.random.default_rng(0).normal(0, 10, (8, *level.shape))
    stored = np.clip(level + noise, -127, 127).astype(np.int8)
    write_raster(scene.folder / "embedding.tif", stored, nodata=-128)
    config = scene.config(train={"epochs": 1, "batch_size": 64, "learning_rate": 3e-3, "workers": 0, "threads": 1})
    sources = config["scenes"][0]["sources"]
    del sources["radar"]
    sources["embedding"] = {"url": str(scene.folder / "embedding.tif"), "decode": "alphaearth"}
    path = scene.folder / "embedding.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = CliRunner().invoke(app, ["ablate", str(path), "--json"])
    assert done.exit_code == 0, done.stderr
    found = {row["variant"]: row["validation"][0]["overall_accuracy"] for row in json.loads(done.stdout)}
    assert min(found["full method"], found["embedding alone"]) > 0.95
    assert found["optical alone"] < 0.85
