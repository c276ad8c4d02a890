"""Stage `evaluate`: metrics on the held-out test subset, which no other stage reads.

If several seeds were trained, each seed's model is evaluated; the metrics are those of the selected one, together with the
spread over all. Accuracies are reported for each setting of the class priors, to show the trade-off between overall and
average accuracy; the map uses `prediction.priors`. Whether these lose more than they gain is measured on validation
pixels, never on test pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from jobs.config.config import Config
from jobs.evaluate.earlier import earlier_models, gain_lines, read_evaluation
from jobs.evaluate.intervals import SQUARE, block_intervals, interval_line
from jobs.evaluate.prior_effect import TRADED, changes_predictions, prior_notes
from jobs.evaluate.set_coverage import set_coverage, set_lines
from jobs.runtime.progress import info, progress_bar, warn
from jobs.workflow.fingerprint import fingerprint as compute_fingerprint
from jobs.workflow.fingerprint import imported_checkpoint
from jobs.workflow.manifest import StageResult, read_manifest
from jobs.workflow.runner import invalidate
from jobs.workflow.seed_summary import REPORTED, format_accuracies, format_with_interval, mean_and_deviation
from jobs.workflow.split_caveat import split_caveat
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.bundle.members import KIND_NAMES
from mibf.class_priors import PriorSetting
from mibf.errors import InputError
from mibf.metrics.calibration import Reliability
from mibf.metrics.confusion import ConfusionMatrix
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.predictor import check_sources
from pipeline.parallel.cpu_count import cpu_count
from pipeline.sampling.drawn_pixels import subset_digest
from pipeline.sampling.predictions import Counted, Predictions, parts, predict
from pipeline.sampling.sample_blocks import Block, BlockSums, add_blocks, block_side
from pipeline.sampling.sampler import Sampler
from pipeline.sampling.store_catalog import StoreList
from pipeline.store.patch_store import check_matching

#: Caveat on the metrics of a model that was trained elsewhere.
UNKNOWN_TRAINING = (
    "the model was imported from a reference checkpoint, and its training data are unknown: they may include test pixels, "
    "so these metrics may be too high"
)
#: Parts of samples from which starting Ray workers takes less time than they save.
LEAST_PARTS = 4


def evaluate(config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> StageResult:
    """Classify every test sample and write the metrics."""
    bundle = workspace.read_bundle()
    bundle.correction(config.prediction.priors)  # refused before anything is written
    stores = _checked_stores(config, workspace, bundle)
    others = [workspace.read_bundle(seed) for seed in other_seeds(bundle)]
    before = read_evaluation(workspace.evaluation)
    invalidate(workspace, "evaluate", lease)
    torch.set_num_threads(cpu_count())
    sampler = Sampler(stores, bundle.scaling, bundle.spec.patch, "test")
    held_out = replace(sampler, subset="validation") if changes_predictions(bundle, config.prediction.priors) else None
    counted = Counted(config.prediction.priors, block_side([sampler], config.split_block or SQUARE))
    total = sampler.samples() * (1 + len(others)) + (0 if held_out is None else held_out.samples())
    by_scene = {s.name: replace(sampler, stores=stores[i : i + 1]) for i, s in enumerate(config.scenes)}
    with progress_bar("evaluate", total, unit="samples") as advance:
        requests = [(each, own) for each in (bundle, *others) for own in by_scene.values()]
        more = [] if held_out is None or not held_out.samples() else [(bundle, held_out)]
        found = _classify(config, workspace, [*requests, *more], counted, advance)
    by_model = [found[i : i + len(by_scene)] for i in range(0, len(requests), len(by_scene))]
    of_scenes = [dict(zip(by_scene, own, strict=True)) for own in by_model]
    predictions = [pooled(each.values()) for each in of_scenes]
    on_validation = _on_validation(found[-1], config) if more else None
    split = storage.read_json(workspace.split)
    priors = config.prediction.priors
    measured, names = predictions[0].by_priors[priors], [c.name for c in bundle.classes]
    confusion = measured.confusion()
    evaluation: dict[str, Any] = measured.figures() | {
        "fingerprint": fingerprint,
        "priors": priors,
        "by_priors": {choice: _accuracies(reliability) for choice, reliability in predictions[0].by_priors.items()},
        "priors_on_validation": on_validation,
        "prior_notes": prior_notes(bundle, priors, on_validation),
        "temperature": None if bundle.single is None else bundle.single.temperature,
        "members": [{"kind": m.kind, "temperature": m.temperature, "share": m.share} for m in bundle.members],
        "ece_uncalibrated": predictions[0].uncalibrated.figures()["ece"],
        "seeds": [
            {"seed": seed, **_accuracies(each.by_priors[priors])}
            for seed, each in zip([bundle.provenance.get("seed"), *other_seeds(bundle)], predictions, strict=True)
        ],
        "split": split["method"],
        "buffer": split["buffer"],
        "overlap": split["overlap"],
        "source_overlap": split.get("source_overlap"),
        "caveat": model_caveat(bundle, split),
        "classes": per_class(confusion, names),
        "model": bundle.digest,
        "test_pixels": subset_digest(stores, "test", report=warn),
        "train_samples": sum(split.get("counts", {}).get("train", {}).values()),
        "prediction_sets": set_coverage(measured, bundle, config),
        "intervals": block_intervals(predictions[0].blocks, side=counted.side),
        "confusion": confusion.counts.tolist(),
    }
    _add_class_intervals(evaluation)
    evaluation["earlier"] = earlier_models(workspace, before, evaluation)
    if len(config.scenes) > 1:
        of_bundle = {name: each.by_priors[priors] for name, each in of_scenes[0].items() if by_scene[name].samples()}
        evaluation["scenes"] = {name: scene_figures(own, bundle) for name, own in of_bundle.items()}
    lease.check()
    storage.write_json(workspace.evaluation, evaluation)
    return StageResult(evaluation, summary(evaluation) + gain_lines(config.run, evaluation), [workspace.evaluation])


def _checked_stores(config: Config, workspace: Workspace, bundle: Bundle) -> StoreList:
    """Open the stores of all scenes, which must be those that the model was trained on, or like them."""
    stores = open_stores(workspace, (scene.name for scene in config.scenes), report=warn)
    for store in stores:
        check_sources(store, bundle)
        check_matching(store, bundle.scaling)
    check_trained_on(config, workspace)
    return stores


def _add_class_intervals(evaluation: dict[str, Any]) -> None:
    """Add the interval of its F1 to the figures of each class."""
    intervals = evaluation["intervals"]
    for row, found in zip(evaluation["classes"], intervals["class_f1"] if intervals else [], strict=False):
        row["f1_interval"] = found


def pooled(parts: Iterable[Predictions]) -> Predictions:
    """Return the reliability on the samples of all parts, at least one, of the same model."""
    first, *rest = parts
    blocks: dict[Block, BlockSums] = {}
    for part in (first, *rest):
        add_blocks(blocks, part.blocks)
    return Predictions(
        sum((part.uncalibrated for part in rest), first.uncalibrated),
        {c: sum((part.by_priors[c] for part in rest), first.by_priors[c]) for c in first.by_priors},
        blocks,
    )


def scene_figures(reliability: Reliability, bundle: Bundle) -> dict[str, Any]:
    """Metrics of a bundle on the samples of one scene, per class too."""
    confusion = reliability.confusion()
    return {
        **_accuracies(reliability),
        "samples": confusion.samples,
        "majority_share": confusion.majority_share,
        "classes": per_class(confusion, [c.name for c in bundle.classes]),
    }


def _classify(
    config: Config,
    workspace: Workspace,
    requests: Sequence[tuple[Bundle, Sampler]],
    counted: Counted,
    advance: Callable[[int], None],
) -> list[Predictions]:
    """Classify the samples of each sampler with its model: on `train.workers` Ray workers, or in this process if few."""
    sets = config.prediction.set_choice
    beta, cut = config.model.beta, [parts(bundle, sampler) for bundle, sampler in requests]
    if config.train.workers < 2 or sum(map(len, cut)) < LEAST_PARTS:
        return [predict(bundle, sampler, beta, advance, counted=counted, sets=sets) for bundle, sampler in requests]
    from jobs.evaluate.on_ray import predict_on_ray
    from jobs.runtime import ray_cluster  # import Ray only where it is used

    ray_cluster.ensure(workers=config.train.workers)
    ray_cluster.check_shared([workspace.split])
    share = ray_cluster.share_cluster(config.resources, config.train.workers)
    info(f"evaluating on {share}")
    return predict_on_ray(
        [(bundle, sampler, own) for (bundle, sampler), own in zip(requests, cut, strict=True)],
        share,
        beta=beta,
        counted=counted,
        advance=advance,
        sets=sets,
    )


def _on_validation(predictions: Predictions, config: Config) -> dict[str, dict[str, float]]:
    """Overall and average accuracy on validation samples, with the priors of training and with the chosen ones."""
    by_priors = predictions.by_priors
    choices: tuple[PriorSetting, ...] = ("trained", config.prediction.priors)
    figures = {choice: by_priors[choice].figures() for choice in choices}
    return {choice: {key: figures[choice][key] for key in TRADED} for choice in choices}


def other_seeds(bundle: Bundle) -> list[int]:
    """The trained seeds other than the selected one."""
    return [seed for seed in bundle.provenance.get("seeds", []) if seed != bundle.provenance.get("seed")]


def _accuracies(reliability: Reliability) -> dict[str, float]:
    figures = reliability.figures()
    return {key: figures[key] for key in (*(key for key, _ in REPORTED), "ece", "brier", "log_loss")}


def model_caveat(bundle: Bundle, split: dict[str, Any] | None = None) -> str | None:
    """The caveats that must accompany the metrics on samples of a split; None if there are none."""
    caveats = [UNKNOWN_TRAINING] if "authors" in bundle.provenance else []
    leak = None if split is None else split_caveat(split)
    return "; ".join([*caveats, *([] if leak is None else [leak])]) or None


def check_trained_on(config: Config, workspace: Workspace) -> None:
    """Check that the model was trained on the current split: otherwise its training may have included test pixels."""
    trained = read_manifest(workspace, "train")
    if trained is None or trained.fingerprint == compute_fingerprint(config, "train"):
        return
    if imported_checkpoint(workspace):
        raise InputError(
            f"{workspace.bundle}: was imported from its checkpoint for other stores or another configuration; "
            "run `mibf import-checkpoint` again."
        )
    raise InputError(
        f"{workspace.bundle}: was not trained on the current stores and split, or not with this configuration, so its "
        "training may have included test pixels; run `mibf train` first, or `mibf run`."
    )


def per_class(confusion: ConfusionMatrix, names: list[str]) -> list[dict[str, Any]]:
    """Samples, precision, recall and F1 of each class."""
    rows = zip(names, confusion.support, confusion.precision, confusion.recall, confusion.f1, strict=True)
    return [
        {"name": name, "samples": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, n, p, r, f in rows
    ]


def summary(evaluation: dict[str, Any]) -> list[str]:
    """Format the metrics as lines for a terminal."""
    intervals = (evaluation["intervals"] or {}).get("metrics", {})
    shown = {key: format_with_interval(evaluation[key], intervals.get(key)) for key, _ in REPORTED}
    lines = [f"note: {note}" for note in (evaluation["caveat"], *evaluation.get("prior_notes", ())) if note]
    lines += [
        f"overall accuracy {shown['overall_accuracy']} on {evaluation['samples']:,} test samples "
        f"({evaluation['split']} split; the majority class alone gives {evaluation['majority_share']:.3f})",
        f"average accuracy {shown['average_accuracy']}, macro-F1 {shown['macro_f1']}, kappa {shown['kappa']}",
        interval_line(evaluation["intervals"]),
        f"{_calibration(evaluation)}: expected calibration error {evaluation['ece']:.3f} "
        f"({evaluation['ece_uncalibrated']:.3f} without temperature), Brier score {evaluation['brier']:.3f}",
    ]
    lines += set_lines(evaluation.get("prediction_sets"))
    if len(evaluation["by_priors"]) > 1:
        lines.append("by class priors (prediction.priors; the map uses those marked *):")
        lines += [
            f"  {choice + (' *' if choice == evaluation['priors'] else ''):<10} {format_accuracies(row)}"
            for choice, row in evaluation["by_priors"].items()
        ]
    if len(scenes := evaluation.get("scenes", {})) > 1:
        lines += ["by scene:", *(f"  {name}: {scene_line(figures)}" for name, figures in scenes.items())]
    if len(evaluation["seeds"]) > 1:
        lines.append(
            f"{len(evaluation['seeds'])} seeds, mean ± standard deviation: {mean_and_deviation(evaluation['seeds'])}"
        )
    if evaluation["classes_measured"] < len(evaluation["classes"]):
        measured, classes = evaluation["classes_measured"], len(evaluation["classes"])
        lines.append(f"averages over {measured} of {classes} classes: {_unmeasured(evaluation)}")
    return lines + class_table(evaluation["classes"])


def class_table(classes: list[dict[str, Any]]) -> list[str]:
    """Format the metrics per class as lines for a terminal."""
    width = max(len(row["name"]) for row in classes)
    lines = [f"{'class':<{width}}  {'samples':>9}  {'precision':>9}  {'recall':>6}  {'F1':>5}"]
    for row in classes:
        lines.append(
            f"{row['name']:<{width}}  {row['samples']:>9,}  {_share(row['precision']):>9}  "
            f"{_share(row['recall']):>6}  {format_with_interval(row['f1'], row.get('f1_interval')):>5}"
        )
    return lines


def _calibration(evaluation: dict[str, Any]) -> str:
    """Say by which temperature, or by how many, logits are divided."""
    if evaluation["temperature"] is not None:
        return f"temperature {evaluation['temperature']:.2f}"
    members = evaluation["members"]
    return f"mean of {len(members)} members" if len(members) > 1 else KIND_NAMES[members[0]["kind"]]


def scene_line(figures: dict[str, Any]) -> str:
    """Format the metrics of one scene as one line."""
    return (
        f"{format_accuracies(figures)}, expected calibration error {figures['ece']:.3f}, on {figures['samples']:,} samples "
        f"(the majority class alone gives {figures['majority_share']:.3f})"
    )


def _unmeasured(evaluation: dict[str, Any]) -> str:
    names = [row["name"] for row in evaluation["classes"] if row["samples"] == 0]
    return f"no test sample of {', '.join(names)}"


def _share(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.3f}"
