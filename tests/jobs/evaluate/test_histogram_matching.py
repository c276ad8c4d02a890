"""Scenes with other gains than in training: matched, they are classified as well as training scenes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from jobs.config.loader import load
from jobs.workflow.fingerprint import fingerprint
from mibf.errors import InputError
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke as mibf
from tests.support.tiles import QUICK, write_tile, write_tiles_config

GAIN, OFFSET = 2.0, 4000.0


def configured(folder: Path, matched: list[str]) -> Path:
    scenes = [
        write_tile(folder, "a", place=0),
        write_tile(folder, "b", place=1),
        write_tile(folder, "c", place=2, gain=GAIN, offset=OFFSET),
    ]
    split = {"method": "scenes", "test": ["c"], "validation": ["b"]}
    changes = {"split": split, "prepare": {"histogram_matching": matched}, "train": QUICK | {"epochs": 1}}
    return write_tiles_config(folder, "drift", scenes, **changes)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """The folder and the stages of a run without and with matching."""
    found = {}
    for name, matched in (("raw", []), ("matched", ["optical"])):
        folder = tmp_path_factory.mktemp(name)
        config = configured(folder, matched)
        commands = ("prepare", "train", "evaluate", "map")
        found[name] = folder, [json.loads(mibf(c, str(config), "--json").stdout)["stages"][0] for c in commands]
    return found


def accuracy(stages: list[dict[str, Any]]) -> float:
    evaluated = next(stage["figures"] for stage in stages if stage["stage"] == "evaluate")
    assert list(evaluated["scenes"]) == ["c"]
    return float(evaluated["overall_accuracy"])


@pytest.mark.slow
def test_matching_restores_the_accuracy_of_a_drifted_scene(results: dict[str, Any]) -> None:
    raw, matched = accuracy(results["raw"][1]), accuracy(results["matched"][1])
    assert raw < 0.7
    assert matched > raw + 0.2
    assert matched > 0.85


@pytest.mark.slow
def test_drift_names_the_remedy_and_is_not_reported_of_matched_sources(results: dict[str, Any]) -> None:
    for stage in ("prepare", "map"):
        (warning,) = next(s for s in results["raw"][1] if s["stage"] == stage)["warnings"]
        assert "`prepare.histogram_matching: [optical]` may help" in warning
        assert not next(s for s in results["matched"][1] if s["stage"] == stage)["warnings"]


@pytest.mark.slow
def test_baselines_see_the_matched_values(results: dict[str, Any]) -> None:
    """Else a forest, too, would fail on the drifted scene, and the comparison would flatter the model."""
    found = {}
    for name, (folder, _) in results.items():
        mibf("baseline", str(folder / "drift.yaml"), "--test", "--seconds", "10", "--samples", "300")
        (table,) = [
            t
            for t in json.loads((folder / "work-drift/runs/main/baseline.json").read_text())["subsets"]
            if t["subset"] == "test"
        ]
        found[name] = max(row["figures"]["overall_accuracy"] for row in table["rows"] if row["learner"] == "random forest")
    assert found["raw"] < 0.7
    assert found["matched"] > 0.85


@pytest.mark.slow
def test_map_verify_and_rerun_use_the_matched_values(results: dict[str, Any]) -> None:
    folder, stages = results["matched"]
    config = str(folder / "drift.yaml")
    assert json.loads(mibf("verify", config, "--json").stdout)["stores"][0]["intact"]
    assert mibf("rerun", config).exit_code == 0
    store = PatchStore(str(folder / "work-drift/stores/c.zarr"))
    with rasterio.open(folder / "work-drift/maps/c/main/class.tif") as dataset:
        mapped = dataset.read(1)
    labels = np.asarray(store.array("labels")[:])
    evaluated = next(stage["figures"] for stage in stages if stage["stage"] == "evaluate")
    assert np.mean(mapped == labels) == pytest.approx(evaluated["overall_accuracy"], abs=1e-3)


@pytest.mark.slow
def test_model_that_matches_refuses_a_scene_without_quantiles(results: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = results["matched"]
    scene = write_tile(tmp_path, "d", place=7)
    model = {"model": str(folder / "work-drift/models/main"), "tile_size": 64, "workers": 0}
    config = write_tiles_config(tmp_path, "other", [scene], map=model)
    mibf("prepare", str(config))
    given = f"{config}#d"
    for arguments in (["map", str(config)], ["evaluate", str(folder / "drift.yaml"), "--scene", given]):
        output = " ".join(mibf(*arguments, status=2).output.split())
        assert "add 'optical' to `prepare.histogram_matching` and run `mibf prepare`" in output


def test_matched_sources_are_part_of_the_fingerprint_and_checked(tmp_path: Path) -> None:
    config = str(configured(tmp_path, []))
    matched = fingerprint(load(config, overrides=["prepare.histogram_matching=[optical]"]), "prepare")
    assert matched != fingerprint(load(config), "prepare")
    for wrong, message in (("[sonar]", "contains sonar; the sources are"), ("[radar, radar]", "contains a duplicate")):
        with pytest.raises(InputError, match=message):
            load(config, overrides=[f"prepare.histogram_matching={wrong}"])
