"""How frequent the classes are: on the ground, in training, and in what is asked for. No dependencies.

A network that was trained on classes in other shares than those on the ground answers for the shares of its training.
Where only the shares differ, Bayes' rule mends it: p'(y|x) is proportional to p(y|x) * target(y) / trained(y), so that
log target - log trained is added to each class's log-probability (Saerens, Latinne & Decaestecker, "Adjusting the outputs
of a classifier to new a priori probabilities", 2002; as logit adjustment, Menon et al., ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mibf.errors import InputError

#: The shares that predictions answer for: those of training, of the training pixels as they lie, or all alike.
Choice = Literal["trained", "natural", "uniform"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

#: How far a sum of shares may lie from one.
TOLERANCE = 1e-6


def check_choice(choice: str) -> None:
    """See that a choice is one.

    Raises:
        InputError: it is not.
    """
    if choice not in CHOICES:
        raise InputError(f"unknown class priors {choice!r}; there are {', '.join(CHOICES)}.")


@dataclass(frozen=True)
class Priors:
    """The shares of the classes, in their order; each tuple sums to one.

    `natural` is a class's share of the training pixels, `trained` its share of what the loss saw: after class-balanced
    sampling and the loss's weights.
    """

    natural: tuple[float, ...]
    trained: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("natural", "trained"):
            shares = tuple(map(float, getattr(self, name)))
            object.__setattr__(self, name, shares)  # plain floats, whatever was given
            if not shares or not all(math.isfinite(share) and share >= 0 for share in shares):
                raise InputError(f"{name} class shares are {_listed(shares)}; each must be a number from 0 to 1.")
            if abs(math.fsum(shares) - 1) > TOLERANCE:
                raise InputError(f"{name} class shares ({_listed(shares)}) sum to {math.fsum(shares):g}; the sum must be 1.")
        if len(self.natural) != len(self.trained):
            raise InputError(
                f"{len(self.natural)} natural and {len(self.trained)} trained class shares; one of each is wanted a class."
            )
        for place, (natural, trained) in enumerate(zip(self.natural, self.trained, strict=True)):
            if trained > 0 and natural == 0:
                raise InputError(
                    f"class {place + 1} of {len(self.natural)} has share {trained:g} in training and none of the training "
                    "pixels; a class is trained on its pixels alone."
                )

    @classmethod
    def of(cls, natural: Iterable[float], trained: Iterable[float]) -> Priors:
        """The shares from counts or weights, which are brought to sum to one.

        Raises:
            InputError: they cannot be: a negative or infinite one, or none above zero.
        """
        return cls(_shares("natural", natural), _shares("trained", trained))

    @classmethod
    def even(cls, classes: int) -> Priors:
        """All classes alike, on the ground and in training."""
        shares = (1 / classes,) * classes
        return cls(shares, shares)

    def target(self, choice: Choice) -> tuple[float, ...]:
        """The shares that a choice means."""
        check_choice(choice)
        if choice == "uniform":
            return (1 / len(self.natural),) * len(self.natural)
        return self.natural if choice == "natural" else self.trained

    def correction(self, choice: Choice) -> tuple[float, ...]:
        """What is added to each class's log-probability: log target - log trained.

        A class whose trained share is 0 cannot be corrected, for what the network says of it rests on nothing:
        its correction is 0.
        """
        pairs = zip(self.target(choice), self.trained, strict=True)
        return tuple(math.log(target) - math.log(trained) if trained > 0 else 0.0 for target, trained in pairs)

    def to_json(self) -> dict[str, list[float]]:
        """The shares as JSON values."""
        return {"natural": list(self.natural), "trained": list(self.trained)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Priors:
        """The shares that `to_json` wrote."""
        return cls(natural=tuple(value["natural"]), trained=tuple(value["trained"]))


def _shares(name: str, values: Iterable[float]) -> tuple[float, ...]:
    values = tuple(map(float, values))
    total = sum(values)
    if not (math.isfinite(total) and total > 0 and min(values) >= 0):
        raise InputError(f"{name} counts or weights of the classes are {_listed(values)}; none may be negative, not all 0.")
    return tuple(value / total for value in values)


def _listed(shares: tuple[float, ...]) -> str:
    return ", ".join(f"{share:g}" for share in shares) or "none"
