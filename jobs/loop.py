"""The training loop that every worker runs: under Ray Train, or alone in the command's own process. Knows nothing of Ray.

A training of one seed is a sequence of steps; whoever begins it finds out from its newest checkpoint where it stands.
Worker 0 alone writes: checkpoints after each epoch and every some steps, a line of metrics for each epoch, and when all
is done the result, whose presence says so. The figures told are of all workers.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jobs.config import Select, TrainSection
from jobs.environment import hardware
from jobs.tracking import Tracker
from jobs.workspace import Workspace
from mibf.average import Average
from mibf.batchnorm import synchronised
from mibf.calibration import Reliability, TemperatureFit
from mibf.checkpoint import Checkpoint
from mibf.distributed import meet
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.optim import make_optimiser
from mibf.precision import check_precision, place
from mibf.priors import CHOICES, Priors
from mibf.scaling import Scaling, scaling_from_json
from mibf.spec import NetworkSpec
from mibf.training import Figures, Learner, Step, Sums, train_epoch, validate
from pipeline import storage
from pipeline.batches import Position, Sampler
from pipeline.checkpoints import Checkpoints
from pipeline.order import Frequencies
from pipeline.patience import patiently
from pipeline.store import PatchStore

#: Samples in a batch of validation.
VALIDATION_BATCH = 1024
#: What of a line of metrics says where it belongs, rather than how training goes.
_PLACES = ("seed", "epoch", "step")


class Listener(Protocol):
    """Whom a worker tells how far it is."""

    def seen(self, samples: int, waiting: float) -> None:
        """All samples that training and validation have seen so far, and the share of the time that waited for data."""

    def loss(self, value: float) -> None:
        """The training loss of the epoch so far."""

    def epoch(self, line: str) -> None:
        """A line on an epoch that has ended."""

    def warn(self, line: str) -> None:
        """A line on what did not go as it should, though training goes on."""


@dataclass(frozen=True)
class Settings:
    """What a training is, the same for all workers and all seeds."""

    workspace: Workspace
    scenes: tuple[str, ...]
    spec: NetworkSpec
    beta: float
    frequencies: Frequencies
    rate: float
    class_weights: tuple[float, ...] | None
    priors: Priors
    train: TrainSection
    threads: int
    identity: dict[str, Any]
    name: str
    parameters: dict[str, Any]
    mlflow: str | None = None

    def folder(self, seed: int) -> str:
        """Where the tracking of a seed goes: the run's folder, or one for each of several seeds."""
        run = self.workspace.run_folder
        return run if len(self.train.every_seed) == 1 else storage.join(run, f"seed-{seed}")


@dataclass(frozen=True)
class Place:
    """Which worker this is, and what it computes on."""

    rank: int
    workers: int
    device: torch.device

    def part(self, batch: int) -> int:
        """The worker's own samples of a step's batch: all workers' add up to it."""
        return batch * (self.rank + 1) // self.workers - batch * self.rank // self.workers


def epoch_lines(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all lines of metrics those on whole epochs."""
    return [line for line in history if "train_loss" in line]


def chosen(history: list[dict[str, Any]], select: Select) -> dict[str, Any] | None:
    """The line of the epoch that becomes the model: the first of the best on validation, or with "last" the last one.

    None where no epoch was validated.
    """
    epochs = epoch_lines(history)
    if select == "last":
        return epochs[-1] if epochs else None
    sign = -1.0 if select == "loss" else 1.0
    figure = f"validation_{select}"
    judged = [line for line in epochs if line.get(figure) is not None and np.isfinite(line[figure])]
    return max(judged, key=lambda line: sign * line[figure]) if judged else None


def is_patience_over(history: list[dict[str, Any]], select: Select, patience: int | None) -> bool:
    """Whether so many epochs went by without a better one, as the last validation found: one in between says nothing."""
    best = chosen(history, select)
    if patience is None or best is None:
        return False
    last = next(line for line in reversed(epoch_lines(history)) if "validation_loss" in line)
    return bool(last["epoch"] - best["epoch"] >= patience)


def run(settings: Settings, place_: Place, listener: Listener) -> None:
    """Train every seed that is not done, one after the other."""
    torch.set_num_threads(settings.threads)
    check_precision(place_.device, settings.train.precision)
    for seed in settings.train.every_seed:
        result = settings.workspace.result(seed)
        if not patiently(result, partial(storage.exists, result), tell=listener.warn):
            _Training(settings, seed, place_, listener).run()


class _Training:
    """The training of one seed on one worker."""

    def __init__(self, settings: Settings, seed: int, place_: Place, listener: Listener) -> None:
        self.settings, self.seed, self.place, self.listener = settings, seed, place_, listener
        self.wanted = wanted = settings.train
        self.checkpoints = Checkpoints(settings.workspace.checkpoints(seed))
        stores, scaling = patiently(settings.workspace.url, self._opened, tell=listener.warn)
        scaling = {source.name: scaling[source.name] for source in settings.spec.sources}
        of_subset = partial(
            Sampler,
            stores,
            scaling,
            settings.spec.patch,
            rank=place_.rank,
            workers=place_.workers,
            tell=listener.warn,
        )
        self.training = of_subset(
            "train", frequencies=settings.frequencies, augment=wanted.augment, source_dropout=wanted.source_dropout
        )
        self.validation = of_subset("validation")
        self.steps = steps_of(wanted, settings.rate, self.training.samples())
        self.learner = learner_of(settings, place_, seed=seed, steps=self.steps)
        self.history: list[dict[str, Any]] = []
        self.clock = _Clock()
        self.before = self._seen_of_other_seeds()

    def run(self) -> None:
        """Go on from the newest checkpoint to the end."""
        begun, sums = self._restored()
        with self._tracker(begun) as self.tracker:
            self._tell_seen(begun.epoch, begun.step * self.wanted.batch)
            for epoch in range(begun.epoch, self.wanted.epochs):
                if self._is_patience_over():
                    break
                first = epoch == begun.epoch
                self._epoch(epoch, start=begun.step if first else 0, sums=sums if first else None)
            self._finish()

    def _tracker(self, begun: Position) -> Tracker:
        """Where the figures go beside metrics.jsonl: one of worker 0's, and one that goes nowhere of the others'."""
        if self.place.rank > 0:
            return Tracker()
        settings = self.settings
        return Tracker.begin(
            settings.folder(self.seed),
            name=settings.name if len(self.wanted.every_seed) == 1 else f"{settings.name} seed {self.seed}",
            parameters=settings.parameters,
            mlflow=settings.mlflow,
            resumed_at=begun.epoch * self.steps + begun.step,
            tell=self.listener.warn,
        )

    def _opened(self) -> tuple[list[PatchStore], Scaling]:
        """The stores, which do not tell of test samples, and the scaling."""
        workspace = self.settings.workspace
        stores = [PatchStore(workspace.store(name), without=("test",)) for name in self.settings.scenes]
        return stores, scaling_from_json(storage.read_json(workspace.scaling))

    def _restored(self) -> tuple[Position, Sums | None]:
        """Where training stands, with the epoch's sums so far; the state is put back."""
        tell = self.listener.warn if self.place.rank == 0 else _say_nothing
        checkpoint = patiently(self.checkpoints.url, lambda: self.checkpoints.newest(tell), tell=tell)
        if checkpoint is None:
            return Position(0, 0), None
        if checkpoint.identity != self.settings.identity:
            raise InputError(
                f"{self.checkpoints.url}: the checkpoints are of another training; train anew (`mibf train --anew`)."
            )
        checkpoint.restore(self.learner)
        self.history = list(checkpoint.history)
        sums = None
        if checkpoint.sums is not None:
            sums = Sums(self.settings.spec.classes, self.place.device)
            if self.place.rank == 0:
                sums.load(checkpoint.sums)
        return Position(checkpoint.epoch, checkpoint.step), sums

    def _epoch(self, epoch: int, *, start: int, sums: Sums | None) -> None:
        wanted, learner = self.wanted, self.learner
        self.clock.begin()
        trained = train_epoch(
            learner,
            self.training.shuffled(
                batch=self.place.part(wanted.batch), seed=self.seed, epoch=epoch, start=start, steps=self.steps
            ),
            samples=wanted.batch,
            start=start,
            sums=sums,
            seed=lambda step: _drawn_from(self.seed, epoch, step, self.place.rank),
            after_step=lambda step: self._after_step(epoch, step),
        )
        between = time.monotonic()
        line: dict[str, Any] = {"seed": self.seed, "epoch": epoch + 1, "step": (epoch + 1) * self.steps}
        line |= _named("train", trained)
        if self._is_validated(epoch):
            line |= self._validated()
        ended = time.monotonic()
        line |= {
            "train_seconds": round(between - self.clock.begun, 2),
            "validation_seconds": round(ended - between, 2),
            "samples_per_second": round(self.clock.rate, 1),
            "waiting": round(self.clock.waiting, 4),
        }
        self.history.append(line)
        if self.place.rank == 0:
            self._write(Position(epoch + 1, 0), None, patient=True)
            self._write_metrics()
            self.tracker.epoch(line["step"], {key: value for key, value in line.items() if key not in _PLACES})
            self._tell_seen(epoch, self.steps * wanted.batch)
            self.listener.loss(line["train_loss"])
            self.listener.epoch(_told(line, wanted))

    def _after_step(self, epoch: int, step: Step) -> None:
        wanted, clock = self.wanted, self.clock
        done = epoch * self.steps + step.number
        clock.add(step.samples * self.place.workers, step.waited)
        if clock.is_due():
            self._tell_seen(epoch, step.number * wanted.batch)
        if done % wanted.log_steps == 0:
            loss, cross_entropy, rate, samples = step.sums.told()
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
            self.tracker.step(done, {key: value for key, value in line.items() if key not in _PLACES})
            if self.place.rank == 0:
                self.listener.loss(loss)
        if done % wanted.checkpoint_steps == 0 and step.number < self.steps:
            step.check()  # what is not finite is in no checkpoint, however late the device is asked otherwise
            self.learner.agree()
            sums = step.sums.state()
            if self.place.rank == 0:
                self._write(Position(epoch, step.number), sums, patient=False)
                self.tracker.flush()

    def _is_validated(self, epoch: int) -> bool:
        if not self.validation.samples():
            return False
        return (epoch + 1) % self.wanted.validate_every == 0 or epoch + 1 == self.wanted.epochs

    def _validated(self) -> dict[str, Any]:
        """The figures of the network as it is on the validation subset."""
        learner = self.learner
        calibration = TemperatureFit(self.place.device)
        checked = validate(
            learner.judged,
            self.validation.in_order(batch=VALIDATION_BATCH),
            beta=learner.beta,
            precision=learner.precision,
            judges=[calibration],
        )
        return _named("validation", checked) | {"temperature": calibration.temperature()}

    def _is_patience_over(self) -> bool:
        return is_patience_over(self.history, self.wanted.select, self.wanted.patience)

    def _chosen(self) -> dict[str, Any]:
        line = chosen(self.history, self.wanted.select) or chosen(self.history, "last")
        assert line is not None
        return line

    def _write(self, position: Position, sums: dict[str, torch.Tensor] | None, *, patient: bool) -> None:
        """Write a checkpoint. Within an epoch one that cannot be written is done without: the next will be."""
        best = chosen(self.history, self.wanted.select)
        checkpoint = Checkpoint.of(
            self.learner,
            epoch=position.epoch,
            step=position.step,
            sums=sums,
            history=self.history,
            identity=self.settings.identity,
        )
        write = partial(self.checkpoints.write, checkpoint, best=None if best is None else Position(best["epoch"], 0))
        if patient:
            patiently(self.checkpoints.url, write, tell=self.listener.warn)
            return
        try:
            write()
        except Exception as error:  # each file system has its own for a server that does not answer
            place_ = storage.shown(self.checkpoints.place(position))
            self.listener.warn(f"{place_}: cannot be written ({type(error).__name__}: {error}); training goes on without it")

    def _write_metrics(self) -> None:
        """Write the lines on epochs and steps, after those of the seeds before."""
        workspace = self.settings.workspace
        of_epochs = epoch_lines(self.history)
        of_steps = [line for line in self.history if "train_loss" not in line]
        for url, lines in ((workspace.metrics, of_epochs), (workspace.step_metrics, of_steps)):
            patiently(url, partial(_write_lines, url, self.seed, lines), tell=self.listener.warn)

    def _finish(self) -> None:
        """Judge the chosen epoch's weights once more, calibrated; the result says that the training is done."""
        line = self._chosen()
        position = Position(line["epoch"], 0)
        meet()  # worker 0 may still be writing the checkpoint that all read
        checkpoint = patiently(self.checkpoints.url, lambda: self.checkpoints.read(position), tell=self.listener.warn)
        result: dict[str, Any] = {"seed": self.seed, "chosen": line, "epochs": len(epoch_lines(self.history))}
        if self.validation.samples():
            network = self.learner.judged
            network.load_state_dict(checkpoint.judged)
            temperature = float(line.get("temperature", 1.0))
            classes, device = self.settings.spec.classes, self.place.device
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
                self.validation.in_order(batch=VALIDATION_BATCH),
                beta=self.learner.beta,
                precision=self.learner.precision,
                judges=[raw, *calibrated.values()],
            )
            result["uncalibrated"] = raw.figures()
            result["calibrated"] = {choice: judge.figures() for choice, judge in calibrated.items()}
        if self.place.rank == 0:
            result["hardware"] = hardware()  # the worker's own: the driver may have no GPU
            url = self.settings.workspace.result(self.seed)
            patiently(url, lambda: storage.write_json(url, result), tell=self.listener.warn)

    def _seen_of_other_seeds(self) -> int:
        """Samples that the seeds before have seen, as the bar counts them."""
        return self.wanted.every_seed.index(self.seed) * self.wanted.epochs * self.steps * self.wanted.batch

    def _tell_seen(self, epoch: int, samples: int) -> None:
        if self.place.rank == 0:
            self.listener.seen(self.before + epoch * self.steps * self.wanted.batch + samples, self.clock.waiting)


def learner_of(settings: Settings, place_: Place, *, seed: int, steps: int) -> Learner:
    """A seed's network with its optimiser before the first of `steps` steps an epoch, the same on every worker."""
    wanted = settings.train
    torch.backends.cudnn.deterministic = True  # one seed, one result
    torch.manual_seed(seed)  # the same first weights on every worker
    network = place(MIBFNet(settings.spec), place_.device)
    total = steps * wanted.epochs
    average = None
    if wanted.average is not None:
        average = Average(network, decay=max(0.0, 1 - 1 / max(1.0, wanted.average * total)))
    if wanted.sync_batch_norm:
        synchronised(network)
    if wanted.compile:
        network.compile()
    model: nn.Module = network
    if place_.workers > 1:
        # Batch norm's running statistics are averaged once an epoch, not sent by worker 0 at every step.
        model = DistributedDataParallel(
            network,
            device_ids=[place_.device] if place_.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    optimiser, schedule = make_optimiser(
        model.parameters(),
        optimiser=wanted.optimiser,
        rate=wanted.rate,
        weight_decay=wanted.weight_decay,
        steps=total,
        warmup=round(wanted.warmup * total),
    )
    weights = settings.class_weights
    return Learner(
        model,
        optimiser,
        schedule,
        beta=settings.beta,
        precision=wanted.precision,
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=place_.device),
        average=average,
        clip=wanted.clip,
        pieces=wanted.accumulate,
    )


def steps_of(train: TrainSection, rate: float, samples: int) -> int:
    """Steps of an epoch that draws a share of the training samples."""
    return max(1, int(rate * samples) // train.batch)


class _Clock:
    """How fast an epoch goes, and how much of it is waiting for data."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin an epoch."""
        self.begun = self.told = self.now = time.monotonic()
        self.samples, self.waited = 0, 0.0

    def add(self, samples: int, waited: float) -> None:
        """Take a step in."""
        self.now = time.monotonic()
        self.samples += samples
        self.waited += waited

    def is_due(self) -> bool:
        """Whether a second has passed since this was last so."""
        if self.now - self.told < 1:
            return False
        self.told = self.now
        return True

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / max(self.now - self.begun, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of the time that was spent waiting for batches."""
        return self.waited / max(self.now - self.begun, 1e-9)


def _drawn_from(seed: int, epoch: int, step: int, rank: int) -> int:
    """The seed of a step's draws."""
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])


def _say_nothing(line: str) -> None:
    pass


def _named(subset: str, figures: Figures) -> dict[str, float]:
    confusion = figures.confusion.figures()
    return {
        f"{subset}_loss": figures.loss,
        f"{subset}_cross_entropy": figures.cross_entropy,
        f"{subset}_rate": figures.rate,
        **{f"{subset}_{name}": confusion[name] for name in ("overall_accuracy", "average_accuracy", "macro_f1", "kappa")},
    }


def _told(line: dict[str, Any], wanted: TrainSection) -> str:
    """A line on an epoch for people."""
    of_seed = f"seed {line['seed']}, " if len(wanted.every_seed) > 1 else ""
    subset = "validation" if "validation_loss" in line else "train"
    return (
        f"{of_seed}epoch {line['epoch']} of {wanted.epochs}: {subset} overall accuracy "
        f"{line[f'{subset}_overall_accuracy']:.3f}, average accuracy {line[f'{subset}_average_accuracy']:.3f}"
    )


def _write_lines(url: str, seed: int, lines: list[dict[str, Any]]) -> None:
    """Write the lines of one seed to a file of metrics, after those of the seeds before."""
    text = "".join(json.dumps(storage.without_nan(line)) + "\n" for line in [*_other_seeds(url, seed), *lines])
    storage.write_bytes(url, text.encode())


def _other_seeds(url: str, seed: int) -> list[dict[str, Any]]:
    """The lines of a file of metrics that are of other seeds."""
    try:
        lines = [json.loads(line) for line in storage.read_bytes(url).splitlines()]
    except FileNotFoundError:
        return []
    return [line for line in lines if line["seed"] != seed]
