"""Notes on class priors: damped classes, and a loss on validation pixels that is greater than the gain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.config.loader import load
from jobs.evaluate.prior_effect import prior_notes
from jobs.evaluate.stage import summary
from jobs.workflow.workspace import Workspace
from mibf.class_priors import Priors, PriorSetting
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore
from tests.support.bundles import PRIORS, make_bundle
from tests.support.mapped_scene import Mapped

SUPPORTED = replace(PRIORS, support=(700, 200, 100))


def accuracies(overall: float, average: float) -> dict[str, float]:
    return {"overall_accuracy": overall, "average_accuracy": average}


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        ((0.676, 0.559), (0.238, 0.42), True),
        ((0.804, 0.518), (0.706, 0.65), False),
        ((0.8, 0.5), (0.75, 0.549), True),
        ((0.8, 0.5), (0.75, 0.55), False),
        ((0.8, 0.5), (0.79964, 0.50002), False),  # the figures shown are equal
    ],
)
def test_priors_that_lose_more_than_they_gain_are_noted(
    before: tuple[float, float], after: tuple[float, float], warned: bool
) -> None:
    measured = {"trained": accuracies(*before), "uniform": accuracies(*after)}
    notes = prior_notes(make_bundle(priors=SUPPORTED), "uniform", measured)
    assert (
        notes
        == [
            f"class priors 'uniform' lose more than they gain on validation pixels: overall accuracy {before[0]:.3f} to "
            f"{after[0]:.3f}, average accuracy {before[1]:.3f} to {after[1]:.3f}; consider prediction.priors `trained`"
        ]
        * warned
    )


def test_damped_classes_and_a_missing_validation_subset_are_noted() -> None:
    bundle = make_bundle(priors=replace(PRIORS, support=(9, 0, 40)))  # natural priors raise the first class only
    assert prior_notes(bundle, "natural", None) == [
        "class priors 'natural' raise these classes only in part, because they have fewer than 100 training or validation "
        "samples: open water (9)",
        "there are no validation pixels, so what class priors 'natural' gain or lose is not known",
    ]


def test_a_long_list_of_damped_classes_is_cut() -> None:
    shares = (0.91, *(0.009,) * 10)
    classes = tuple(replace(make_bundle().classes[0], id=i, name=f"c{i}") for i in range(11))
    bundle = replace(make_bundle(), classes=classes, priors=Priors(shares, shares, support=(900, *range(10))))
    (note, _) = prior_notes(bundle, "uniform", None)
    assert note.endswith("samples: c1 (0), c2 (1), c3 (2), c4 (3), c5 (4), c6 (5), c7 (6), c8 (7) and 2 more")


@pytest.mark.parametrize(
    ("priors", "choice"),
    [(SUPPORTED, "trained"), (Priors.even(3), "uniform"), (Priors.even(3), "natural"), (None, "trained")],
)
def test_priors_that_change_no_prediction_are_not_noted(priors: Priors | None, choice: PriorSetting) -> None:
    assert prior_notes(make_bundle(priors=priors), choice, None) == []


def test_model_without_recorded_samples_is_noted() -> None:
    same = accuracies(0.8, 0.5)
    (note,) = prior_notes(make_bundle(), "uniform", {"trained": same, "uniform": same})
    assert note.endswith("raise rare classes in full; run `mibf train` to record them")


@pytest.mark.slow
def test_evaluate_measures_priors_on_validation_pixels(reference: Mapped, tmp_path: Path) -> None:
    mapped = reference.copy(tmp_path / "scene")
    mapped.does("evaluate", "prediction.priors=uniform")
    config = load(str(mapped.config))
    workspace = Workspace.of(config)
    evaluation = json.loads(Path(workspace.evaluation).read_text())
    bundle = workspace.read_bundle()
    assert bundle.priors is not None
    counts = json.loads(Path(workspace.split).read_text())["counts"]
    names = [c.name for c in bundle.classes]
    assert bundle.priors.support == tuple(min(counts["train"][n], counts["validation"][n]) for n in names)
    # Independently of `Reliability`: all logits at once, in numpy.
    sampler = Sampler([PatchStore(workspace.store("small"))], bundle.scaling, bundle.spec.patch, "validation")
    batches = list(sampler.in_order(batch=512))
    with torch.inference_mode():
        network = bundle.network()
        logits = np.concatenate([network([torch.from_numpy(x) for x in b.sources]).logits.numpy() for b in batches])
    labels = np.concatenate([b.labels for b in batches])
    for choice in ("trained", "uniform"):
        right = (logits + np.array(bundle.priors.correction(choice))).argmax(1) == labels
        average = np.mean([right[labels == c].mean() for c in np.unique(labels)])
        measured = evaluation["priors_on_validation"][choice]
        assert measured == {
            "overall_accuracy": pytest.approx(right.mean(), abs=2e-3),
            "average_accuracy": pytest.approx(average, abs=2e-3),
        }
    assert evaluation["prior_notes"] == prior_notes(bundle, "uniform", evaluation["priors_on_validation"])
    evaluation["prior_notes"] = ["class priors 'uniform' lose", "another note"]
    assert {"note: class priors 'uniform' lose", "note: another note"} <= set(summary(evaluation))
    Path(workspace.evaluation).write_text(json.dumps(evaluation))
    mapped.does("report")
    assert "<b>Class priors &#39;uniform&#39; lose.</b>" in (mapped.folder / "work/report/index.html").read_text()
    mapped.does("evaluate")
    assert json.loads(Path(workspace.evaluation).read_text())["priors_on_validation"] is None
