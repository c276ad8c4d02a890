"""`mibf baseline`: figures, seeds, budget, comparison with the trained model, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics
from sklearn.ensemble import RandomForestClassifier
from typer.testing import CliRunner

import jobs.baseline.learners
from jobs.baseline.command import baseline
from jobs.baseline.learners import FittedLearner, Variant, variants
from jobs.baseline.table import Baselines
from jobs.cli.common import app
from jobs.config.config import Config
from jobs.config.loader import load
from mibf.errors import InputError
from pipeline.codes import CODES
from pipeline.sampling.store_catalog import StoreList
from pipeline.store.patch_store import PatchStore
from tests.support.commands import run
from tests.support.mapped_scene import Mapped
from tests.support.refusals import refused
from tests.support.scenes import COLUMNS, ROWS, SmallScene, write_raster


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that advances with every look at it."""

    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            now += seconds
            yield now

    source = ticks()
    return lambda: next(source)


def few_fits(config: Config, *, test: bool = False, seconds: float = 1) -> Baselines:
    """The result of the two fits that are always made, the majority class and a forest, and others within the budget."""
    return baseline(config, test=test, samples=300, seconds=seconds, clock=ticking(4))


@pytest.fixture(scope="module")
def checkers(tmp_path_factory: pytest.TempPathFactory) -> SmallScene:
    """A prepared scene whose two classes are an exclusive or of two bands: trees separate them, a linear model cannot."""
    folder = tmp_path_factory.mktemp("checkers")
    generator = np.random.default_rng(3)
    signs = generator.random((2, ROWS, COLUMNS)) < 0.5
    optical = np.where(signs, 3000, 1000) + generator.integers(0, 400, (2, ROWS, COLUMNS))
    labels = np.where(signs[0] ^ signs[1], 1, 2).astype(np.uint8)
    write_raster(folder / "optical.tif", optical.astype(np.uint16))
    write_raster(folder / "radar.tif", generator.random((1, ROWS, COLUMNS)).astype(np.float32))
    write_raster(folder / "labels.tif", labels[None])
    made = SmallScene(folder, labels, optical)
    run(made, classes=[{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}])
    return made


def test_trees_win_where_classes_are_an_exclusive_or(checkers: SmallScene) -> None:
    done = CliRunner().invoke(app, ["baseline", str(checkers.folder / "small.yaml"), "--json", "--samples", "1000"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((checkers.folder / "work/runs/main/baseline.json").read_text())
    (table,) = found["subsets"]
    assert (table["subset"], table["block"]) == ("validation", 20)
    assert table["blocks"] > 3
    accuracy = {
        (row["learner"], row["features"], row["weights"]): row["figures"]["overall_accuracy"] for row in table["rows"]
    }
    assert len(accuracy) == 13
    for learner in ("random forest", "gradient boosting"):
        assert accuracy[learner, "values", "natural"] > 0.99
        assert accuracy[learner, "values", "balanced"] > 0.99
    assert accuracy["logistic regression", "values", "natural"] < 0.7
    assert accuracy["majority class", None, None] < 0.6
    assert table["difference"] is None
    assert "there is no current trained model to compare with" in table["advice"]
    assert found["left_out"] == []
    for row in table["rows"]:
        low, high = row["intervals"]["overall_accuracy"]
        assert low <= row["figures"]["overall_accuracy"] <= high


def test_same_seed_gives_same_figures_and_another_seed_others(checkers: SmallScene) -> None:
    path = str(checkers.folder / "small.yaml")
    first, again, other = (
        few_fits(load(path, overrides=[f"train.seed={seed}"]), seconds=100).to_json() for seed in (0, 0, 1)
    )
    assert first == again
    assert first["subsets"] != other["subsets"]
    assert first["train_samples"] == 300


def test_test_pixels_are_read_only_on_request(checkers: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, ...]] = []
    create = PatchStore.__init__

    def watched(self: PatchStore, url: str, *, without: tuple[Any, ...] = (), **more: Any) -> None:
        opened.append(without)
        create(self, url, without=without, **more)

    monkeypatch.setattr(PatchStore, "__init__", watched)
    config = load(str(checkers.folder / "small.yaml"))
    assert [t.subset for t in few_fits(config).tables] == ["validation"]
    assert set(opened) == {("test",)}
    found = few_fits(config, test=True)
    store = PatchStore(str(checkers.folder / "work/stores/small.zarr"))
    assert [t.subset for t in found.tables] == ["validation", "test"]
    assert found.tables[1].samples == int((store.array("split")[:] == CODES["test"]).sum())


def test_fits_beyond_the_budget_are_left_out_and_named(checkers: SmallScene) -> None:
    config = load(str(checkers.folder / "small.yaml"))
    found = few_fits(config, seconds=100)
    (table,) = found.tables
    fitted = [(row.learner, row.features) for row in table.rows]
    assert fitted == [("majority class", None), ("random forest", "neighborhood"), ("gradient boosting", "neighborhood")]
    assert len(fitted) + len(found.left_out) == 13
    assert found.left_out[-1] == "logistic regression on pixel values (balanced)"
    assert "left out to keep to 100 s: " in "\n".join(found.lines())
    short = few_fits(config)
    assert [row.learner for row in short.tables[0].rows] == ["majority class", "random forest"]
    assert "cut short to keep to 1 s, so that their figures may be too low" in "\n".join(short.lines())


def test_absent_class_and_missing_features_are_handled_by_every_learner() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 2], 200)
    features = (labels[:, None] + generator.normal(0, 0.1, (200, 3))).astype(np.float32)
    features[:150, 1] = np.nan
    features[:, 2] = np.nan
    for variant in variants():
        fitted = FittedLearner(variant, features, labels, classes=4, seed=2**40)
        found = fitted.probabilities(features)
        assert found.shape == (200, 4)
        assert (found[:, [1, 3]] < 1e-12).all()
        np.testing.assert_allclose(found.sum(axis=1), 1)
        if variant.learner != "majority class":
            assert metrics.accuracy_score(labels, found.argmax(axis=1)) > 0.95


def test_class_with_one_sample_is_no_error() -> None:
    labels = np.array([0] * 30 + [1] * 30 + [2])
    features = np.arange(61, dtype=np.float32)[:, None]
    for variant in variants():
        FittedLearner(variant, features, labels, classes=3, seed=0)


def test_rounds_of_boosting_are_found_on_held_back_blocks() -> None:
    """Labels that depend on nothing are learned in 50 rounds, but not with blocks that show that they cannot be."""
    generator = np.random.default_rng(2)
    features, labels = generator.random((400, 3), np.float32), generator.integers(0, 2, 400)
    boosting = Variant("gradient boosting", "values", "natural")
    with_blocks, without, of_one = (
        FittedLearner(boosting, features, labels, classes=2, seed=0, blocks=blocks).probabilities(features)
        for blocks in (np.arange(400) // 40 + 7, None, np.zeros(400, int))
    )
    assert np.abs(with_blocks - 0.5).max() < 0.2 < np.abs(without - 0.5).max()
    np.testing.assert_array_equal(of_one, without)


def test_forest_that_is_grown_in_parts_is_the_one_that_is_grown_at_once() -> None:
    generator = np.random.default_rng(3)
    features, labels = generator.random((300, 4), np.float32), generator.integers(0, 3, 300)
    for weights, name in ((None, "natural"), ("balanced", "balanced")):
        fitted = FittedLearner(Variant("random forest", "values", name), features, labels, classes=3, seed=5)
        once = RandomForestClassifier(100, class_weight=weights, random_state=5).fit(features, labels)
        np.testing.assert_allclose(fitted.probabilities(features), once.predict_proba(features), atol=1e-12)


def test_learner_without_time_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    features, labels = generator.random((300, 4), np.float32), generator.integers(0, 3, 300)
    blocks = np.arange(300) // 30
    monkeypatch.setattr(jobs.baseline.learners, "ITERATIONS_PER_PART", 2)
    for variant in [*variants()][:4]:
        complete, cut = (
            FittedLearner(variant, features, labels, classes=3, seed=0, blocks=blocks, seconds=seconds)
            for seconds in (60, -1)
        )
        assert complete.complete
        assert cut.complete == (variant.learner == "majority class")
        if not cut.complete:
            assert (cut.probabilities(features) != complete.probabilities(features)).any()


def test_forest_probabilities_do_not_depend_on_threads() -> None:
    generator = np.random.default_rng(1)
    features = generator.random((9000, 4), np.float32)
    labels = generator.integers(0, 3, 9000)
    fitted = FittedLearner(Variant("random forest", "values", "natural"), features[:500], labels[:500], classes=3, seed=0)
    first, again = (fitted.probabilities(features).tobytes() for _ in range(2))
    assert first == again


# --- comparison with the trained model ---


def test_trained_model_is_compared_on_the_same_pixels(trained: Mapped, tmp_path: Path) -> None:
    mapped = trained.copy(tmp_path / "scene")
    mapped.does("evaluate")
    evaluation = json.loads((mapped.folder / "work/runs/main/evaluation.json").read_text())
    result = few_fits(load(str(mapped.config)), test=True, seconds=100).to_json()
    validation, test = result["subsets"]
    network = test["rows"][-1]
    assert network["learner"] == "MIBF-Net"
    assert test["samples"] == test["available"] == evaluation["samples"]
    for name in ("overall_accuracy", "average_accuracy", "kappa", "macro_f1"):
        assert network["figures"][name] == pytest.approx(evaluation[name], abs=1e-9)
    assert network["figures"]["ece"] == pytest.approx(evaluation["ece"], abs=1e-5)
    best = max(row["figures"]["overall_accuracy"] for row in test["rows"][:-1])
    assert test["difference"]["value"] == pytest.approx(best - network["figures"]["overall_accuracy"])
    assert "the network" in test["advice"].lower()
    assert validation["rows"][-1]["learner"] == "MIBF-Net"
    assert any("selected the epoch" in note for note in result["notes"])


def test_stale_model_is_not_compared(trained: Mapped, tmp_path: Path) -> None:
    mapped = trained.copy(tmp_path / "scene")
    found = few_fits(load(str(mapped.config), overrides=["train.learning_rate=0.1"]))
    assert "is not compared, because it was not trained on" in " ".join(found.notes)
    assert [row.learner for row in found.tables[0].rows] == ["majority class", "random forest"]


# --- refusals ---


def test_store_that_is_not_prepared_is_refused(scene: SmallScene) -> None:
    assert "`prepare` is not finished; run `mibf prepare`" in refused(scene, command="baseline")


def test_scenes_without_labels_are_refused(scene: SmallScene) -> None:
    scenes = scene.config()["scenes"]
    del scenes[0]["labels"]
    assert "no scene has `labels`" in refused(scene, command="baseline", scenes=scenes)


def test_split_without_validation_is_refused_unless_test_is_requested(scene: SmallScene) -> None:
    split = {"method": "random", "train": 0.05, "validation": 0}
    run(scene, split=split)
    config = load(str(scene.write_config(split=split)))
    with pytest.raises(InputError, match="the split has no validation pixels"):
        baseline(config, test=False)
    found = baseline(config, test=True, samples=300, seconds=1, clock=ticking(1))
    assert [(t.subset, t.block) for t in found.tables] == [("test", 64)]
    assert "the split is random and leaks" in found.lines()[-1]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"train": [1, 2]}, "no samples in the subset 'validation'"),
        ({"validation": [1, 2]}, "no samples in the subset 'train'"),
        ({"train": [1], "validation": [1, 2]}, "the training samples are of one class"),
    ],
)
def test_empty_subset_and_single_class_are_refused(
    kept: dict[str, list[int]], message: str, checkers: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PatchStore.windows_with_samples

    def thinned(self: PatchStore, subset: Any) -> Any:
        keep = np.isin([c.id for c in self.classes], kept.get(subset, []))
        return [(w, n * keep) for w, n in read(self, subset) if (n * keep).any()]

    monkeypatch.setattr(StoreList, "packed", lambda self, subset: None)  # no catalog
    monkeypatch.setattr(PatchStore, "windows_with_samples", thinned)
    with pytest.raises(InputError, match=message):
        baseline(load(str(checkers.folder / "small.yaml")), test=False)


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--samples", "0")])
def test_budget_of_zero_is_refused(arguments: tuple[str, ...], checkers: SmallScene) -> None:
    done = CliRunner().invoke(app, ["baseline", str(checkers.folder / "small.yaml"), *arguments])
    assert done.exit_code == 2
