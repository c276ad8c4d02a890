"""ablate: which variants there are, and what the table tells; one whole run on a small scene."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobs.ablate import Row, ablate, table, variants
from jobs.config import Config, load
from jobs.seeds import spread, told
from jobs.stages import Manifest, StageName
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from tests.conftest import SmallScene

FIGURES = {"overall_accuracy": 0.8, "average_accuracy": 0.6, "macro_f1": 0.61, "kappa": 0.5}


def test_variants_leave_out_each_part_and_all_sources_but_one(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    found = {variant: (changed.run, changed.model.without, changed.model.sources) for variant, changed in variants(config)}
    assert found == {
        "the whole method": ("main", (), None),
        "without noise": ("main-without-noise", ("noise",), None),
        "without relation": ("main-without-relation", ("relation",), None),
        "without bottleneck": ("main-without-bottleneck", ("bottleneck",), None),
        "optical alone": ("main-only-optical", ("noise", "relation"), ("optical",)),
        "radar alone": ("main-only-radar", ("noise", "relation"), ("radar",)),
    }


def test_a_source_alone_is_trained_without_dropout(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["train.source_dropout=0.2"])
    found = {variant: changed.train.source_dropout for variant, changed in variants(config)}
    assert found.pop("optical alone") == found.pop("radar alone") == 0
    assert set(found.values()) == {0.2}


def test_an_ablation_of_less_than_the_whole_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config()), overrides=["model.without=[noise]"])
    with pytest.raises(InputError, match="begins with the whole method"):
        list(variants(config))


def test_an_ablation_that_could_tell_nothing_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config(split={"method": "random", "validation": 0})))
    with pytest.raises(InputError, match="no validation pixels"):
        ablate(config, no_stage, test=False)


def test_an_ablation_of_the_authors_model_is_refused(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    manifest = Manifest("train", "f", "now", 1.0, 1, figures={"authors": {"sha256": "aa"}})
    storage.write_json(Workspace.of(config).manifest("train"), vars(manifest))
    with pytest.raises(InputError, match="checkpoint of the authors"):
        ablate(config, no_stage, test=False)


def no_stage(config: Config, stage: StageName) -> Manifest:
    raise AssertionError(f"{stage} of {config.name}")


def test_a_figure_that_is_not_defined_is_a_dash() -> None:
    undefined: dict[str, float | None] = {**FIGURES, "kappa": None}
    assert "| 0.610 | - | 1 |" in table([Row("the whole method", "main", 1.0, [undefined], [])])
    assert told(undefined).endswith("macro-F1 0.610, kappa -")


def test_the_table_tells_means_and_deviations_of_seeds() -> None:
    better = {key: value + 0.02 for key, value in FIGURES.items()}
    rows = [
        Row("the whole method", "main", 12.3, [FIGURES, better], []),
        Row("radar alone", "r", 5.0, [FIGURES, FIGURES], []),
    ]
    text = table(rows)
    assert "Means over 2 seeds" in text
    assert "| the whole method | 0.810 ± 0.014 | 0.610 ± 0.014 | 0.620 ± 0.014 | 0.510 ± 0.014 | 12 |" in text
    assert "test" not in text, "no test pixel was read"
    assert "may be chance" in table([Row("the whole method", "main", 1.0, [FIGURES], [])])


def test_the_spread_is_a_samples() -> None:
    assert spread([{**FIGURES, "kappa": value} for value in (0.4, 0.5, 0.6)]).endswith("kappa 0.500 ± 0.100")


@pytest.mark.slow
def test_fusion_is_worth_what_one_source_lacks(scene: SmallScene) -> None:
    """Forest differs in the optical source alone, town in the radar one: each alone confuses two classes."""
    config = str(scene.write_config(train={"epochs": 1, "batch": 64, "rate": 3e-3, "workers": 0, "threads": 1}))
    commands = [[sys.executable, "-m", "jobs.cli", "ablate", config, "--json", "--test"]] * 2
    first, again = (subprocess.run(command, capture_output=True, text=True) for command in commands)
    assert first.returncode == 0, first.stderr
    rows = {row["variant"]: row for row in json.loads(first.stdout)}
    for subset in ("validation", "test"):
        assert rows["the whole method"][subset][0]["overall_accuracy"] > 0.95
        assert rows["optical alone"][subset][0]["overall_accuracy"] < 0.85
        assert rows["radar alone"][subset][0]["overall_accuracy"] < 0.85
    assert "train: current, skipped" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert json.loads((scene.folder / "work/runs/main/ablation.json").read_text()) == json.loads(first.stdout)
