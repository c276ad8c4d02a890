"""Build the network, optimizer and averaged weights of a seed before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from jobs.config.train import TrainSection
from jobs.train.settings import Settings, WorkerContext
from mibf.device import to_device
from mibf.network.mibfnet import MIBFNet
from mibf.normalization import Scaling
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch import TrainState
from mibf.training.optimizer import make_optimizer
from mibf.training.perturbation import Perturbation
from mibf.training.step_graph import warn
from mibf.training.sync_batchnorm import synchronize
from pipeline.stac.periods import band_periods
from pipeline.store.template import StoredSource


def make_perturbation(
    section: TrainSection, sources: Sequence[StoredSource], scaling: Scaling, device: torch.device
) -> Perturbation | None:
    """Build the random changes of batches whose sources are those of `scaling`, in its order; None if all are off.

    Periods follow from the band names of `sources`, which include them.
    """
    if not (section.jitter or section.band_dropout or section.mixup or section.period_dropout):
        return None
    filled = tuple(torch.from_numpy(bands.filled).to(device) for bands in scaling.values())
    names = {source.name: band_periods(source.band_names) for source in sources}
    positions = [{period: at for at, period in enumerate(dict.fromkeys(names[name]))} for name in scaling]
    return Perturbation(
        filled,
        jitter=section.jitter,
        band_dropout=section.band_dropout,
        mixup=section.mixup,
        period_dropout=section.period_dropout,
        periods=tuple(tuple(own[period] for period in names[name]) for name, own in zip(scaling, positions, strict=True)),
    )


def no_memory_message(error: BaseException) -> str:
    """Say that a step of training does not fit into memory, and what would."""
    return (
        f"a step does not fit into memory ({(str(error).splitlines() or [type(error).__name__])[0]}). Let fewer workers "
        "share a GPU (resources.workers_per_gpu) or a machine; or raise train.accumulate_steps, lower train.batch_size or "
        "use train.precision bf16, with which training starts again: run the command with `--restart` or another `run`."
    )


def make_train_state(
    settings: Settings,
    worker: WorkerContext,
    *,
    seed: int,
    steps: int,
    perturbation: Perturbation | None = None,
    report: Callable[[str], None] = warn,
) -> TrainState:
    """Build a seed's network and optimiser for `steps` steps, in the same initial state on every worker."""
    section = settings.train
    torch.backends.cudnn.deterministic = True  # the same seed gives the same result
    torch.manual_seed(seed)  # the same initial weights on every worker
    network = to_device(MIBFNet(settings.spec, dropout=section.dropout), worker.device)
    average = None
    if section.ema is not None:
        average = ExponentialMovingAverage(network, decay=max(0.0, 1 - 1 / max(1.0, section.ema * steps)))
    if section.sync_batch_norm:
        synchronize(network)
    if section.compile:
        network.compile()
    optimizer, schedule = make_optimizer(
        network.parameters(),
        optimizer=section.optimizer,
        learning_rate=section.peak_learning_rate,
        weight_decay=section.weight_decay,
        steps=steps,
        warmup=round(section.warmup * steps),
    )
    weights = settings.class_weights
    return TrainState(
        network,
        optimizer,
        schedule,
        beta=settings.beta,
        precision=section.precision,
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=worker.device),
        average=average,
        clip_grad_norm=section.clip_grad_norm,
        label_smoothing=section.label_smoothing,
        perturbation=perturbation,
        pieces=section.accumulate_steps,
        capture=None if section.compile else "auto",
        report=report,
    )
