"""Classify the samples of a subset with a model, once, for every setting of the class priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.bundle.bundle import Bundle
from mibf.class_priors import CHOICES, PriorSetting
from mibf.device import best_device, to_device
from mibf.ensemble import mixture_log_probabilities
from mibf.metrics.calibration import Reliability
from mibf.metrics.prediction_sets import SetChoice
from mibf.training.epoch import ValidationObserver, validate
from pipeline.sampling.drawn_pixels import every_pixel
from pipeline.sampling.sample_blocks import Block, BlockCounter, BlockSums, add_blocks, sample_blocks
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.sampler import Sampler

#: Samples that a single network classifies at a time.
BATCH = 1024


#: Samples of a part, a multiple of `BATCH`: what a worker classifies at a time.
PART = 64 * BATCH


class Predictions(NamedTuple):
    """The reliability of one model on a subset's samples, uncalibrated and calibrated for each setting of the priors."""

    uncalibrated: Reliability
    by_priors: dict[PriorSetting, Reliability]
    blocks: dict[Block, BlockSums]  #: counts by block; empty unless they were requested


class Counted(NamedTuple):
    """What is counted by spatial block: predictions with this setting of the priors, in blocks of this side in pixels."""

    priors: PriorSetting
    side: int


class Part(NamedTuple):
    """A part of a subset's samples: numbers [start, stop) of samples or, of a model with several members, of windows."""

    start: int
    stop: int
    samples: int


class _PartReliability(Reliability):
    """The reliability on a part, with the sums of each batch: their order of addition decides the last digits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.steps: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.sums.zero_()
        super().add(logits, labels)
        self.steps.append(self.sums.clone())


class PartSums(NamedTuple):
    """What a `Reliability` adds up, of one part: counts, bins, sets, and the sums of each batch (batch, 2)."""

    counts: NDArray[np.int64]
    bins: NDArray[np.float64]
    sets: NDArray[np.int64]
    steps: NDArray[np.float64]


class PartResult(NamedTuple):
    """The sums of one part, uncalibrated, then for each setting of the priors; and its counts by block."""

    sums: list[PartSums]
    blocks: dict[Block, BlockSums]


def parts(bundle: Bundle, sampler: Sampler) -> list[Part]:
    """Cut the samples of a subset into parts that `predict_part` classifies as `predict` would, batch by batch."""
    totals = sampler.window_totals()
    ends = totals.cumsum(dtype=np.int64)
    if bundle.single is not None:
        last = int(ends[-1]) if len(ends) else 0
        return [Part(start, min(start + PART, last), min(PART, last - start)) for start in range(0, last, PART)]
    cuts = [0, *(np.flatnonzero(np.diff(ends // PART)) + 1).tolist(), len(ends)]
    return [Part(a, b, int(totals[a:b].sum())) for a, b in pairwise(cuts) if a < b]


def predict(
    bundle: Bundle,
    sampler: Sampler,
    beta: float,
    advance: Callable[[int], None],
    *,
    part: Part | None = None,
    device: torch.device | None = None,
    sets: SetChoice | None = None,
    reliability: type[Reliability] = Reliability,
    counted: Counted | None = None,
) -> Predictions:
    """Classify the samples of a subset once, for every setting of the class priors that the model supports.

    Args:
        bundle: the model.
        sampler: of the subset, for all scenes and one worker.
        beta: weight of the KL term in the loss, which is not part of the result.
        advance: called with the number of samples after each batch.
        part: of the samples; None for all.
        device: that computes networks; None for the best one here.
        sets: which prediction sets are counted, if the model has thresholds of them; default none.
        reliability: adds up the metrics.
        counted: what is counted by block; None for nothing.
    """
    start, stop = (0, None) if part is None else (part.start, part.stop)
    single = bundle.single
    device = device or best_device()
    model = SampleModel(bundle, sampler.report, device) if single is None else None
    network = None if single is None else to_device(bundle.network(), device)
    corrections = {c: None if c == "trained" else bundle.correction(c) for c in known_priors(bundle)}
    fitted = None if sets is None else bundle.prediction_sets
    thresholds = {c: None if fitted is None or sets is None else fitted.thresholds(c, sets) for c in corrections}
    make = partial(reliability, bundle.spec.classes, device)
    if network is not None and single is not None:
        by_priors = {
            c: make(temperature=single.temperature, correction=own, thresholds=thresholds[c])
            for c, own in corrections.items()
        }
        predictions = Predictions(make(), by_priors, {})
        observers: list[ValidationObserver] = [predictions.uncalibrated, *by_priors.values()]
        observers += _counters(predictions, sampler, counted, first=start)
        validate(
            network,
            sampler.in_order_for(device, batch=BATCH, start=start, stop=stop),
            beta=beta,
            precision="float32",
            observers=observers,
            after_step=advance,
        )
        return predictions
    assert model is not None
    predictions = Predictions(make(), {c: make(thresholds=thresholds[c]) for c in corrections}, {})
    first = int(sampler.window_totals()[:start].sum(dtype=np.int64))
    counters = {} if counted is None else {counted.priors: _counters(predictions, sampler, counted, first=first)}
    for pixels in every_pixel(sampler.stores, sampler.subset, start=start, stop=stop, report=sampler.report):
        for logits, labels in model.batches(sampler.stores[pixels.store], pixels):
            _add_mixture(predictions, bundle, corrections, logits, labels, counters)
            advance(len(labels))
    return predictions


def _add_mixture(
    predictions: Predictions,
    bundle: Bundle,
    corrections: Mapping[PriorSetting, Tensor | None],
    logits: Sequence[Tensor],
    labels: Tensor,
    counters: Mapping[PriorSetting, Sequence[BlockCounter]],
) -> None:
    """Add a batch that several members have classified: the log-probabilities of a mixture are logits of temperature 1."""
    shares = [member.share for member in bundle.members]
    temperatures, ones = [member.temperature for member in bundle.members], [1.0] * len(shares)
    predictions.uncalibrated.add(mixture_log_probabilities(logits, ones, shares), labels)
    for choice, correction in corrections.items():
        own = mixture_log_probabilities(logits, temperatures, shares, correction)
        predictions.by_priors[choice].add(own, labels)
        for counter in counters.get(choice, ()):
            counter.add(own, labels)


def _counters(predictions: Predictions, sampler: Sampler, counted: Counted | None, *, first: int) -> list[BlockCounter]:
    """The counter of blocks, if one was requested, for the samples from number `first` on."""
    if counted is None:
        return []
    blocks = sample_blocks(sampler, counted.side, first=first)
    return [BlockCounter(predictions.by_priors[counted.priors], blocks, predictions.blocks)]


def predict_part(
    bundle: Bundle,
    sampler: Sampler,
    beta: float,
    part: Part,
    counted: Counted | None = None,
    *,
    sets: SetChoice | None = None,
    device: torch.device | None = None,
) -> PartResult:
    """Classify one part on a device, by default the best one here."""
    found = predict(
        bundle,
        sampler,
        beta,
        lambda _: None,
        part=part,
        device=device,
        sets=sets,
        reliability=_PartReliability,
        counted=counted,
    )
    sums = []
    for one in (found.uncalibrated, *found.by_priors.values()):
        assert isinstance(one, _PartReliability)
        steps = torch.stack(one.steps).cpu().numpy() if one.steps else np.zeros((0, 2))
        sums.append(PartSums(one.counts.cpu().numpy(), one.bins.cpu().numpy(), one.sets.cpu().numpy(), steps))
    return PartResult(sums, found.blocks)


def joined(bundle: Bundle, found: Sequence[PartResult]) -> Predictions:
    """Add the sums of all parts, in their order: the result of `predict`, to the last bit.

    Counts are integers. The sums of each batch are added one after the other, as `predict` adds them. Confidences are
    float32, so that their sums in float64 are exact, in any order, up to 2^25 samples of a bin with up to 16 classes.
    """
    choices = known_priors(bundle)
    total = [Reliability(bundle.spec.classes, torch.device("cpu")) for _ in range(1 + len(choices))]
    blocks: dict[Block, BlockSums] = {}
    for result in found:
        add_blocks(blocks, result.blocks)
        for one, part in zip(total, result.sums, strict=True):
            one.counts += torch.tensor(part.counts)
            one.bins += torch.tensor(part.bins)
            one.sets += torch.tensor(part.sets)
            one.sums = torch.from_numpy(np.add.accumulate(np.concatenate([one.sums.numpy()[None], part.steps]))[-1].copy())
    return Predictions(total[0], dict(zip(choices, total[1:], strict=True)), blocks)


def known_priors(bundle: Bundle) -> tuple[PriorSetting, ...]:
    """The settings of the class priors that a model supports."""
    return ("trained",) if bundle.priors is None else CHOICES
