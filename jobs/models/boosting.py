"""Train boosted trees on the training pixels of the stores: the model of `model.kind: boosting`, or a member of a blend.

The samples are a stratified draw of bounded size, weighted by class as the network's samples are drawn, so that class
priors mean the same for both. Validation pixels decide the number of rounds and the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.baseline.samples import Samples, read_samples
from jobs.runtime.progress import info
from mibf.bundle.members import TreesMember
from mibf.class_priors import Priors
from mibf.ensemble import fit_temperature
from mibf.network.spec import NetworkSpec
from mibf.normalization import Scaling
from pipeline.classifiers.trees import ROUNDS as MOST_ROUNDS
from pipeline.classifiers.trees import LabelledFeatures, Trees, fit_trees
from pipeline.codes import Subset
from pipeline.store.patch_store import PatchStore

#: Training and validation samples at most, and the memory that the features of either may take.
SAMPLES, BYTES = {"train": 200_000, "validation": 50_000}, 256 << 20
#: Least number of samples of each class, as far as there are some.
LEAST = 200
#: Rounds where no validation pixels decide their number.
ROUNDS = 60


@dataclass(frozen=True)
class FittedTrees:
    """Boosted trees, the samples that they were fitted to, and how they do on validation samples."""

    trees: Trees
    temperature: float
    samples: int
    available: int
    validation: Samples | None
    logits: NDArray[np.float64] | None  #: of the validation samples, (n, classes)

    def member_with(self, least: float | None = None) -> TreesMember:
        """Return the trees as the only member of a model; `least` is a temperature that theirs is not to undercut."""
        return TreesMember(self.trees.text, max(self.temperature, least or 0.0))


def fit_boosting(
    stores: Sequence[PatchStore],
    spec: NetworkSpec,
    scaling: Scaling,
    priors: Priors,
    *,
    seed: int,
    threads: int | None,
) -> FittedTrees:
    """Fit boosted trees to the training pixels of stores.

    Args:
        stores: without their test pixels.
        spec: names the sources.
        scaling: matches scenes to the training distribution, if it holds one.
        priors: the class proportions that training is to have (`Priors.trained`).
        seed: of the draw and of the trees.
        threads: for LightGBM; default as in `fit_trees`.

    Raises:
        InputError: a store is damaged, or LightGBM cannot be used here.
    """
    sources = [stores[0].source(source.name) for source in spec.sources]
    features = 3 * sum(source.bands for source in sources)

    def read(subset: Subset) -> tuple[Samples | None, NDArray[np.int64]]:
        counts = [n for store in stores for _, n in store.windows_with_samples(subset)]
        available = np.asarray(sum(counts, np.zeros(spec.classes, np.int64)))
        limit = min(SAMPLES[subset], BYTES // (4 * features))
        found = (
            read_samples(stores, subset, sources, limit=limit, least=LEAST, seed=seed, scaling=scaling)
            if available.any()
            else None
        )
        return found, available

    train, available = read("train")
    assert train is not None  # the stage has checked that there are training samples
    validation, natural = read("validation")
    total = int(available.sum())
    info(f"fitting boosted trees to {len(train.labels):,} of {total:,} training samples, {features} features")
    monitored = None
    if validation is not None:
        weights = _weights(validation.labels, priors.trained)
        monitored = LabelledFeatures(validation.features, validation.labels, weights)
    trees = fit_trees(
        train.features,
        train.labels,
        classes=spec.classes,
        weights=_weights(train.labels, priors.trained),
        validation=monitored,
        rounds=ROUNDS if monitored is None else MOST_ROUNDS,
        seed=seed,
        threads=threads,
    )
    logits = None if validation is None else trees.scores(validation.features)
    temperature = 1.0
    if validation is not None and logits is not None:
        temperature = fit_temperature(logits, validation.labels, _weights(validation.labels, natural / natural.sum()))
    return FittedTrees(trees, temperature, len(train.labels), total, validation, logits)


def _weights(labels: NDArray[np.int64], target: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight samples so that the classes have these proportions among them, as far as they have samples."""
    shares = np.bincount(labels, minlength=len(target)) / len(labels)
    each = np.divide(target, shares, out=np.zeros(len(target)), where=shares > 0)
    weights = each[labels]
    return np.asarray(weights / weights.mean())
