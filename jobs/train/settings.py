"""Settings of the training loop, derived from the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from jobs.config.config import Config
from jobs.config.train import TrainSection
from jobs.workflow.workspace import Workspace
from mibf.class_priors import Priors, support
from mibf.network.spec import BETWEEN, NARROW, PARTS, WIDE, NetworkSpec, SourceSpec
from mibf.training.loss import class_weights
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.sampling.epoch_plan import Frequencies, expected_draws
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore


class ProgressCallback(Protocol):
    """Callback to which a worker reports its progress."""

    def seen(self, samples: int, waiting: float) -> None:
        """Report the training samples processed so far, and the share of the time spent waiting for data."""

    def loss(self, value: float) -> None:
        """Report the training loss of the epoch so far."""

    def epoch(self, line: str) -> None:
        """Report a line about a completed epoch."""

    def warn(self, line: str) -> None:
        """Report a problem after which training continues."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run, the same for all workers and seeds."""

    workspace: Workspace
    scenes: tuple[str, ...]
    spec: NetworkSpec
    beta: float
    frequencies: Frequencies
    epoch_fraction: float
    samples: int  #: training samples
    class_weights: tuple[float, ...] | None
    priors: Priors
    train: TrainSection
    threads: int
    identity: dict[str, Any]
    lease: Lease  #: checked before each step that cannot be undone; as `Lease.for_workers`
    name: str
    parameters: dict[str, Any]
    mlflow: str | None = None

    def folder(self, seed: int) -> str:
        """The folder for the tracking of a seed: the run's folder, or one folder per seed where there are several."""
        run = self.workspace.run_folder
        return run if len(self.train.every_seed) == 1 else storage.join(run, f"seed-{seed}")


@dataclass(frozen=True)
class WorkerContext:
    """The rank of this worker, the number of workers, and the device it computes on."""

    rank: int
    workers: int
    device: torch.device

    def part(self, batch: int) -> int:
        """The number of samples of a step's batch that this worker processes; over all workers they add up to the batch."""
        return batch * (self.rank + 1) // self.workers - batch * self.rank // self.workers


def network_spec(config: Config, store: PatchStore) -> NetworkSpec:
    """Specify the network for a store's sources: the first source gets the paper's wide branch, the others narrow ones.

    A network of one source has no parts that relate sources to each other.
    """
    sources = []
    for position, source in enumerate(store.sources):
        if config.model.sources is not None and source.name not in config.model.sources:
            continue
        declared = config.scenes[0].sources[source.name].branch
        wide = position == 0 if declared is None else declared == "wide"
        sources.append(SourceSpec(source.name, source.bands, WIDE if wide else NARROW, source.scale))
    between = BETWEEN if len(sources) == 1 else ()  # a single source is related to none
    return NetworkSpec(
        tuple(sources),
        classes=len(store.classes),
        patch=config.model.patch,
        without=tuple(part for part in PARTS if part in (*config.model.without, *between)),
        centre=config.model.centre,
    )


def make_settings(
    config: Config,
    workspace: Workspace,
    spec: NetworkSpec,
    training: Sampler,
    *,
    threads: int,
    identity: dict[str, Any],
    lease: Lease,
    fingerprint: str,
    mlflow: str | None = None,
) -> Settings:
    """Build the settings of the training loop from a configuration and its training samples."""
    counts, drawn = _shares(config, training)
    weights = _weights(config, drawn)
    return Settings(
        workspace=workspace,
        scenes=tuple(scene.name for scene in config.scenes),
        spec=spec,
        beta=config.model.beta,
        frequencies=config.sampling.frequencies,
        epoch_fraction=config.sampling.epoch_fraction,
        samples=training.samples(),
        class_weights=None if config.train.class_weights is None else weights,
        priors=Priors.of(
            counts,
            (share * weight for share, weight in zip(drawn, weights, strict=True)),
            support=support(counts, replace(training, subset="validation").counts()),
        ),
        train=config.train,
        threads=threads,
        identity=identity,
        lease=lease,
        name=f"{config.name} {config.run}",
        parameters={"fingerprint": fingerprint, **config.model_dump(mode="json")},
        mlflow=mlflow,
    )


def _shares(config: Config, training: Sampler) -> tuple[list[int], list[float]]:
    """The number of training samples per class, and the share of each class among the sampled ones."""
    counts = training.counts()
    drawn = counts * expected_draws(counts, config.sampling.frequencies)
    return counts.tolist(), (drawn / drawn.sum()).tolist()


def _weights(config: Config, drawn: list[float]) -> tuple[float, ...]:
    """The weight of each class in the loss."""
    how = config.train.class_weights
    if isinstance(how, dict):
        positions = {c.name: position for position, c in enumerate(config.classes)}
        return class_weights(drawn, {positions[name]: weight for name, weight in how.items()})
    return class_weights(drawn, how)
