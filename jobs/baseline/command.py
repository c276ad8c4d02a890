"""`mibf baseline`: fit baselines to the samples of a run and compare them with its trained model.

Training samples, split and stores are those of the run. Metrics are on validation pixels, which also selected the epoch of
the trained model; test pixels are read only on request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from jobs.baseline.learners import FeatureSet, FittedLearner, Variant, variants
from jobs.baseline.samples import Samples, network_probabilities, read_samples
from jobs.baseline.table import NETWORK, Baselines, Difference, Row, SubsetTable
from jobs.config.config import Config
from jobs.evaluate.stage import UNKNOWN_TRAINING
from jobs.runtime.progress import info, progress_bar
from jobs.workflow.fingerprint import fingerprint, imported_checkpoint
from jobs.workflow.manifest import check_dependencies, read_manifest
from jobs.workflow.runner import stale_dependencies
from jobs.workflow.split_caveat import split_caveat
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.metrics.block_bootstrap import BlockCounts, draw_blocks, interval
from pipeline.boosting.pixel_features import value_features
from pipeline.codes import Subset
from pipeline.io import storage
from pipeline.io.lease import acquire
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

#: Training samples that the baselines are fitted to, and seconds for fitting and prediction, by default.
SAMPLES, SECONDS = 20_000, 60.0
#: Samples of validation or test that are classified at most.
CLASSIFIED = 25_000
#: Least number of training samples of each class, as far as there are some.
LEAST = 20
#: Side in pixels of the blocks of the bootstrap where the split has none.
SQUARE = 64


def baseline(
    config: Config,
    *,
    test: bool,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Baselines:
    """Fit all baselines for which there is time, compare them with the run's model, and store the table in the run's folder.

    Args:
        config: its stores must have been prepared.
        test: also read the test pixels.
        samples: training samples to fit to, at most.
        seconds: for fitting and prediction; no fit starts that would probably exceed it.
        clock: returns a time in seconds.

    Raises:
        InputError: there are no stores, no labels, too few samples or classes, or nothing to report.
        LeaseHeldError: another run holds the workspace lease.
    """
    if not config.trainable:
        raise InputError("no scene has `labels` for training, so there is nothing to fit to; add labels to at least one.")
    check_dependencies(config, "train")
    workspace = Workspace.of(config)
    subsets = _subsets(config, test=test)
    stores = [PatchStore(workspace.store(s.name), without=() if test else ("test",)) for s in config.scenes]
    available = {subset: _counts(stores, subset) for subset in ("train", *subsets)}
    _check_counts(workspace, available)
    if stale_dependencies(config, "train"):
        info("warning: `prepare` is not current (configuration, inputs or algorithm version changed); `mibf run` repeats it")
    storage.check_writable(workspace.url)
    with acquire(workspace.url, what=f"mibf baseline of {config.name}, run {config.run}") as lease:
        sources = [s for s in stores[0].sources if config.model.sources is None or s.name in config.model.sources]
        seed = config.train.every_seed[0]
        train = read_samples(stores, "train", sources, limit=samples, least=LEAST, seed=seed)
        measured = [
            _Measured(
                subset, read_samples(stores, subset, sources, limit=CLASSIFIED, least=1, seed=seed), _block(config), seed
            )
            for subset in subsets
        ]
        classes = len(stores[0].classes)
        blocks, *_ = train.blocks(_block(config))
        left_out, cut = _fit_all(
            train, measured, sources, blocks=blocks, classes=classes, seed=seed, seconds=seconds, clock=clock
        )
        notes = [*_cut_short(cut, seconds), *_add_network(config, workspace, stores, measured)]
        found = Baselines(
            train=len(train.features),
            available=int(available["train"].sum()),
            seed=seed,
            seconds=seconds,
            left_out=left_out,
            notes=notes,
            tables=[m.table(int(available[m.subset].sum())) for m in measured],
        )
        lease.check()
        storage.write_json(workspace.baseline, found.to_json())
    return found


def _subsets(config: Config, *, test: bool) -> list[Subset]:
    """The subsets to report on."""
    subsets: list[Subset] = ["validation"] if config.validated else []
    subsets += ["test"] if test else []
    if not subsets:
        raise InputError(
            "the split has no validation pixels, and test pixels are read only on request, so there is nothing to report; "
            "add validation pixels (split.validation), or add --test and do not use the table for model selection."
        )
    return subsets


def _counts(stores: Sequence[PatchStore], subset: Subset) -> NDArray[np.int64]:
    """Number of samples per class over all stores (class,)."""
    none = np.zeros(len(stores[0].classes), np.int64)
    return np.asarray(sum((n for store in stores for _, n in store.windows_with_samples(subset)), none))


def _check_counts(workspace: Workspace, available: dict[Subset, NDArray[np.int64]]) -> None:
    """Check that every subset holds samples, and training those of two classes."""
    for subset, counts in available.items():
        if not counts.any():
            raise InputError(f"{workspace.stores}: no samples in the subset {subset!r}; check labels and split.")
    if np.count_nonzero(available["train"]) < 2:
        raise InputError(
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

    def __post_init__(self) -> None:
        self.labels = self.samples.labels
        self.blocks, self.number, self.side = self.samples.blocks(self.side)
        self.drawn = draw_blocks(self.number, seed=self.seed)

    def add(
        self, variant: Variant | None, probabilities: NDArray[np.float64], *, trained: float | None, took: float
    ) -> None:
        """Add a baseline, or the trained model, with the seconds that training and prediction took."""
        counts = BlockCounts.of(probabilities, self.labels, self.blocks, number=self.number)
        replicates = counts.replicates(self.drawn)
        several = self.number > 1
        self.rows.append(
            Row(
                learner=NETWORK if variant is None else variant.learner,
                features=None if variant is None else variant.features,
                weights=None if variant is None else variant.weights,
                figures=counts.figures(),
                intervals={name: interval(values) for name, values in replicates.items()} if several else None,
                training_seconds=None if trained is None else round(trained, 2),
                pixels_per_second=round(len(self.labels) / max(took, 1e-6)),
            )
        )
        self.names.append(NETWORK if variant is None else str(variant))
        self.accuracies.append(replicates["overall_accuracy"])

    def table(self, available: int) -> SubsetTable:
        """Return the rows with the best baseline, and its difference to the trained model if there is one."""
        baselines = [i for i, row in enumerate(self.rows) if row.learner != NETWORK]
        best = max(baselines, key=lambda i: self.rows[i].accuracy)
        difference = None
        if len(baselines) < len(self.rows):
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
        )


def _fit_all(
    train: Samples,
    measured: Sequence[_Measured],
    sources: Sequence[StoredSource],
    *,
    blocks: NDArray[np.int64],
    classes: int,
    seed: int,
    seconds: float,
    clock: Callable[[], float],
) -> tuple[list[str], list[str]]:
    """Fit and measure the variants for which there is time; return the others, and those that were cut short.

    The majority class and the first learner are always fitted. Another one is left out if its last fit, on whatever
    features, took longer than the time that is left. Each may take half of that time, so that some is left for others.
    """
    planned = list(variants())
    columns: dict[FeatureSet | None, slice] = {"values": value_features(sources)}
    labels = train.labels
    left_out: list[str] = []
    cut: list[str] = []
    last: dict[str, float] = {}  # seconds of the last fit by learner
    begun = clock()
    with progress_bar("baselines", len(planned), unit="fits") as advance:
        for position, variant in enumerate(planned):
            if position > 1 and clock() - begun + last.get(variant.learner, 0.0) >= seconds:
                left_out.append(str(variant))
                advance(1)
                continue
            started = clock()
            own = columns.get(variant.features, slice(None))
            limit = (seconds - (started - begun)) / 2
            fitted = FittedLearner(
                variant,
                train.features[:, own],
                labels,
                classes=classes,
                seed=seed,
                blocks=blocks,
                seconds=limit,
                clock=clock,
            )
            trained = clock() - started
            if not fitted.complete:
                cut.append(str(variant))
            for each in measured:
                before = clock()
                probabilities = fitted.probabilities(each.samples.features[:, own])
                each.add(variant, probabilities, trained=trained, took=clock() - before)
            last[variant.learner] = clock() - started
            advance(1)
    return left_out, cut


def _cut_short(learners: Sequence[str], seconds: float) -> Iterator[str]:
    """The note on learners that were not fitted to the end."""
    if learners:
        yield (
            f"cut short to keep to {seconds:g} s, so that their figures may be too low and vary from run to run: "
            f"{', '.join(learners)}; raise --seconds or lower --samples"
        )


def _add_network(
    config: Config, workspace: Workspace, stores: Sequence[PatchStore], measured: Sequence[_Measured]
) -> list[str]:
    """Measure the run's trained model on the same samples, if it is current; return the notes on the comparison."""
    caveats = [split_caveat(storage.read_json(workspace.split))]
    manifest = read_manifest(workspace, "train")
    if manifest is None:
        return [note for note in caveats if note]
    if manifest.fingerprint != fingerprint(config, "train"):
        caveats.append(
            f"{workspace.bundle}: is not compared, because it was not trained on the current stores and split, or not with "
            "this configuration; run `mibf train` first"
        )
        return [note for note in caveats if note]
    torch.set_num_threads(CPU_COUNT)
    bundle = workspace.read_bundle()
    for each in measured:
        probabilities, took = network_probabilities(bundle, config.prediction.priors, stores, each.samples)
        each.add(None, probabilities, trained=manifest.seconds, took=took)
    caveats += list(_on_selection(measured))
    caveats.append(UNKNOWN_TRAINING if imported_checkpoint(workspace) else None)
    return [note for note in caveats if note]


def _on_selection(measured: Sequence[_Measured]) -> Iterator[str]:
    """What validation pixels were already used for."""
    if any(each.subset == "validation" for each in measured):
        yield (
            "validation pixels selected the epoch and the temperature of the trained model, and select the best baseline "
            "here; `--test` compares on pixels that selected nothing"
        )
