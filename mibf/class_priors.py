"""Class priors: the proportions of the classes on the ground, in training and as requested. No dependencies.

The predictions of a network trained on class proportions other than those on the ground reflect the training proportions.
If only the proportions differ, Bayes' rule corrects this: p'(y|x) is proportional to p(y|x) * target(y) / trained(y), so
log target - log trained is added to each class's logit (Saerens, Latinne & Decaestecker, "Adjusting the outputs of a
classifier to new a priori probabilities", 2002; as logit adjustment, Menon et al., ICLR 2021).

The correction comes before the temperature T: probabilities are softmax((logits + correction) / T). The loss fits the
logits to the training proportions at T = 1, so that is where the correction belongs; T then changes confidences only.
Added after the division, the correction would weigh T times as much against the logits: the more overconfident the
network, the more its classes would follow the priors instead of the data.

A correction that raises a class is damped where few samples support it. It relies on the network's probabilities of that
class, and where they are wrong it spreads the class over the map; without validation samples nothing shows that. With n
samples, the smaller of the class's numbers of training and validation samples, a positive correction is multiplied by
min(1, sqrt(n / FULL_SUPPORT)): the square-root rule of limited-fluctuation credibility (Klugman, Panjer & Willmot, "Loss
Models", chapter on limited fluctuation credibility). A negative correction is not: the other classes support it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mibf.errors import InputError

#: The priors that predictions reflect: those of training, those of the training pixels as they are, or equal ones.
PriorSetting = Literal["trained", "natural", "uniform"]
CHOICES: tuple[PriorSetting, ...] = get_args(PriorSetting)
#: Maximum deviation of a sum of proportions from one.
TOLERANCE = 1e-6
#: Version of the corrected predictions, in the fingerprints of maps with priors other than those of training: only these
#: become stale when it is increased. Evaluations contain every choice: bump `mibf.metrics.ALGORITHM_VERSION` with it.
CORRECTION_VERSION = 2
#: Samples of a class from which on its correction is not damped: a proportion of 0.5 is then known to +- 0.1 with a
#: confidence of 95 % (1.96^2 * 0.25 / 0.1^2 = 96).
FULL_SUPPORT = 100


def check_choice(choice: str) -> None:
    """Check that a choice is valid.

    Raises:
        InputError: it is not.
    """
    if choice not in CHOICES:
        raise InputError(f"unknown class priors {choice!r}; must be one of {', '.join(CHOICES)}.")


@dataclass(frozen=True)
class Priors:
    """Class proportions, in the order of the classes; each tuple sums to one.

    `natural` is a class's proportion of the training pixels, `trained` its proportion of what the loss saw: after
    class-balanced sampling and the loss's weights. `support` is the number of samples that support a class's correction
    (see `support`), None where it was not recorded: then no correction is damped.
    """

    natural: tuple[float, ...]
    trained: tuple[float, ...]
    support: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("natural", "trained"):
            shares = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, shares)  # plain floats, whatever the input type
            if not shares or not all(math.isfinite(share) and share >= 0 for share in shares):
                raise InputError(f"{name} class proportions are {_listed(shares)}; each must be a number from 0 to 1.")
            if abs(math.fsum(shares) - 1) > TOLERANCE:
                raise InputError(
                    f"{name} class proportions ({_listed(shares)}) sum to {math.fsum(shares):g}; the sum must be 1."
                )
        if len(self.natural) != len(self.trained):
            raise InputError(
                f"{len(self.natural)} natural and {len(self.trained)} trained class proportions; give one of each per class."
            )
        for position, (natural, trained) in enumerate(zip(self.natural, self.trained, strict=True)):
            if trained > 0 and natural == 0:
                raise InputError(
                    f"class {position + 1} of {len(self.natural)} has proportion {trained:g} in training but no training "
                    "pixels; a class can only be trained on its own pixels."
                )
        if self.support is not None:
            object.__setattr__(self, "support", _support(self.support, classes=len(self.natural)))

    @classmethod
    def of(cls, natural: Iterable[float], trained: Iterable[float], *, support: tuple[int, ...] | None = None) -> Priors:
        """Normalise counts or weights to proportions that sum to one; `support` is as for the class.

        Raises:
            InputError: a value is negative or not finite, or none is above zero.
        """
        return cls(_shares("natural", natural), _shares("trained", trained), support)

    @classmethod
    def even(cls, classes: int) -> Priors:
        """Return equal proportions for all classes, on the ground and in training."""
        shares = (1 / classes,) * classes
        return cls(shares, shares)

    def target(self, choice: PriorSetting) -> tuple[float, ...]:
        """Return the proportions of a choice."""
        check_choice(choice)
        if choice == "uniform":
            return (1 / len(self.natural),) * len(self.natural)
        return self.natural if choice == "natural" else self.trained

    def correction(self, choice: PriorSetting) -> tuple[float, ...]:
        """Return what to add to each class's logit, before the temperature: log target - log trained.

        A positive correction is multiplied by the class's credibility. A class whose trained proportion is 0 cannot be
        corrected, because the network has never seen it: its correction is 0.
        """
        full = self._undamped(choice)
        return tuple(c * weight if c > 0 else c for c, weight in zip(full, self.credibility, strict=True))

    @property
    def credibility(self) -> tuple[float, ...]:
        """The share of a positive correction that each class gets: min(1, sqrt(support / FULL_SUPPORT)); 1 if unknown."""
        if self.support is None:
            return (1.0,) * len(self.natural)
        return tuple(min(1.0, math.sqrt(samples / FULL_SUPPORT)) for samples in self.support)

    def damped(self, choice: PriorSetting) -> tuple[int, ...]:
        """Return the positions of the classes whose correction is damped."""
        pairs = zip(self._undamped(choice), self.credibility, strict=True)
        return tuple(position for position, (c, weight) in enumerate(pairs) if c > TOLERANCE and weight < 1)

    def _undamped(self, choice: PriorSetting) -> tuple[float, ...]:
        pairs = zip(self.target(choice), self.trained, strict=True)
        return tuple(math.log(target) - math.log(trained) if trained > 0 else 0.0 for target, trained in pairs)

    def to_json(self) -> dict[str, list[float] | list[int]]:
        """Return the proportions as JSON values, and the support if it is known."""
        shares: dict[str, list[float] | list[int]] = {"natural": list(self.natural), "trained": list(self.trained)}
        return shares if self.support is None else shares | {"support": list(self.support)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Priors:
        """Read the proportions that `to_json` wrote."""
        support = value.get("support")
        return cls(
            natural=tuple(value["natural"]),
            trained=tuple(value["trained"]),
            support=None if support is None else tuple(support),
        )


def support(training: Iterable[int], validation: Iterable[int]) -> tuple[int, ...]:
    """Return the number of samples that support each class's correction, from the numbers per class of both subsets.

    The smaller of the two; of training alone if there are no validation samples of any class.
    """
    seen, checked = tuple(map(int, training)), tuple(map(int, validation))
    return tuple(map(min, seen, checked)) if any(checked) else seen


def _support(counts: Iterable[int], *, classes: int) -> tuple[int, ...]:
    """Check numbers of samples per class."""
    counts = tuple(counts)
    if len(counts) != classes or not all(type(count) is int and count >= 0 for count in counts):
        raise InputError(
            f"the samples per class that support the priors are {_listed(counts)}; there must be a whole number, 0 or "
            f"more, for each of the {classes} classes."
        )
    return counts


def _shares(name: str, values: Iterable[float]) -> tuple[float, ...]:
    values = tuple(map(float, values))
    total = sum(values)
    if not (math.isfinite(total) and total > 0 and min(values) >= 0):
        raise InputError(
            f"{name} counts or weights of the classes are {_listed(values)}; give none below 0 and at least one above."
        )
    return tuple(value / total for value in values)


def _listed(shares: tuple[Any, ...]) -> str:
    return ", ".join(f"{share:g}" if isinstance(share, int | float) else repr(share) for share in shares) or "none"
