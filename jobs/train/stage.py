"""Stage `train`: data-parallel MIBF-Net on 1..n Ray Train workers (gloo on CPUs, NCCL on GPUs), or in this process with 0.

The training loop is in `jobs.train.worker_loop`. Ray Train starts the workers and restarts them when one dies, with
more or fewer workers where allowed; each resumes from the newest checkpoint. Checkpoints are not handed to Ray but
written through `pipeline.io`: they are verified when read, transient object-store errors are retried, and a run with
Ray can be resumed without it and vice versa.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from dask.system import CPU_COUNT

from jobs.config.config import Config
from jobs.config.train import Select
from jobs.runtime.progress import TrainingBar, info, pluralize, training_bar, warn
from jobs.runtime.prometheus import TrainMetrics, train_metrics
from jobs.runtime.worker_resources import WorkerResources
from jobs.train.provenance import versions
from jobs.train.resume import RESUME_SAFE_KEYS, begin_run, check_resumable, training_identity
from jobs.train.settings import Settings, WorkerContext, make_settings, network_spec
from jobs.train.step_plan import StepPlan
from jobs.train.tracking.mlflow import check_mlflow
from jobs.train.worker_loop import run
from jobs.workflow.errors import StageError
from jobs.workflow.fingerprint import imported_checkpoint
from jobs.workflow.manifest import StageResult
from jobs.workflow.seed_summary import format_accuracies, mean_and_deviation
from jobs.workflow.split_caveat import split_caveat
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.device import best_device, check_precision, means_device_failed
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.normalization import Scaling, scaling_from_json
from mibf.training.checkpoint import TrainingPosition
from mibf.training.epoch import NonFiniteError
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.lease import Lease
from pipeline.io.retry import StorageUnavailableError, call_with_retry
from pipeline.sampling.sampler import ReadError, Sampler
from pipeline.store.patch_store import PatchStore


def train(config: Config, workspace: Workspace, fingerprint: str, lease: Lease, *, restart: bool = False) -> StageResult:
    """Train and write the bundle; `restart` discards the checkpoints of an unfinished training run.

    Raises:
        InputError: there is nothing to train on, or this configuration cannot be trained.
        StageError: training stopped; the run can be resumed.
        LeaseLostError: the workspace lease was lost; nothing is overwritten from then on.
    """
    if not config.trainable:
        raise InputError(
            "no scene has `labels`, or the split gives all that have to other subsets, so there is nothing to train on; add "
            "labels to at least one training scene, or map with an existing model (map.model)."
        )
    _check_not_imported(workspace)
    stores = [PatchStore(workspace.store(scene.name), without=("test",)) for scene in config.scenes]
    spec = network_spec(config, stores[0])
    split = storage.read_json(workspace.split)
    _check_buffer(workspace, split, spec.patch)
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    training = Sampler(stores, scaling, spec.patch, "train")
    _check_shared_out(config, training)
    identity = training_identity(config, workspace, spec)
    check_resumable(workspace, identity, restart=restart)
    mlflow = None if config.train.mlflow is None else check_mlflow(config.train.mlflow)
    share = _share(config)
    resumed = begin_run(config, workspace, fingerprint, lease, identity, restart=restart)
    settings = make_settings(
        config,
        workspace,
        spec,
        training,
        threads=config.train.threads or share.cpus,
        identity=identity,
        lease=lease if config.train.workers == 0 else lease.for_workers(),
        fingerprint=fingerprint,
        mlflow=mlflow,
    )
    info(f"training on {share}, {config.train.precision}")
    plan = StepPlan.of(config.train, config.sampling.epoch_fraction, training.samples())
    total = len(config.train.every_seed) * plan.total * config.train.batch_size
    metrics = train_metrics(config)
    if config.train.workers == 0:
        _train_locally(settings, total, metrics)
    else:
        _on_ray(settings, share, total, metrics)
    results = _read_results(config, workspace)
    best = _best(config, results)
    origin = _origin(config, split, fingerprint, list(results))
    _write_bundles(workspace, results, best, partial(_bundle, settings, stores[0], scaling, origin), lease)
    parameters = sum(p.numel() for p in MIBFNet(spec).parameters())
    figures = {"chosen": results[best]["chosen"], "parameters": parameters, "seeds": [*results.values()]}
    return StageResult(
        figures,
        [
            f"{parameters:,} parameters, {pluralize(len(spec.sources), 'sources')}, "
            f"{pluralize(results[best]['epochs'], 'epochs')}{' (resumed)' if resumed else ''}",
            *_lines(results, best, config.train.select),
        ],
        [workspace.bundle, workspace.metrics],
    )


def _read_results(config: Config, workspace: Workspace) -> dict[int, dict[str, Any]]:
    """Read each seed's training result; an object store may be unavailable at the end too."""
    urls = {seed: workspace.result(seed) for seed in config.train.every_seed}
    return {seed: call_with_retry(url, partial(storage.read_json, url), report=warn) for seed, url in urls.items()}


def _write_bundles(
    workspace: Workspace,
    results: Mapping[int, dict[str, Any]],
    best: int,
    build: Callable[[int, dict[str, Any]], Bundle],
    lease: Lease,
) -> None:
    """Write the best seed's bundle and, if there are several seeds, one for each; remove those of other seeds."""
    several = len(results) > 1
    for seed, result in results.items():
        bundle = build(seed, result)
        if several:
            write = partial(workspace.write_bundle, bundle, lease, seed=seed)
            call_with_retry(workspace.seed_bundle(seed), write, report=warn)
        if seed == best:
            call_with_retry(workspace.bundle, partial(workspace.write_bundle, bundle, lease), report=warn)
    remove = partial(workspace.keep_seed_bundles, results if several else (), lease)
    call_with_retry(workspace.bundle, remove, report=warn)


def _check_not_imported(workspace: Workspace) -> None:
    """Check that training does not overwrite an imported model, which it could not reproduce."""
    if imported_checkpoint(workspace):
        raise InputError(
            f"{workspace.bundle}: was imported from a reference checkpoint, and training would overwrite it. Train under "
            "another run name (`--set run=NAME`), or run `mibf import-checkpoint` again to import the checkpoint for the "
            "current stores and configuration."
        )


def _check_buffer(workspace: Workspace, split: Mapping[str, Any], patch: int) -> None:
    """Check that the buffer of the stored split is wide enough for this patch size."""
    if split["method"] in ("blocks", "scenes") and split["buffer"] < patch - 1:
        raise InputError(
            f"{workspace.split}: the buffer between subsets is {split['buffer']} pixels, but patches of {patch} pixels need "
            f"{patch - 1} to keep training off the ground of other subsets; run `mibf prepare`, or reset model.patch."
        )


def _check_shared_out(config: Config, training: Sampler) -> None:
    """Check that there is at least one full batch, and one window to read for every worker."""
    samples, windows = training.samples(), training.windows()
    if config.train.batch_size > samples:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, but there are only {samples} training samples; choose a "
            "smaller batch."
        )
    drawn = int(config.sampling.epoch_fraction * samples)
    if config.train.batch_size > drawn:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, but an epoch has only {drawn} samples: "
            "sampling.epoch_fraction is "
            f"{config.sampling.epoch_fraction:g}, and there are {samples} training samples. Lower train.batch_size or "
            "raise sampling.epoch_fraction."
        )
    if config.train.most_workers > windows:
        raise InputError(
            f"train.workers is {config.train.most_workers}, but the training samples are in {windows} windows of the "
            f"stores, and each window is read by one worker; use at most {windows} workers."
        )


def _share(config: Config) -> WorkerResources:
    """The resources of each worker; a precision that they do not support is refused before anything is written."""
    if config.train.workers == 0:
        device = best_device()
        check_precision(device, config.train.precision)
        return WorkerResources(0, config.train.threads or CPU_COUNT, int(device.type == "cuda"))
    from jobs.runtime import ray_cluster  # import Ray only where it is used

    ray_cluster.ensure(workers=config.train.workers)
    share = ray_cluster.share_cluster(config.train.most_workers, fewest=config.train.workers)
    if share.gpus:
        from jobs.train.ray_trainer import check_gpu

        check_gpu(config.train.precision)
    else:
        check_precision(torch.device("cpu"), config.train.precision)
    return share


@dataclass(frozen=True)
class LocalProgress:
    """Progress callback for training in this process."""

    bar: TrainingBar
    metrics: TrainMetrics

    def seen(self, samples: int, waiting: float) -> None:
        """See `ProgressCallback.seen`."""
        self.bar.seen(samples, waiting=waiting)
        self.metrics.seen(samples, waiting)

    def loss(self, value: float) -> None:
        """See `ProgressCallback.loss`."""
        self.metrics.loss(value)

    def epoch(self, line: str) -> None:
        """See `ProgressCallback.epoch`."""
        self.bar.epoch(line)

    def warn(self, line: str) -> None:
        """See `ProgressCallback.warn`."""
        warn(line)


def _train_locally(settings: Settings, total: int, metrics: TrainMetrics) -> None:
    """Train in this process."""
    with training_bar("train", total) as bar:
        try:
            run(settings, WorkerContext(0, 1, best_device()), LocalProgress(bar, metrics))
        except (NonFiniteError, ReadError, StorageUnavailableError) as error:
            raise StageError(f"training stopped: {error}") from error
        except RuntimeError as error:
            if not means_device_failed(error):
                raise
            raise StageError(
                f"training stopped: the device failed ({error}). Check it, then run the same command again to resume from "
                "the newest checkpoint."
            ) from error


def _on_ray(settings: Settings, share: WorkerResources, total: int, metrics: TrainMetrics) -> None:
    """Train with Ray Train, which is imported only here."""
    from jobs.train.ray_trainer import train_on_ray

    with training_bar("train", total) as bar:
        train_on_ray(settings, share, LocalProgress(bar, metrics))


def _best(config: Config, results: Mapping[int, dict[str, Any]]) -> int:
    """The seed whose model becomes the bundle: the best on validation, or the first if there was no validation."""
    select = config.train.select
    figure = f"validation_{'overall_accuracy' if select == 'last' else select}"
    sign = -1.0 if select == "loss" else 1.0
    scores = {seed: result["chosen"].get(figure) for seed, result in results.items()}
    known = {seed: sign * value for seed, value in scores.items() if value is not None}
    return max(known, key=lambda seed: known[seed]) if known else next(iter(results))


def _bundle(
    settings: Settings, store: PatchStore, scaling: Scaling, origin: dict[str, Any], seed: int, result: dict[str, Any]
) -> Bundle:
    """Build the bundle from one seed's selected epoch."""
    chosen = dict(result["chosen"])
    if "calibrated" in result:
        chosen["calibration"] = {key: result["calibrated"]["trained"][key] for key in ("ece", "brier", "log_loss")}
    checkpoints = Checkpoints(settings.workspace.checkpoints(seed))
    checkpoint = call_with_retry(
        checkpoints.url, partial(checkpoints.read, TrainingPosition(chosen["epoch"], 0)), report=warn
    )
    return Bundle(
        spec=settings.spec,
        weights=checkpoint.eval_weights,
        scaling={source.name: scaling[source.name] for source in settings.spec.sources},
        classes=store.classes,
        temperature=chosen.get("temperature", 1.0),
        priors=settings.priors,
        provenance={**origin, "seed": seed, "chosen": chosen},
    )


def _origin(config: Config, split: Mapping[str, Any], fingerprint: str, seeds: list[int]) -> dict[str, Any]:
    """The provenance that the bundles of all seeds share."""
    return {
        "fingerprint": fingerprint,
        "run": config.run,
        "seeds": seeds,
        "scenes": [scene.name for scene in config.scenes],
        "split": {"method": split["method"], "buffer": split["buffer"]}
        | ({"caveat": split_caveat(split)} if "source_overlap" in split else {}),
        "hyperparameters": {
            "beta": config.model.beta,
            **config.sampling.model_dump(mode="json"),
            **{key: value for key, value in config.train.model_dump(mode="json").items() if key not in RESUME_SAFE_KEYS},
        },
        "versions": versions(),
    }


def _lines(results: Mapping[int, dict[str, Any]], best: int, select: Select) -> list[str]:
    """Summarise the results of all seeds as lines for a person."""
    chosen = results[best]["chosen"]
    prefix = f"seed {best}, " if len(results) > 1 else ""
    if "validation_overall_accuracy" not in chosen:
        return [
            f"{prefix}epoch {chosen['epoch']}, the last; there were no validation samples: confidences are not calibrated"
        ]
    figures = results[best]["calibrated"]["trained"]
    number = chosen["epoch"]
    epoch = f"epoch {number}, the last, on validation" if select == "last" else f"best epoch {number} on validation"
    lines = [
        f"{prefix}{epoch}: {format_accuracies(figures)}",
        f"temperature {chosen['temperature']:.2f}: expected calibration error {figures['ece']:.3f} "
        f"({results[best]['uncalibrated']['ece']:.3f} without temperature), Brier score {figures['brier']:.3f}",
    ]
    if len(results) > 1:
        all_figures = [result["calibrated"]["trained"] for result in results.values()]
        lines.append(f"{len(results)} seeds on validation: {mean_and_deviation(all_figures)}")
    warnings = results[best].get("warnings", [])  # none in results of an earlier version
    return lines + [f"warning: {prefix}{line}" for line in warnings]
