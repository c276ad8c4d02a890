"""Train the networks of every seed, with Ray Train or in this process, and build their bundles.

The training loop is in `jobs.train.worker_loop`. Ray Train starts the workers, again when one dies, with more or fewer
workers where allowed; each resumes from the newest checkpoint. Checkpoints are not handed to Ray but
written through `pipeline.io`: they are verified when read, transient object-store errors are retried, and a run with
Ray can be resumed without it and vice versa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from jobs.config.config import Config
from jobs.config.train import Select
from jobs.runtime.progress import TrainingBar, info, training_bar, warn
from jobs.runtime.prometheus import TrainMetrics, train_metrics
from jobs.runtime.worker_resources import WorkerResources, own_device
from jobs.train.learner import no_memory_message
from jobs.train.settings import Settings, WorkerContext
from jobs.train.step_plan import StepPlan
from jobs.train.worker_loop import run
from jobs.workflow.errors import StageError
from jobs.workflow.seed_summary import format_accuracies, mean_and_deviation
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.device import check_precision, means_device_failed, means_no_memory
from mibf.normalization import Scaling
from mibf.training.checkpoint import TrainingPosition
from mibf.training.epoch import NonFiniteError
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.retry import StorageUnavailableError, call_with_retry
from pipeline.parallel.cpu_count import cpu_count
from pipeline.sampling.sampler import ReadError
from pipeline.store.patch_store import PatchStore


@dataclass(frozen=True)
class TrainedNetworks:
    """The networks of all seeds, and the seed that is best on validation pixels."""

    bundles: dict[int, Bundle]
    results: dict[int, dict[str, Any]]  #: of the training of each seed
    best: int

    def lines(self, select: Select) -> list[str]:
        """Summarize the results of all seeds as lines for a person."""
        return _lines(self.results, self.best, select)


def train_networks(
    config: Config,
    settings: Settings,
    share: WorkerResources,
    *,
    store: PatchStore,
    scaling: Scaling,
    origin: dict[str, Any],
) -> TrainedNetworks:
    """Train the networks of all seeds that are not complete.

    Raises:
        StageError: training stopped; the run can be resumed.
        LeaseLostError: the workspace lease was lost.
    """
    info(f"training on {share}, {config.train.precision}")
    plan = StepPlan.of(config.train, config.sampling.epoch_fraction, settings.samples)
    total = len(config.train.every_seed) * plan.total * config.train.batch_size
    metrics = train_metrics(config)
    if config.train.workers == 0:
        _train_locally(settings, own_device(config.resources), total, metrics)
    else:
        _on_ray(settings, share, total, metrics)
    results = _read_results(config, settings.workspace)
    bundles = {seed: _bundle(settings, store, scaling, origin, seed, result) for seed, result in results.items()}
    return TrainedNetworks(bundles, results, _best(config, results))


def share_resources(config: Config) -> WorkerResources:
    """The resources of each worker; a precision that they do not support is refused before anything is written."""
    if config.train.workers == 0:
        device = own_device(config.resources)
        check_precision(device, config.train.precision)
        return WorkerResources(0, config.train.threads or cpu_count(), int(device.type == "cuda"))
    from jobs.runtime import ray_cluster  # import Ray only where it is used

    ray_cluster.ensure(workers=config.train.workers)
    share = ray_cluster.share_cluster(config.resources, config.train.most_workers, fewest=config.train.workers)
    ray_cluster.check_shared([Workspace.of(config).scaling])  # by nodes that have joined in between, too
    if share.gpus:
        ray_cluster.check_gpu(config.train.precision, share, key="train.precision")
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


def _train_locally(settings: Settings, device: torch.device, total: int, metrics: TrainMetrics) -> None:
    """Train in this process."""
    with training_bar("train", total) as bar:
        try:
            run(settings, WorkerContext(0, 1, device), LocalProgress(bar, metrics))
        except (NonFiniteError, ReadError, StorageUnavailableError) as error:
            raise StageError(f"training stopped: {error}") from error
        except (MemoryError, RuntimeError) as error:
            if means_no_memory(error):
                raise StageError(f"training stopped: {no_memory_message(error)}") from error
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


def _read_results(config: Config, workspace: Workspace) -> dict[int, dict[str, Any]]:
    """Read each seed's training result; an object store may be unavailable at the end too."""
    urls = {seed: workspace.result(seed) for seed in config.train.every_seed}
    return {seed: call_with_retry(url, partial(storage.read_json, url), report=warn) for seed, url in urls.items()}


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
    return Bundle.of_network(
        spec=settings.spec,
        weights=checkpoint.eval_weights,
        scaling={source.name: scaling[source.name] for source in settings.spec.sources},
        classes=store.classes,
        temperature=chosen.get("temperature", 1.0),
        priors=settings.priors,
        provenance={**origin, "seed": seed, "chosen": chosen},
    )


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
