"""The baselines of `mibf run`: time, notes in the place of failures, report, and what later stages inherit."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.baseline import measure as measuring
from jobs.baseline import samples as sampling
from jobs.baseline.measure import Budget, measure
from jobs.baseline.samples import read_samples
from jobs.baseline.stage import baseline, default_seconds
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.workflow.manifest import StageResult
from jobs.workflow.workspace import Workspace
from pipeline.io.lease import Lease
from pipeline.sampling.store_catalog import StoreList
from pipeline.store.patch_store import PatchStore
from tests.support.mapped_scene import Mapped
from tests.support.scenes import SmallScene

ON = ("baselines.enabled=true", "baselines.seconds=0.001", "baselines.samples=300")


def staged(config: Config) -> StageResult:
    return baseline(config, Workspace.of(config), "print", Lease())


@pytest.mark.parametrize(("training", "seconds"), [(0, 10), (99, 10), (300, 30), (6000, 60)])
def test_baselines_take_a_tenth_of_the_training_within_limits(training: float, seconds: float) -> None:
    assert default_seconds(training) == pytest.approx(seconds)


def test_run_measures_baselines_beside_the_model_and_reports_them(trained: Mapped, tmp_path: Path) -> None:
    mapped = trained.copy(tmp_path / "scene")
    done = mapped.does("run", *ON, "--json")
    stages = {stage["stage"]: stage for stage in done.json["stages"]}
    assert list(stages) == ["prepare", "train", "evaluate", "baseline", "map", "report"]
    figures = stages["baseline"]["figures"]
    stored = json.loads((mapped.folder / "work/runs/main/baseline.json").read_text())
    assert {key: stored[key] for key in figures} == figures
    validation, test = figures["subsets"]
    assert (validation["subset"], test["subset"]) == ("validation", "test")
    assert (test["samples"], test["available"]) == (1000, stages["evaluate"]["figures"]["samples"]), "no time for more"
    assert test["rows"][-1]["figures"]["overall_accuracy"] == pytest.approx(
        stages["evaluate"]["figures"]["overall_accuracy"], abs=0.01
    )
    assert figures["advice"] == validation["advice"] == stages["baseline"]["lines"][0]
    assert figures["advice"] in done.stderr

    page = unescape((mapped.folder / "work/report/index.html").read_text())
    assert figures["advice"] in page
    section = page[page.index("<h2>Baselines</h2>") : page.index("<h2>Confidence</h2>")]
    assert test["advice"] not in section
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", section, re.DOTALL)
    assert len(rows) == 2 + len(validation["rows"]) + len(test["rows"])
    cells = [
        " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", rows[2], re.DOTALL)
    ]
    forest = validation["rows"][1]
    low, high = forest["intervals"]["overall_accuracy"]
    assert cells[:3] == ["random forest", "neighborhood", "natural"]
    assert cells[3] == f"{forest['figures']['overall_accuracy']:.3f} {low:.3f}\N{EN DASH}{high:.3f}"

    again = mapped.does("run", *ON, "--json")
    assert all(stage["skipped"] for stage in again.json["stages"])
    off = mapped.does("run", "baselines.enabled=false", "--json")
    assert [stage["stage"] for stage in off.json["stages"]] == ["prepare", "train", "evaluate", "map", "report"]
    assert "<h2>Baselines</h2>" not in (mapped.folder / "work/report/index.html").read_text()
    mapped.does("report", *ON)
    assert "<h2>Baselines</h2>" in (mapped.folder / "work/report/index.html").read_text()
    stale = mapped.does("report", *ON, "prediction.priors=uniform")
    assert "`baseline` is not current" in stale.stderr
    assert "<h2>Baselines</h2>" not in (mapped.folder / "work/report/index.html").read_text()


def test_torch_keeps_its_threads(trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(str(trained.copy(tmp_path / "scene").config), overrides=ON)
    monkeypatch.setattr(measuring, "cpu_count", lambda: 2)
    seen: list[int] = []
    predict = measuring.model_probabilities

    def watched(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return predict(*arguments)

    monkeypatch.setattr(measuring, "model_probabilities", watched)
    before = torch.get_num_threads()
    staged(config)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before == 1


# --- notes in the place of failures ---


def subset_counts(monkeypatch: pytest.MonkeyPatch, kept: dict[str, list[int]]) -> None:
    """Let stores hold only samples of these class ids by subset."""
    read = PatchStore.windows_with_samples

    def thinned(self: PatchStore, subset: Any) -> Any:
        keep = np.isin([c.id for c in self.classes], kept.get(subset, []))
        return [(w, n * keep) for w, n in read(self, subset) if (n * keep).any()]

    monkeypatch.setattr(StoreList, "packed", lambda self, subset: None)  # no catalog
    monkeypatch.setattr(PatchStore, "windows_with_samples", thinned)


@pytest.mark.parametrize(
    ("kept", "note"),
    [
        ({"validation": [1, 2], "test": [1]}, "no samples in the subset 'train'"),
        ({"train": [1], "validation": [1, 2], "test": [1]}, "the training samples are of one class"),
        ({"train": [1, 2]}, "there are no validation and no test samples"),
    ],
)
def test_what_cannot_be_measured_is_a_note(
    kept: dict[str, list[int]], note: str, trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = trained.copy(tmp_path / "scene")
    subset_counts(monkeypatch, kept)
    result = staged(load(str(mapped.config), overrides=ON))
    (line,) = result.lines
    assert line.startswith("note: no baselines: ")
    assert note in line
    assert result.figures["subsets"] == []


def test_scenes_without_labels_are_a_note(scene: SmallScene) -> None:
    scenes = scene.config()["scenes"]
    del scenes[0]["labels"]
    assert staged(load(str(scene.write_config(scenes=scenes)))).lines == ["note: no baselines: no scene has `labels`."]


def test_learner_that_fails_is_a_note_and_the_others_are_measured(
    trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = measuring.FittedLearner

    def failing(variant: Any, *arguments: Any, **options: Any) -> Any:
        if variant.learner == "random forest":
            raise ValueError("Input X contains infinity")
        return fit(variant, *arguments, **options)

    monkeypatch.setattr(measuring, "FittedLearner", failing)
    result = staged(load(str(trained.copy(tmp_path / "scene").config), overrides=ON))
    assert [row["learner"] for row in result.figures["subsets"][0]["rows"]] == ["majority class", "MIBF-Net"]
    assert any("could not be fitted: ValueError: Input X contains infinity" in note for note in result.figures["notes"])


def test_without_validation_samples_nothing_is_advised(
    trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = trained.copy(tmp_path / "scene")
    subset_counts(monkeypatch, {"train": [1, 2, 5], "test": [1, 2, 5]})
    result = staged(load(str(mapped.config), overrides=ON))
    assert [table["subset"] for table in result.figures["subsets"]] == ["test"]
    assert result.figures["advice"] is None
    assert any("no advice: there are no validation samples" in line for line in result.lines)


# --- the time ---


def test_reading_stops_when_it_is_enough_and_samples_are_in_the_order_of_the_grid(
    trained: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [PatchStore(Workspace.of(load(str(trained.config))).store("small"))]
    options: dict[str, Any] = {"limit": 1000, "least": 1, "seed": 0}
    everything = read_samples(stores, "train", stores[0].sources, **options)
    corners = [(d.window.y, d.window.x) for d in everything.drawn]
    assert corners == sorted(corners)
    assert len(corners) == 4
    assert len(everything.features) == 1000
    monkeypatch.setattr(sampling, "WINDOWS", 2)
    part = read_samples(stores, "train", stores[0].sources, **options, enough=lambda: True)
    assert [(d.window.y, d.window.x) for d in part.drawn] in [[a, b] for a in corners for b in corners if a < b]
    for pixels in part.drawn:
        same = next(d for d in everything.drawn if d.window == pixels.window)
        np.testing.assert_array_equal(pixels.rows, same.rows)


def test_slow_model_classifies_fewer_samples_and_baselines_the_same(
    trained: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(str(trained.config))
    workspace = Workspace.of(config)
    stores = [PatchStore(workspace.store("small"))]
    predict = measuring.model_probabilities

    def slow(*arguments: Any) -> Any:
        probabilities, _ = predict(*arguments)
        return probabilities, len(probabilities) / 100  # 100 pixels a second

    monkeypatch.setattr(measuring, "model_probabilities", slow)
    monkeypatch.setattr(measuring, "CLASSIFIED_LEAST", 200)
    now = iter(np.arange(0, 10**6, 100.0))
    budget = Budget(30, clock=lambda: float(next(now)))
    found = measure(config, workspace, stores, ["validation", "test"], samples=300, budget=budget)
    for table in found.tables:
        assert table.samples == 300  # a fifth of 30 s for two subsets, at 100 pixels a second
        assert table.available > 1000
        assert [row.learner for row in table.rows] == ["majority class", "random forest", "MIBF-Net"]
    assert len(found.left_out) == 11
