"""Metrics of single scenes: of the run's own, of another configuration's, and scenes that are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.config.loader import load
from jobs.workflow.workspace import Workspace
from pipeline.codes import Subset
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke as mibf
from tests.support.tiles import write_tile, write_tiles_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model trained on tiles a and b, and the prepared configurations of other tiles."""
    folder = tmp_path_factory.mktemp("tiles")
    a, b = (write_tile(folder, name, place=place) for place, name in enumerate("ab"))
    config = write_tiles_config(folder, "two", [a, b])
    mibf("prepare", str(config))
    mibf("train", str(config))
    mibf("evaluate", str(config))
    c = write_tile(folder, "c", place=5)
    mibf("prepare", str(write_tiles_config(folder, "three", [c])))
    return folder


def measured(folder: Path, store: str, subsets: Sequence[Subset]) -> dict[str, float]:
    """Accuracies on the samples of some subsets of a store, independently of `mibf.metrics`."""
    workspace = Workspace.of(load(str(folder / "two.yaml")))
    bundle = workspace.read_bundle()
    predicted, labels = [], []
    for subset in subsets:
        sampler = Sampler([PatchStore(store)], bundle.scaling, bundle.spec.patch, subset)
        for batch in sampler.in_order(batch=999):
            with torch.inference_mode():
                predicted.append(bundle.network()([torch.from_numpy(x) for x in batch.sources]).logits.argmax(1).numpy())
            labels.append(batch.labels)
    right, known = np.concatenate(predicted) == np.concatenate(labels), np.concatenate(labels)
    average = np.mean([right[known == c].mean() for c in np.unique(known)])
    return {"samples": len(known), "overall_accuracy": right.mean(), "average_accuracy": average}


def close(figures: dict[str, Any], expected: dict[str, float]) -> bool:
    return all(figures[key] == pytest.approx(value, abs=1e-3) for key, value in expected.items())


def test_evaluate_gives_the_metrics_of_each_scene(trained: Path) -> None:
    workspace = Workspace.of(load(str(trained / "two.yaml")))
    evaluation = json.loads(Path(workspace.evaluation).read_text())
    assert list(evaluation["scenes"]) == ["a", "b"]
    assert 0.5 < evaluation["overall_accuracy"] < 1
    for name, figures in evaluation["scenes"].items():
        assert close(figures, measured(trained, workspace.store(name), ["test"]))
    parts = evaluation["scenes"].values()
    assert evaluation["samples"] == sum(part["samples"] for part in parts)
    right = sum(part["samples"] * part["overall_accuracy"] for part in parts)
    assert evaluation["overall_accuracy"] == pytest.approx(right / evaluation["samples"])
    error = sum(part["samples"] * part["log_loss"] for part in parts)
    assert evaluation["log_loss"] == pytest.approx(error / evaluation["samples"])


def test_own_scene_is_evaluated_on_its_test_samples(trained: Path) -> None:
    workspace = Workspace.of(load(str(trained / "two.yaml")))
    before = Path(workspace.evaluation).read_bytes()
    found = json.loads(mibf("evaluate", str(trained / "two.yaml"), "--scene", "b", "--json").stdout)["scenes"]
    evaluation = json.loads(before)
    expected = {key: value for key, value in evaluation["scenes"]["b"].items() if key != "classes"}
    assert {key: found["b"][key] for key in expected} == pytest.approx(expected)
    assert [row["samples"] for row in found["b"]["classes"]] == [
        row["samples"] for row in evaluation["scenes"]["b"]["classes"]
    ]
    assert found["b"]["subsets"] == ["test"]
    assert Path(workspace.evaluation).read_bytes() == before
    stored = json.loads(Path(workspace.scene_evaluation("b")).read_text())
    assert stored["overall_accuracy"] == found["b"]["overall_accuracy"]
    assert stored["model"] == workspace.read_bundle().digest


def test_scene_of_another_configuration_is_evaluated_on_all_its_samples(trained: Path) -> None:
    given = f"{trained / 'three.yaml'}#c"
    result = mibf("evaluate", str(trained / "two.yaml"), "--scene", given, "--scene", "a", "--json")
    found = json.loads(result.stdout)["scenes"]
    assert list(found) == [given, "a"]
    store = Workspace.of(load(str(trained / "three.yaml"))).store("c")
    assert close(found[given], measured(trained, store, ["train", "validation", "test"]))
    assert found[given]["caveat"] is None
    assert (trained / "work-two/runs/main/evaluation-three.c.json").exists()
    lines = mibf("evaluate", str(trained / "two.yaml"), "--scene", given).stdout
    assert f"{given}: overall accuracy {found[given]['overall_accuracy']:.3f}" in lines


def test_scene_on_training_ground_is_refused(trained: Path) -> None:
    """The same ground from files of other names."""
    again = write_tile(trained, "again", place=0)
    mibf("prepare", str(write_tiles_config(trained, "copy", [again])))
    given = f"{trained / 'copy.yaml'}#again"
    output = mibf("evaluate", str(trained / "two.yaml"), "--scene", given, status=2).output
    assert f"--scene {given}: its labels are on ground of scene 'a' on which the model was trained" in output
    assert not list((trained / "work-two/runs/main").glob("evaluation-copy*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "there is no scene 'nowhere'; the scenes are a, b; a scene of another configuration is given as CONFIG#NAME"),
        ({"classes": [{"id": 1, "name": "sea"}, {"id": 2, "name": "forest"}, {"id": 5, "name": "town"}]}, "has the classes"),
        ({"labels": None}, "the scene has no `labels` to compare with"),
        ({"workspace": "nothing"}, "`prepare` is not finished"),
    ],
)
def test_scene_that_cannot_be_compared_is_refused(trained: Path, change: dict[str, Any], message: str) -> None:
    given = "nowhere"
    if change:
        tile = write_tile(trained, "other", place=9)
        labels = change.pop("labels", tile["labels"])
        if labels is None:
            del tile["labels"]
        if "workspace" in change:
            change["workspace"] = str(trained / "nothing")
        config = write_tiles_config(trained, "other", [tile], **change)
        given = f"{config}#other"
        if "classes" in change:
            mibf("prepare", str(config))
    output = mibf("evaluate", str(trained / "two.yaml"), "--scene", given, status=2).output
    assert message in " ".join(output.split())


def test_report_lists_the_scenes(trained: Path) -> None:
    mibf("map", str(trained / "two.yaml"))
    mibf("report", str(trained / "two.yaml"))
    page = (trained / "work-two/report/index.html").read_text()
    scenes = json.loads((trained / "work-two/runs/main/evaluation.json").read_text())["scenes"]
    table = page.split("<h2>Scenes</h2>")[1].split("</table>")[0]
    for name, row in scenes.items():
        assert f"<td>{name}</td><td>{row['samples']:,}</td>" in table
        assert f"<td>{row['overall_accuracy']:.3f}</td>" in table
