"""Fit baselines to the samples of a run, and measure them and its trained model on the same pixels, in a limited time.

Training samples, split and stores are those of the run. Metrics on validation pixels, which also selected the epoch of the
trained model, decide the advice; test pixels select nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.baseline.advice import Difference, ModelName
from jobs.baseline.learners import FeatureSet, FittedLearner, Variant, variants
from jobs.baseline.samples import Samples, model_probabilities, read_samples
from jobs.baseline.table import MODEL_ROWS, Baselines, Row, SubsetTable
from jobs.config.config import Config
from jobs.evaluate.intervals import SQUARE
from jobs.evaluate.stage import UNKNOWN_TRAINING
from jobs.runtime.progress import progress_bar
from jobs.workflow.fingerprint import fingerprint, imported_checkpoint
from jobs.workflow.manifest import read_manifest
from jobs.workflow.split_caveat import split_caveat
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.errors import InputError
from mibf.metrics.block_bootstrap import BlockCounts, draw_blocks, interval
from mibf.normalization import scaling_from_json
from pipeline.classifiers.pixel_features import value_features
from pipeline.codes import Subset
from pipeline.io import storage
from pipeline.parallel.cpu_count import cpu_count
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

#: Samples of validation or test that are classified at most.
CLASSIFIED = 25_000
#: Least number of training samples of each class, as far as there are some.
LEAST = 20
#: Shares of the time: until training samples are read, until all samples are read, and for the trained model's predictions.
TRAIN_READ, ALL_READ, MODEL = 0.2, 0.4, 0.2
#: Samples on which the trained model's speed is measured, and the number of samples that it always classifies.
PROBED, CLASSIFIED_LEAST = 512, 1000


class NothingToMeasureError(InputError):
    """There are no baselines of this run: no labels, or too few samples or classes."""


@dataclass
class Budget:
    """The time that baselines may take, from now on."""

    seconds: float
    clock: Callable[[], float] = time.monotonic  #: returns a time in seconds

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def used(self, share: float = 1.0, *, also: float = 0.0) -> bool:
        """Whether this share of the time is over, or would be after some more seconds."""
        return self.clock() - self._begun + also >= share * self.seconds

    @property
    def left(self) -> float:
        """Seconds until it is over; negative afterwards."""
        return self.seconds - (self.clock() - self._begun)


def measure(
    config: Config,
    workspace: Workspace,
    stores: Sequence[PatchStore],
    subsets: Sequence[Subset],
    *,
    samples: int,
    budget: Budget,
) -> Baselines:
    """Fit all baselines for which there is time, and compare them with the run's model.

    Args:
        config: its stores must have been prepared.
        workspace: that of the configuration.
        stores: of all scenes.
        subsets: to measure on, one or more.
        samples: training samples to fit to, at most.
        budget: for reading, fitting and prediction. Little is always read, and the majority class and one learner are always
            fitted; no other fit starts that would probably exceed it.

    Raises:
        NothingToMeasureError: too few samples or classes.
        InputError: a store or the model is damaged.
    """
    available = {subset: samples_per_class(stores, subset) for subset in ("train", *subsets)}
    _check_counts(workspace, available)
    sources = [s for s in stores[0].sources if config.model.sources is None or s.name in config.model.sources]
    seed = config.train.every_seed[0]
    scaling = scaling_from_json(storage.read_json(workspace.scaling))  # baselines see matched values as the model does
    read = partial(read_samples, stores, sources=sources, seed=seed, scaling=scaling)
    train = read("train", limit=samples, least=LEAST, enough=lambda: budget.used(TRAIN_READ))
    if len(np.unique(train.labels)) < 2:
        raise NothingToMeasureError("the training samples that could be read in time are of one class; allow more seconds.")
    drawn = {subset: read(subset, limit=CLASSIFIED, least=1, enough=lambda: budget.used(ALL_READ)) for subset in subsets}
    model = _Model.current(config, workspace)
    if model is not None:
        model.classify(stores, drawn, seconds=budget.seconds * MODEL / len(drawn), seed=seed)
    measured = [_Measured(subset, found, _block(config), seed) for subset, found in drawn.items()]
    classes = len(stores[0].classes)
    blocks, *_ = train.blocks(_block(config))
    fits = _fit_all(train, measured, sources, blocks=blocks, classes=classes, seed=seed, budget=budget)
    if model is not None:
        for each in measured:
            each.add_model(model)
    return Baselines(
        train=len(train.features),
        available=int(available["train"].sum()),
        seed=seed,
        seconds=budget.seconds,
        left_out=fits.left_out,
        cut_short=fits.cut_short,
        notes=[*fits.failed, *_notes(workspace, model, subsets)],
        tables=[m.table(int(available[m.subset].sum())) for m in measured],
    )


def samples_per_class(stores: Sequence[PatchStore], subset: Subset) -> NDArray[np.int64]:
    """Number of samples per class over all stores (class,)."""
    return sample_table(stores, subset).counts


def _check_counts(workspace: Workspace, available: dict[Subset, NDArray[np.int64]]) -> None:
    """Check that every subset holds samples, and training those of two classes."""
    for subset, counts in available.items():
        if not counts.any():
            raise NothingToMeasureError(f"{workspace.stores}: no samples in the subset {subset!r}; check labels and split.")
    if np.count_nonzero(available["train"]) < 2:
        raise NothingToMeasureError(
            f"{workspace.stores}: the training samples are of one class, so there is nothing to learn; check labels and "
            "split."
        )


def _block(config: Config) -> int:
    """Side of the blocks of the bootstrap, in pixels: that of the split's blocks, if it has some."""
    return config.split_block or SQUARE


@dataclass
class _Measured:
    """The samples of a subset, and the results of the classifiers so far."""

    subset: Subset
    samples: Samples
    side: int
    seed: int
    rows: list[Row] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    accuracies: list[NDArray[np.float64]] = field(default_factory=list)  #: of the replicates
    model: _Model | None = None  #: the trained model, once it is added

    def __post_init__(self) -> None:
        self.labels = self.samples.labels
        self.blocks, self.number, self.side = self.samples.blocks(self.side)
        self.drawn = draw_blocks(self.number, seed=self.seed)

    def add(
        self, variant: Variant | None, probabilities: NDArray[np.float64], *, trained: float | None, took: float, name: str
    ) -> None:
        """Add a baseline, or the trained model, with the seconds that training and prediction took."""
        counts = BlockCounts.of(probabilities, self.labels, self.blocks, number=self.number)
        replicates = counts.replicates(self.drawn)
        several = self.number > 1
        self.rows.append(
            Row(
                learner=name if variant is None else variant.learner,
                features=None if variant is None else variant.features,
                weights=None if variant is None else variant.weights,
                figures=counts.figures(),
                intervals={metric: interval(values) for metric, values in replicates.items()} if several else None,
                training_seconds=None if trained is None else round(trained, 2),
                pixels_per_second=round(len(self.labels) / max(took, 1e-6)),
            )
        )
        self.names.append(name)
        self.accuracies.append(replicates["overall_accuracy"])

    def add_model(self, model: _Model) -> None:
        """Add the trained model, after all baselines."""
        probabilities, took = model.found[self.subset]
        self.add(None, probabilities, trained=model.trained, took=took, name=MODEL_ROWS[model.name])
        self.model = model

    def table(self, available: int) -> SubsetTable:
        """Return the rows with the best baseline, and its difference to the trained model if there is one."""
        baselines = [i for i, row in enumerate(self.rows) if self.model is None or i < len(self.rows) - 1]
        best = max(baselines, key=lambda i: self.rows[i].accuracy)
        difference = None
        if self.model is not None:
            paired = self.accuracies[best] - self.accuracies[-1]
            difference = Difference(
                self.rows[best].accuracy - self.rows[-1].accuracy, interval(paired) if self.number > 1 else None
            )
        return SubsetTable(
            subset=self.subset,
            samples=len(self.labels),
            available=available,
            blocks=self.number,
            block=self.side,
            rows=self.rows,
            best=self.names[best],
            difference=difference,
            model="the network" if self.model is None else self.model.name,
            by_trials=self.model is not None and self.model.by_trials,
            one_source=self.model is not None and len(self.model.bundle.spec.sources) == 1,
        )


@dataclass
class _Model:
    """The run's trained model, and its probabilities (n, classes) with the seconds that they took, by subset."""

    bundle: Bundle
    config: Config
    trained: float  #: seconds of its training
    found: dict[Subset, tuple[NDArray[np.float64], float]] = field(default_factory=dict)

    @classmethod
    def current(cls, config: Config, workspace: Workspace) -> _Model | None:
        """Read the model; None if there is none, or if it was not trained as configured."""
        manifest = read_manifest(workspace, "train")
        if manifest is None or manifest.fingerprint != fingerprint(config, "train"):
            return None
        return cls(workspace.read_bundle(), config, manifest.seconds)

    @property
    def name(self) -> ModelName:
        """The words for it."""
        return "the model" if self.bundle.single is None else "the network"

    @property
    def by_trials(self) -> bool:
        """Whether the recipe `auto` chose it."""
        return self.config.train.recipe == "auto" and self.config.model.kind == "mibf"

    def classify(self, stores: Sequence[PatchStore], drawn: dict[Subset, Samples], *, seconds: float, seed: int) -> None:
        """Classify the drawn samples of each subset, of more than there is time for a random part, which replaces them."""
        threads = torch.get_num_threads()
        torch.set_num_threads(cpu_count())
        try:
            for subset, samples in drawn.items():
                if (number := len(samples.features)) > CLASSIFIED_LEAST:
                    first = samples.part(np.arange(number) < PROBED)
                    self._predict(stores, first)  # the first prediction also prepares the device
                    pace = PROBED / self._predict(stores, first)[1]
                    if number > (most := max(CLASSIFIED_LEAST, int(pace * seconds))):
                        chosen = np.random.default_rng(seed).permutation(number) < most
                        drawn[subset] = samples.part(chosen)
                self.found[subset] = self._predict(stores, drawn[subset])
        finally:
            torch.set_num_threads(threads)

    def _predict(self, stores: Sequence[PatchStore], samples: Samples) -> tuple[NDArray[np.float64], float]:
        return model_probabilities(self.bundle, self.config.prediction.priors, stores, samples)


@dataclass
class _Fits:
    """The variants that were not fitted, or not to the end, in words."""

    left_out: list[str] = field(default_factory=list)
    cut_short: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  #: with the reason


def _fit_all(
    train: Samples,
    measured: Sequence[_Measured],
    sources: Sequence[StoredSource],
    *,
    blocks: NDArray[np.int64],
    classes: int,
    seed: int,
    budget: Budget,
) -> _Fits:
    """Fit and measure the variants for which there is time.

    The majority class and the first learner are always fitted. Another one is left out if its last fit, on whatever
    features, took longer than the time that is left. Each may take half of that time, so that some is left for others.
    """
    planned = list(variants())
    columns: dict[FeatureSet | None, slice] = {"values": value_features(sources)}
    labels, clock = train.labels, budget.clock
    fits = _Fits()
    last: dict[str, float] = {}  # seconds of the last fit by learner
    with progress_bar("baselines", len(planned), unit="fits") as advance:
        for position, variant in enumerate(planned):
            if position > 1 and budget.used(also=last.get(variant.learner, 0.0)):
                fits.left_out.append(str(variant))
                advance(1)
                continue
            started = clock()
            own = columns.get(variant.features, slice(None))
            try:
                fitted = FittedLearner(
                    variant,
                    train.features[:, own],
                    labels,
                    classes=classes,
                    seed=seed,
                    blocks=blocks,
                    seconds=budget.left / 2,
                    clock=clock,
                )
                trained = clock() - started
                found = []
                for each in measured:
                    before = clock()
                    found.append((fitted.probabilities(each.samples.features[:, own]), clock() - before))
            except Exception as error:  # each learner raises its own; the others and the run do not depend on it
                fits.failed.append(f"{variant} could not be fitted: {type(error).__name__}: {error}")
            else:
                if not fitted.complete:
                    fits.cut_short.append(str(variant))
                for each, (probabilities, took) in zip(measured, found, strict=True):
                    each.add(variant, probabilities, trained=trained, took=took, name=str(variant))
            last[variant.learner] = clock() - started
            advance(1)
    return fits


def _notes(workspace: Workspace, model: _Model | None, subsets: Sequence[Subset]) -> list[str]:
    """The notes on the comparison with the trained model."""
    caveats = [split_caveat(storage.read_json(workspace.split))]
    if model is None:
        if read_manifest(workspace, "train") is not None:
            caveats.append(
                f"{workspace.bundle}: is not compared, because it was not trained on the current stores and split, or not "
                "with this configuration; run `mibf train` first"
            )
        return [note for note in caveats if note]
    caveats += list(_on_selection(subsets))
    caveats.append(UNKNOWN_TRAINING if imported_checkpoint(workspace) else None)
    return [note for note in caveats if note]


def _on_selection(subsets: Sequence[Subset]) -> Iterator[str]:
    """What validation pixels were already used for."""
    if "validation" not in subsets:
        return
    unused = "test pixels selected nothing" if "test" in subsets else "`--test` compares on pixels that selected nothing"
    yield (
        "validation pixels selected the epoch and the temperature of the trained model, and select the best baseline "
        f"here; {unused}"
    )
