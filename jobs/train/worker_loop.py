"""The training loop that every worker runs, under Ray Train or in the command's own process. Does not import Ray.

Training one seed is a sequence of steps; a worker reads its starting point from the newest checkpoint. Only worker 0
writes: a checkpoint after each epoch and every `checkpoint_steps` steps, a line of metrics for each epoch, and finally the
result, whose presence marks the seed as complete. Reported metrics are over all workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from jobs.config.train import TrainSection
from jobs.train.clock import Clock
from jobs.train.learner import make_perturbation, make_train_state
from jobs.train.model_selection import chosen_epoch, epoch_lines, should_stop_early, training_warnings
from jobs.train.restore import check_equal, read_chosen, restore_newest
from jobs.train.settings import ProgressCallback, Settings, WorkerContext
from jobs.train.step_plan import StepPlan
from jobs.train.tracking.tracker import Tracker
from jobs.workflow.provenance import hardware
from jobs.workflow.stores import open_stores
from mibf.class_priors import CHOICES
from mibf.device import check_precision
from mibf.distributed import barrier, decided_by_first
from mibf.metrics.calibration import Reliability, TemperatureFit
from mibf.normalization import Scaling, scaling_from_json, scaling_to_json
from mibf.training.batch import Batch, WindowBatch
from mibf.training.batch_statistics import recompute_statistics
from mibf.training.checkpoint import Checkpoint, TrainingPosition
from mibf.training.epoch import Step, train_epoch, validate
from mibf.training.epoch_metrics import EpochMetrics, MetricAccumulator
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.io.retry import call_with_retry
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore

#: Batch size of validation.
VALIDATION_BATCH = 1024
#: Keys of a line of metrics that say where it belongs; the others are metrics.
_POSITION_KEYS = ("seed", "epoch", "step")


def run(settings: Settings, worker: WorkerContext, callback: ProgressCallback) -> None:
    """Train every seed that is not complete, one after the other."""
    torch.set_num_threads(settings.threads)
    check_precision(worker.device, settings.train.precision)
    for seed in settings.train.every_seed:
        result = settings.workspace.result(seed)
        look = partial(call_with_retry, result, partial(storage.exists, result), report=callback.warn)
        if not decided_by_first(look, worker.device):
            SeedTrainer(settings, seed, worker, callback).run()


class SeedTrainer:
    """The training of one seed on one worker."""

    def __init__(self, settings: Settings, seed: int, worker: WorkerContext, callback: ProgressCallback) -> None:
        self.settings, self.seed, self.worker, self.callback = settings, seed, worker, callback
        self.section = section = settings.train
        self.checkpoints = Checkpoints(settings.workspace.checkpoints(seed))
        stores, scaling = call_with_retry(settings.workspace.url, self._opened, report=callback.warn)
        self.scaling = {source.name: scaling[source.name] for source in settings.spec.sources}
        make_sampler = partial(
            Sampler,
            stores,
            self.scaling,
            settings.spec.patch,
            rank=worker.rank,
            workers=worker.workers,
            report=callback.warn,
        )
        self.training = make_sampler(
            "train", frequencies=settings.frequencies, augment=section.augment, source_dropout=section.source_dropout
        )
        self.validation = make_sampler("validation")
        self.plan = StepPlan.of(section, settings.epoch_fraction, self.training.samples())
        self.learner = make_train_state(
            settings,
            worker,
            seed=seed,
            steps=self.plan.total,
            perturbation=make_perturbation(section, stores[0].sources, self.scaling, worker.device),
            report=callback.warn,
        )
        self.history: list[dict[str, Any]] = []
        self.clock = Clock()
        self.before = self._samples_of_earlier_seeds()

    def run(self) -> None:
        """Train to the end, starting from the newest checkpoint."""
        start, sums = self._restored()
        with self._tracker(start) as self.tracker:
            self._report_samples(start.epoch, start.step * self.section.batch_size)
            for epoch in range(start.epoch, self.plan.epochs):
                if self._should_stop_early():
                    break
                first = epoch == start.epoch
                self._epoch(epoch, start=start.step if first else 0, sums=sums if first else None)
            self._finish()

    def _tracker(self, start: TrainingPosition) -> Tracker:
        """The tracker that gets the metrics in addition to metrics.jsonl; on workers other than 0 it discards them."""
        if self.worker.rank > 0:
            return Tracker()
        settings = self.settings
        settings.lease.check()
        return Tracker.begin(
            settings.folder(self.seed),
            name=settings.name if len(self.section.every_seed) == 1 else f"{settings.name} seed {self.seed}",
            parameters=settings.parameters,
            mlflow=settings.mlflow,
            resumed_at=self.plan.before(start.epoch) + start.step,
            report=self.callback.warn,
        )

    def _opened(self) -> tuple[Sequence[PatchStore], Scaling]:
        """Open the stores, with the test samples hidden, and read the scaling."""
        workspace = self.settings.workspace
        stores = open_stores(workspace, self.settings.scenes, without=("test",), report=self.callback.warn)
        return stores, scaling_from_json(storage.read_json(workspace.scaling))

    def _restored(self) -> tuple[TrainingPosition, MetricAccumulator | None]:
        """Restore the newest checkpoint; return its position and the partial sums of the epoch."""
        found = restore_newest(
            self.learner,
            self.checkpoints,
            self.worker,
            identity=self.settings.identity,
            scaling=scaling_to_json(self.scaling),
            report=self.callback.warn,
        )
        self.history = found.history
        sums = None
        if found.sums is not None:
            sums = MetricAccumulator(self.settings.spec.classes, self.worker.device)
            if self.worker.rank == 0:
                sums.load(found.sums)
        return found.position, sums

    def _epoch(self, epoch: int, *, start: int, sums: MetricAccumulator | None) -> None:
        section, learner = self.section, self.learner
        self.clock.begin()
        trained = train_epoch(
            learner,
            self._batches(epoch, start=start),
            samples=section.batch_size,
            start=start,
            sums=sums,
            seed=lambda step: _noise_seed(self.seed, epoch, step, self.worker.rank),
            after_step=lambda step: self._after_step(epoch, step),
        )
        between = time.monotonic()
        line: dict[str, Any] = {"seed": self.seed, "epoch": epoch + 1, "step": self.plan.before(epoch + 1)}
        line |= _named("train", trained)
        if self.section.batch_norm_samples is not None and (self._is_validated(epoch) or epoch + 1 == self.plan.epochs):
            recompute_statistics(self.learner.eval_network, self._unchanged_batches(), precision=self.learner.precision)
        if self._is_validated(epoch):
            line |= self._validated()
        ended = time.monotonic()
        line |= {
            "train_seconds": round(between - self.clock.started, 2),
            "validation_seconds": round(ended - between, 2),
            "samples_per_second": round(self.clock.rate, 1),
            "waiting": round(self.clock.waiting, 4),
        }
        # Early stopping and the selected epoch follow from these lines, so all workers keep those of worker 0.
        line = decided_by_first(lambda: line, self.worker.device)
        self.history.append(line)
        if self.worker.rank == 0:
            self._write(TrainingPosition(epoch + 1, 0), None, with_retry=True)
            self._write_metrics()
            self.tracker.epoch(line["step"], {key: value for key, value in line.items() if key not in _POSITION_KEYS})
            self._report_samples(epoch + 1, 0)
            self.callback.loss(line["train_loss"])
            self.callback.epoch(_format_line(line, section, self.plan.epochs))

    def _batches(self, epoch: int, *, start: int) -> Iterator[Batch | WindowBatch]:
        """Yield this worker's batches of an epoch from step `start` on, pass by pass over the samples."""
        batch = self.worker.part(self.section.batch_size)
        for span in self.plan.spans(epoch, start=start):
            drawn = self.training.shuffled_for(
                self.worker.device, batch=batch, seed=self.seed, epoch=span.number, start=span.start, steps=span.stop
            )
            with closing(drawn):
                yield from drawn

    def _unchanged_batches(self) -> Iterator[Batch | WindowBatch]:
        """Yield up to `batch_norm_samples` training samples of all workers, always the same, as mapping shows them."""
        wanted = min(self.section.batch_norm_samples or 0, self.training.samples())
        batch = max(2, min(VALIDATION_BATCH, wanted // self.worker.workers))
        steps = max(1, wanted // (batch * self.worker.workers))
        plain = replace(self.training, augment=False, source_dropout=0.0)
        return plain.shuffled_for(self.worker.device, batch=batch, seed=self.seed, epoch=0, steps=steps)

    def _after_step(self, epoch: int, step: Step) -> None:
        section, clock = self.section, self.clock
        done = self.plan.before(epoch) + step.number
        clock.add(step.samples * self.worker.workers, step.waited)
        if clock.is_due():
            self._report_samples(epoch, step.number * section.batch_size)
        if done % section.log_steps == 0:
            loss, cross_entropy, rate, samples = step.sums.recent_means()
            line: dict[str, Any] = {
                "seed": self.seed,
                "epoch": epoch + 1,
                "step": done,
                "loss": loss,
                "cross_entropy": cross_entropy,
                "rate": rate,
                "samples": samples,
                "learning_rate": self.learner.schedule.get_last_lr()[0],
                "samples_per_second": round(clock.rate, 1),
                "waiting": round(clock.waiting, 4),
            }
            self.history.append(line)
            self.tracker.step(done, {key: value for key, value in line.items() if key not in _POSITION_KEYS})
            if self.worker.rank == 0:
                self.callback.loss(loss)
        if done % section.checkpoint_steps == 0 and step.number < self.plan.length(epoch):
            step.check()  # no checkpoint may hold non-finite values, although the device is otherwise checked late
            self.learner.average_buffers()
            sums = step.sums.state()
            if self.worker.rank == 0:
                self._write(TrainingPosition(epoch, step.number), sums, with_retry=False)
                self.tracker.flush()

    def _is_validated(self, epoch: int) -> bool:
        if not self.validation.samples():
            return False
        return (epoch + 1) % self.section.validate_every == 0 or epoch + 1 == self.plan.epochs

    def _validated(self) -> dict[str, Any]:
        """The metrics of the current network on the validation subset."""
        learner = self.learner
        calibration = TemperatureFit(self.worker.device)
        checked = validate(
            learner.eval_network,
            self.validation.in_order_for(self.worker.device, batch=VALIDATION_BATCH),
            beta=learner.beta,
            precision=learner.precision,
            observers=[calibration],
        )
        return _named("validation", checked) | {"temperature": calibration.temperature()}

    def _should_stop_early(self) -> bool:
        return should_stop_early(self.history, self.section.select, self.section.early_stopping_patience)

    def _chosen(self) -> dict[str, Any]:
        line = chosen_epoch(self.history, self.section.select) or chosen_epoch(self.history, "last")
        assert line is not None
        return line

    def _write(self, position: TrainingPosition, sums: dict[str, torch.Tensor] | None, *, with_retry: bool) -> None:
        """Write a checkpoint. If that fails, retry (`with_retry`), or continue training without this checkpoint."""
        best = chosen_epoch(self.history, self.section.select)
        checkpoint = Checkpoint.of(
            self.learner,
            epoch=position.epoch,
            step=position.step,
            sums=sums,
            history=self.history,
            identity=self.settings.identity,
        )
        write = partial(
            self.checkpoints.write,
            checkpoint,
            best=None if best is None else TrainingPosition(best["epoch"], 0),
            before_each=self.settings.lease.check,
        )
        if with_retry:
            call_with_retry(self.checkpoints.url, write, report=self.callback.warn)
            return
        try:
            write()
        except LeaseLostError:
            raise
        except Exception as error:  # each file system raises its own errors when a server does not respond
            url = storage.redact_url(self.checkpoints.checkpoint_url(position))
            self.callback.warn(f"{url}: cannot be written ({type(error).__name__}: {error}); training continues without it")

    def _write_metrics(self) -> None:
        """Write the lines of epochs and of steps, after those of the other seeds."""
        workspace = self.settings.workspace
        epochs = epoch_lines(self.history)
        steps = [line for line in self.history if "train_loss" not in line]
        for url, lines in ((workspace.metrics, epochs), (workspace.step_metrics, steps)):
            write = partial(_write_lines, url, self.seed, lines, self.settings.lease)
            call_with_retry(url, write, report=self.callback.warn)

    def _finish(self) -> None:
        """Validate the selected epoch's weights again, calibrated; write the result, which marks the seed complete."""
        line = self._chosen()
        position = TrainingPosition(line["epoch"], 0)
        barrier()  # barrier: worker 0 may still be writing the checkpoint that all workers read
        checkpoint = read_chosen(self.checkpoints, position, self.worker, report=self.callback.warn)
        check_equal(checkpoint.digest(), self.checkpoints, position)
        result: dict[str, Any] = {"seed": self.seed, "chosen": line, "epochs": len(epoch_lines(self.history))}
        if self.validation.samples():
            network = self.learner.eval_network
            network.load_state_dict(checkpoint.eval_weights)
            temperature = float(line.get("temperature", 1.0))
            classes, device = self.settings.spec.classes, self.worker.device
            raw = Reliability(classes, device)
            calibrated = {
                choice: Reliability(
                    classes,
                    device,
                    temperature=temperature,
                    correction=torch.tensor(self.settings.priors.correction(choice)),
                )
                for choice in CHOICES
            }
            validate(
                network,
                self.validation.in_order_for(self.worker.device, batch=VALIDATION_BATCH),
                beta=self.learner.beta,
                precision=self.learner.precision,
                observers=[raw, *calibrated.values()],
            )
            counts = self.validation.counts().tolist()
            result["warnings"] = training_warnings(self.history, self.section.select, counts)
            result["uncalibrated"] = raw.figures()
            result["calibrated"] = {choice: reliability.figures() for choice, reliability in calibrated.items()}
        if self.worker.rank == 0:
            result["hardware"] = hardware()  # the worker's hardware: the driver may have no GPU
            url = self.settings.workspace.result(self.seed)

            def write() -> None:
                self.settings.lease.check()
                storage.write_json(url, result)

            call_with_retry(url, write, report=self.callback.warn)

    def _samples_of_earlier_seeds(self) -> int:
        """The number of samples of the preceding seeds, as counted by the progress bar."""
        return self.section.every_seed.index(self.seed) * self.plan.total * self.section.batch_size

    def _report_samples(self, epoch: int, samples: int) -> None:
        if self.worker.rank == 0:
            done = self.plan.before(epoch) * self.section.batch_size
            self.callback.seen(self.before + done + samples, self.clock.waiting)


def _noise_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of a step's random numbers."""
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])


def _named(subset: str, figures: EpochMetrics) -> dict[str, float]:
    confusion = figures.confusion.figures()
    return {
        f"{subset}_loss": figures.loss,
        f"{subset}_cross_entropy": figures.cross_entropy,
        f"{subset}_rate": figures.rate,
        **{f"{subset}_{name}": confusion[name] for name in ("overall_accuracy", "average_accuracy", "macro_f1", "kappa")},
    }


def _format_line(line: dict[str, Any], section: TrainSection, epochs: int) -> str:
    """A line about an epoch for a person."""
    prefix = f"seed {line['seed']}, " if len(section.every_seed) > 1 else ""
    subset = "validation" if "validation_loss" in line else "train"
    return (
        f"{prefix}epoch {line['epoch']} of {epochs}: {subset} overall accuracy "
        f"{line[f'{subset}_overall_accuracy']:.3f}, average accuracy {line[f'{subset}_average_accuracy']:.3f}"
    )


def _write_lines(url: str, seed: int, lines: list[dict[str, Any]], lease: Lease) -> None:
    """Write the lines of one seed to a metrics file, after those of the other seeds."""
    text = "".join(json.dumps(storage.without_nan(line)) + "\n" for line in [*_other_seeds(url, seed), *lines])
    lease.check()
    storage.write_bytes(url, text.encode())


def _other_seeds(url: str, seed: int) -> list[dict[str, Any]]:
    """The lines of a metrics file that belong to other seeds."""
    try:
        lines = [json.loads(line) for line in storage.read_bytes(url).splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in lines if line["seed"] != seed]
