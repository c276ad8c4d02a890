"""Fingerprints: what makes the result of a stage outdated, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

import mibf.training
from jobs.config.loader import load
from jobs.config.map import MapSection
from jobs.config.train import TrainSection
from jobs.runtime import version
from jobs.train.resume import RESUME_SAFE_KEYS
from jobs.workflow import fingerprint as fingerprints
from jobs.workflow.fingerprint import MAP_KEYS_WITHOUT_EFFECT, TRAIN_KEYS_WITHOUT_EFFECT, fingerprint
from jobs.workflow.manifest import StageName
from tests.support.scenes import SmallScene


@pytest.mark.parametrize(
    "override",
    ["sampling.frequencies=balanced", "train.augment=true", "train.steps=9", "train.dropout=0.1", "model.centre=true"],
)
def test_sampling_changes_make_train_stale_but_not_prepare(scene: SmallScene, override: str) -> None:
    path = str(scene.write_config())
    before, after = load(path), load(path, overrides=[override])
    assert fingerprint(before, "train") != fingerprint(after, "train")
    assert fingerprint(before, "prepare") == fingerprint(after, "prepare")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("2024-07-01T10:30:00Z", "2024-07-01T10:30:00+00:00"),  # YAML parses it as a time
        ("'2024-07-01T10:30:00+02:00'", "2024-07-01T10:30:00+02:00"),
        ("2024-06-01T00:00:00Z/2024-08-31T23:59:59Z", "2024-06-01T00:00:00Z/2024-08-31T23:59:59Z"),
    ],
)
def test_scene_datetime_change_makes_only_the_map_stale(scene: SmallScene, value: str, stored: str) -> None:
    path = str(scene.write_config())
    before, after = load(path), load(path, overrides=[f"scenes.0.datetime={value}"])
    assert (before.scenes[0].datetime, after.scenes[0].datetime) == (None, stored)
    assert fingerprint(before, "map") != fingerprint(after, "map")
    for stage in ("prepare", "train", "evaluate"):
        assert fingerprint(before, stage) == fingerprint(after, stage)


def stage_fingerprints(scene: SmallScene, **changes: Any) -> dict[StageName, str]:
    config = load(str(scene.write_config(**changes)))
    return {stage: fingerprint(config, stage) for stage in fingerprints.ALGORITHM_VERSIONS}


def test_stages_of_equal_configurations_have_equal_fingerprints(scene: SmallScene) -> None:
    assert stage_fingerprints(scene) == stage_fingerprints(scene)


@pytest.mark.parametrize("stage", list(fingerprints.ALGORITHM_VERSIONS))
def test_new_algorithm_version_changes_only_its_stage(
    scene: SmallScene, stage: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stage_fingerprints(scene)
    monkeypatch.setitem(fingerprints.ALGORITHM_VERSIONS, stage, fingerprints.ALGORITHM_VERSIONS[stage] + 1)
    after = stage_fingerprints(scene)
    assert {name for name in before if before[name] != after[name]} == {stage}


def test_stating_a_default_changes_no_fingerprint(scene: SmallScene) -> None:
    assert stage_fingerprints(scene, sampling={"frequencies": "natural"}) == stage_fingerprints(scene)
    assert stage_fingerprints(scene, model={"patch": 5, "centre": False}) == stage_fingerprints(scene, model={"patch": 5})


@pytest.mark.parametrize(
    ("changes", "stale"),
    [({"enabled": False}, set()), ({"samples": 500}, {"baseline"}), ({"seconds": 30}, {"baseline"})],
)
def test_baselines_keys_change_no_other_stage(scene: SmallScene, changes: dict[str, Any], stale: set[StageName]) -> None:
    before, after = stage_fingerprints(scene, baselines={}), stage_fingerprints(scene, baselines=changes)
    del before["report"], after["report"]  # a page without baselines is another page
    assert {name for name in before if before[name] != after[name]} == stale


def test_new_version_of_the_metrics_makes_baselines_stale(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_fingerprints(scene)
    monkeypatch.setattr("mibf.metrics.ALGORITHM_VERSION", 10**6)
    after = stage_fingerprints(scene)
    assert {name for name in before if before[name] != after[name]} == {"baseline"}  # `evaluate` reads it when imported


def test_new_version_of_seeded_assignments_makes_only_their_stores_stale(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, seeded = {}, {"split": {"block": 20, "seed": 3}}
    before = [stage_fingerprints(scene, **changes) for changes in (default, seeded)]
    monkeypatch.setattr(fingerprints, "SEEDED_ASSIGNMENT_VERSION", fingerprints.SEEDED_ASSIGNMENT_VERSION + 1)
    after = [stage_fingerprints(scene, **changes) for changes in (default, seeded)]
    assert after[0] == before[0]
    assert {name for name in before[1] if before[1][name] != after[1][name]} == {"prepare"}


@pytest.mark.parametrize(("choice", "stale"), [("trained", set()), ("natural", {"map"}), ("uniform", {"map"})])
def test_new_version_of_the_prior_correction_makes_only_corrected_maps_stale(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch, choice: str, stale: set[str]
) -> None:
    before = stage_fingerprints(scene, prediction={"priors": choice})
    monkeypatch.setattr(fingerprints, "CORRECTION_VERSION", fingerprints.CORRECTION_VERSION + 1)
    after = stage_fingerprints(scene, prediction={"priors": choice})
    assert {name for name in before if before[name] != after[name]} == stale


def test_library_versions_count_only_by_choice(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgraded(**changes: str) -> None:
        monkeypatch.setattr("jobs.runtime.version.library_versions", lambda: library_versions() | changes)

    library_versions = version.library_versions
    upgraded(gdal="3.9.1", proj="9.4.0", torch="2.9.0+cpu")
    ignored, counted = stage_fingerprints(scene), stage_fingerprints(scene, stale_on_upgrade=True)
    upgraded(gdal="3.9.2", proj="9.4.1", torch="2.9.1+cu130", numpy="9.0")
    assert stage_fingerprints(scene, stale_on_upgrade=True) == counted, "patch releases and other libraries do not count"
    for change in ({"gdal": "3.10.0"}, {"proj": "9.5.0"}, {"torch": "2.10.0"}):
        upgraded(**{"gdal": "3.9.1", "proj": "9.4.0", "torch": "2.9.0"} | change)
        assert stage_fingerprints(scene) == ignored
        after = stage_fingerprints(scene, stale_on_upgrade=True)
        assert {name for name in after if after[name] != counted[name]} >= {"prepare", "train", "evaluate", "map"}


def test_keys_without_effect_exist_in_the_configuration() -> None:
    assert set(TRAIN_KEYS_WITHOUT_EFFECT) <= set(TrainSection.model_fields)
    assert set(RESUME_SAFE_KEYS) <= set(TrainSection.model_fields)
    assert set(MAP_KEYS_WITHOUT_EFFECT) <= set(MapSection.model_fields)


def test_fingerprints_do_not_depend_on_source_code(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_fingerprints(scene)
    monkeypatch.setattr(mibf.training, "__doc__", "Another docstring.")
    assert stage_fingerprints(scene) == before
