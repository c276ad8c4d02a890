"""Train the classifiers of pixel features on the training pixels of the stores: boosted trees and logistic regression.

Either is a model of its own (`model.kind`), and both are members of a blend. The samples are a stratified draw of bounded
size, weighted by class as the network's samples are drawn, so that class priors mean the same for all. Validation pixels
decide the number of rounds of boosting and the temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.baseline.samples import Samples, read_samples
from jobs.config.config import Config
from jobs.runtime.progress import info
from mibf.bundle.members import KIND_NAMES, LinearMember, PixelMember, TreesMember
from mibf.class_priors import Priors
from mibf.ensemble import between, fit_temperature
from mibf.network.spec import NetworkSpec
from mibf.normalization import Scaling
from pipeline.classifiers.linear import fit_linear
from pipeline.classifiers.trees import ROUNDS as MOST_ROUNDS
from pipeline.classifiers.trees import LabelledFeatures, Trees, fit_trees
from pipeline.codes import Subset
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore

Kind = Literal["trees", "linear"]
#: Training and validation samples at most, and the memory that the features of either may take.
SAMPLES, BYTES = {"train": 200_000, "validation": 50_000}, 256 << 20
#: Least number of samples of each class, as far as there are some.
LEAST = 200
#: Rounds where no validation pixels decide their number.
ROUNDS = 60


def trained_classifiers(config: Config) -> tuple[Kind, ...]:
    """Return the classifiers of pixel features that a configuration trains, in the order in which they are members."""
    if config.train.blend:
        return ("trees", "linear")
    kinds: dict[str, tuple[Kind, ...]] = {"mibf": (), "boosting": ("trees",), "linear": ("linear",)}
    return kinds[config.model.kind]


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier with its temperature, 1 without validation samples, and what it was fitted to."""

    member: PixelMember
    samples: int
    available: int
    calibrated: bool  #: whether there were validation samples
    rounds: int | None = None  #: of boosting

    @property
    def description(self) -> str:
        """Its name and size."""
        name = KIND_NAMES[self.member.kind]
        return name if self.rounds is None else f"{name}, {self.rounds} round{'' if self.rounds == 1 else 's'}"

    @property
    def chosen(self) -> dict[str, float]:
        """What training chose, as recorded in the model's provenance."""
        found: dict[str, float] = {} if self.rounds is None else {"rounds": self.rounds}
        return found | ({"temperature": self.member.temperature} if self.calibrated else {})

    def with_temperature_of_trials(self, trials: float, *, weight: float) -> FittedClassifier:
        """Return it with a temperature between its own, if validation samples gave it one, and that of trials."""
        temperature = between(self.member.temperature, trials, weight=weight) if self.calibrated else trials
        return replace(self, member=replace(self.member, temperature=temperature), calibrated=True)


@dataclass(frozen=True)
class PixelSamples:
    """Training and validation samples of pixel features."""

    train: Samples
    available: NDArray[np.int64]  #: training pixels of each class in the stores (classes,)
    validation: Samples | None
    natural: NDArray[np.int64]  #: validation pixels of each class in the stores (classes,)


def read_pixel_samples(stores: Sequence[PatchStore], spec: NetworkSpec, scaling: Scaling, *, seed: int) -> PixelSamples:
    """Draw samples of training and validation pixels, and compute their features.

    Args:
        stores: without their test pixels, with some training pixels.
        spec: names the sources.
        scaling: matches scenes to the training distribution, if it holds one.
        seed: of the draw.

    Raises:
        InputError: a store is damaged.
    """
    sources = [stores[0].source(source.name) for source in spec.sources]
    features = 3 * sum(source.bands for source in sources)

    def read(subset: Subset) -> tuple[Samples | None, NDArray[np.int64]]:
        available = sample_table(stores, subset).counts
        limit = min(SAMPLES[subset], BYTES // (4 * features))
        found = (
            read_samples(stores, subset, sources, limit=limit, least=LEAST, seed=seed, scaling=scaling)
            if available.any()
            else None
        )
        return found, available

    train, available = read("train")
    assert train is not None  # the stage has checked that there are training samples
    return PixelSamples(train, available, *read("validation"))


def fit_classifier(
    kind: Kind,
    samples: PixelSamples,
    spec: NetworkSpec,
    priors: Priors,
    *,
    seed: int,
    threads: int | None,
    penalty: float,
) -> FittedClassifier:
    """Fit a classifier to training pixels.

    Args:
        kind: which.
        samples: of the stores.
        spec: gives the number of classes.
        priors: the class proportions that training is to have (`Priors.trained`).
        seed: of the draws in training.
        threads: for LightGBM; default as in `fit_trees`.
        penalty: of logistic regression.

    Raises:
        InputError: LightGBM cannot be used here.
    """
    train, validation = samples.train, samples.validation
    total, features = int(samples.available.sum()), train.features.shape[1]
    info(f"fitting {KIND_NAMES[kind]} to {len(train.labels):,} of {total:,} training samples, {features} features")
    weights = _weights(train.labels, priors.trained)
    rounds: int | None = None
    member: PixelMember
    scores: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    if kind == "trees":
        trees = _fit_trees(samples, weights, spec.classes, priors, seed=seed, threads=threads)
        rounds, member, scores = trees.rounds, TreesMember(trees.text), trees.scores
    else:
        linear = fit_linear(
            train.features,
            train.labels,
            classes=spec.classes,
            weights=weights,
            penalty=penalty,
            seed=seed,
        )
        member, scores = LinearMember(linear.weights), linear.scores
    if validation is not None:
        natural = _weights(validation.labels, samples.natural / samples.natural.sum())
        temperature = fit_temperature(scores(validation.features), validation.labels, natural)
        member = replace(member, temperature=temperature)
    return FittedClassifier(member, len(train.labels), total, validation is not None, rounds)


def _fit_trees(
    samples: PixelSamples, weights: NDArray[np.float64], classes: int, priors: Priors, *, seed: int, threads: int | None
) -> Trees:
    """Fit boosted trees; the validation samples decide the number of rounds."""
    validation = samples.validation
    monitored = None
    if validation is not None:
        own = _weights(validation.labels, priors.trained)
        monitored = LabelledFeatures(validation.features, validation.labels, own)
    return fit_trees(
        samples.train.features,
        samples.train.labels,
        classes=classes,
        weights=weights,
        validation=monitored,
        rounds=ROUNDS if monitored is None else MOST_ROUNDS,
        seed=seed,
        threads=threads,
    )


def _weights(labels: NDArray[np.int64], target: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight samples so that the classes have these proportions among them, as far as they have samples."""
    shares = np.bincount(labels, minlength=len(target)) / len(labels)
    each = np.divide(target, shares, out=np.zeros(len(target)), where=shares > 0)
    weights = each[labels]
    return np.asarray(weights / weights.mean())
