"""evaluate: the figures on the held-out test subset, which no other stage opens.

Of a training with several seeds each seed's model is measured; the figures are those of the chosen one, with the spread
over all beside them. Accuracies are told for each choice of class frequencies, so that overall and average accuracy are
traded knowingly; those of `prediction.priors` are the map's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from dask.system import CPU_COUNT

from jobs.config import Config
from jobs.progress import bar
from jobs.seeds import TOLD, spread, told
from jobs.stages import Outcome, begin, imported, read_manifest
from jobs.stages import fingerprint as fingerprint_of
from jobs.workspace import Workspace
from mibf.bundle import Bundle
from mibf.calibration import Reliability
from mibf.errors import InputError
from mibf.metrics import ConfusionMatrix
from mibf.precision import best_device, place
from mibf.priors import CHOICES, Choice
from mibf.training import validate
from pipeline import storage
from pipeline.batches import Sampler
from pipeline.lease import Lease
from pipeline.predict import check_sources
from pipeline.store import PatchStore

BATCH = 1024
#: What stands beside the figures of a model whose training nobody here saw.
UNKNOWN_TRAINING = (
    "the model was read from a checkpoint of the authors, and what it was trained on is unknown: test pixels may have been "
    "in its training, so these figures may be too high"
)


def evaluate(config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> Outcome:
    """Classify every test sample and write the figures."""
    bundle = workspace.read_bundle()
    bundle.network(config.prediction.priors)  # refused before anything is written
    stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
    for store in stores:
        check_sources(store, bundle)
    _check_trained_on(config, workspace)
    others = [workspace.read_bundle(seed) for seed in _others(bundle)]
    begin(workspace, "evaluate", lease)
    torch.set_num_threads(CPU_COUNT)
    sampler = Sampler(stores, bundle.scaling, bundle.spec.patch, "test")
    with bar("evaluate", sampler.samples() * (1 + len(others)), unit="samples") as advance:
        judged = [_judged(each, sampler, config.model.beta, advance) for each in (bundle, *others)]
    split = storage.read_json(workspace.split)
    asked = config.prediction.priors
    measured = judged[0].by_priors[asked]
    confusion = measured.confusion()
    evaluation: dict[str, Any] = measured.figures() | {
        "fingerprint": fingerprint,
        "priors": asked,
        "by_priors": {choice: _accuracies(judge) for choice, judge in judged[0].by_priors.items()},
        "temperature": bundle.temperature,
        "ece_uncalibrated": judged[0].uncalibrated.figures()["ece"],
        "seeds": [
            {"seed": seed, **_accuracies(each.by_priors[asked])}
            for seed, each in zip([bundle.provenance.get("seed"), *_others(bundle)], judged, strict=True)
        ],
        "split": split["method"],
        "buffer": split["buffer"],
        "overlap": split["overlap"],
        "caveat": _caveat(bundle, split),
        "classes": per_class(confusion, [c.name for c in bundle.classes]),
        "confusion": confusion.counts.tolist(),
    }
    storage.write_json(workspace.evaluation, evaluation)
    return Outcome(evaluation, summary(evaluation), [workspace.evaluation])


class _Judged(NamedTuple):
    """How one model did on the test samples."""

    uncalibrated: Reliability
    by_priors: dict[Choice, Reliability]


def _judged(bundle: Bundle, sampler: Sampler, beta: float, advance: Callable[[int], None]) -> _Judged:
    """Classify the test samples once, for every choice of class frequencies that the model knows."""
    device = best_device()
    classes = bundle.spec.classes
    known: tuple[Choice, ...] = ("trained",) if bundle.priors is None else CHOICES
    corrections = {choice: None if bundle.priors is None else bundle.priors.correction(choice) for choice in known}
    by_priors = {
        choice: Reliability(
            classes,
            device,
            temperature=bundle.temperature,
            correction=None if correction is None else torch.tensor(correction),
        )
        for choice, correction in corrections.items()
    }
    judged = _Judged(Reliability(classes, device), by_priors)
    validate(
        place(bundle.network(), device),
        sampler.in_order(batch=BATCH),
        beta=beta,
        precision="float32",
        judges=[judged.uncalibrated, *by_priors.values()],
        after_step=advance,
    )
    return judged


def _others(bundle: Bundle) -> list[int]:
    """The seeds beside the one that was chosen."""
    return [seed for seed in bundle.provenance.get("seeds", []) if seed != bundle.provenance.get("seed")]


def _accuracies(judge: Reliability) -> dict[str, float]:
    figures = judge.figures()
    return {key: figures[key] for key in (*(key for key, _ in TOLD), "ece", "brier", "log_loss")}


def _caveat(bundle: Bundle, split: dict[str, Any]) -> str | None:
    """What must stand beside the figures."""
    caveats = [UNKNOWN_TRAINING] if "authors" in bundle.provenance else []
    if split["method"] == "random":
        share = max((s for s in split["overlap"].values() if s is not None), default=0.0)
        caveats.append(
            f"the split is random and leaks: up to {share:.0%} of a scene's test patches overlap a training patch, so that "
            "these figures compare methods and measure no map"
        )
    return "; ".join(caveats) or None


def _check_trained_on(config: Config, workspace: Workspace) -> None:
    """See that the model was trained on the split as it is: otherwise test pixels may have trained it."""
    trained = read_manifest(workspace, "train")
    if trained is None or trained.fingerprint == fingerprint_of(config, "train"):
        return
    if imported(workspace):
        raise InputError(
            f"{workspace.bundle}: was read from its checkpoint for other stores or another configuration than those of now; "
            "run `mibf authors-to-bundle` again."
        )
    raise InputError(
        f"{workspace.bundle}: was not trained on the stores and split as they are now, or with this configuration, so "
        "that test pixels may have trained it; run `mibf train` first, or `mibf run`."
    )


def per_class(confusion: ConfusionMatrix, names: list[str]) -> list[dict[str, Any]]:
    """Samples, precision, recall and F1 of each class."""
    rows = zip(names, confusion.support, confusion.precision, confusion.recall, confusion.f1, strict=True)
    return [
        {"name": name, "samples": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, n, p, r, f in rows
    ]


def summary(evaluation: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal."""
    lines = [f"note: {evaluation['caveat']}"] if evaluation["caveat"] else []
    lines += [
        f"overall accuracy {evaluation['overall_accuracy']:.3f} on {evaluation['samples']:,} test samples "
        f"({evaluation['split']} split; the majority class alone gives {evaluation['majority_share']:.3f})",
        f"average accuracy {evaluation['average_accuracy']:.3f}, macro-F1 {evaluation['macro_f1']:.3f}, "
        f"kappa {evaluation['kappa']:.3f}",
        f"temperature {evaluation['temperature']:.2f}: expected calibration error {evaluation['ece']:.3f} "
        f"(without it {evaluation['ece_uncalibrated']:.3f}), Brier score {evaluation['brier']:.3f}",
    ]
    if len(evaluation["by_priors"]) > 1:
        lines.append("for class frequencies as (prediction.priors; the map has those marked *):")
        lines += [
            f"  {choice + (' *' if choice == evaluation['priors'] else ''):<10} {told(row)}"
            for choice, row in evaluation["by_priors"].items()
        ]
    if len(evaluation["seeds"]) > 1:
        lines.append(f"{len(evaluation['seeds'])} seeds, mean ± standard deviation: {spread(evaluation['seeds'])}")
    if evaluation["classes_measured"] < len(evaluation["classes"]):
        measured, classes = evaluation["classes_measured"], len(evaluation["classes"])
        lines.append(f"averages over {measured} of {classes} classes: {_unmeasured(evaluation)}")
    width = max(len(row["name"]) for row in evaluation["classes"])
    lines.append(f"{'class':<{width}}  {'samples':>9}  {'precision':>9}  {'recall':>6}  {'F1':>5}")
    for row in evaluation["classes"]:
        lines.append(
            f"{row['name']:<{width}}  {row['samples']:>9,}  {_share(row['precision']):>9}  "
            f"{_share(row['recall']):>6}  {_share(row['f1']):>5}"
        )
    return lines


def _unmeasured(evaluation: dict[str, Any]) -> str:
    names = [row["name"] for row in evaluation["classes"] if row["samples"] == 0]
    return f"no test sample of {', '.join(names)}"


def _share(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.3f}"
