"""What the chosen class priors gain and lose against those of training, on validation pixels."""

from __future__ import annotations

from collections.abc import Mapping

from mibf.bundle.bundle import Bundle
from mibf.class_priors import FULL_SUPPORT, PriorSetting

#: The accuracies that class priors trade against each other, by key.
TRADED = {"overall_accuracy": "overall accuracy", "average_accuracy": "average accuracy"}
#: Decimals of accuracies in messages; smaller differences do not count.
DECIMALS = 3
#: Classes that a note lists at most.
LISTED = 8


def changes_predictions(bundle: Bundle, choice: PriorSetting) -> bool:
    """Whether predictions with these class priors differ from those with the priors of training."""
    return choice != "trained" and bundle.priors is not None and any(abs(c) > 1e-9 for c in bundle.priors.correction(choice))


def prior_notes(bundle: Bundle, choice: PriorSetting, on_validation: Mapping[str, Mapping[str, float]] | None) -> list[str]:
    """Notes about class priors other than those of training: damped classes, and a loss greater than the gain.

    Args:
        bundle: the model.
        choice: the chosen priors.
        on_validation: overall and average accuracy on validation pixels by priors, those of training and the chosen ones;
            None if there are no validation pixels.
    """
    if not changes_predictions(bundle, choice):
        return []
    notes = [_damped(bundle, choice)]
    if on_validation is None:
        notes.append(f"there are no validation pixels, so what class priors {choice!r} gain or lose is not known")
    else:
        notes.append(_loss(on_validation, choice))
    return [note for note in notes if note]


def _damped(bundle: Bundle, choice: PriorSetting) -> str:
    priors = bundle.priors
    assert priors is not None
    if priors.support is None:
        return (
            "this model does not record its samples per class, so class priors raise rare classes in full; "
            "run `mibf train` to record them"
        )
    damped = priors.damped(choice)
    if not damped:
        return ""
    listed = [f"{bundle.classes[i].name} ({priors.support[i]})" for i in damped[:LISTED]]
    more = f" and {len(damped) - LISTED} more" if len(damped) > LISTED else ""
    return (
        f"class priors {choice!r} raise these classes only in part, because they have fewer than {FULL_SUPPORT} training or "
        f"validation samples: {', '.join(listed)}{more}"
    )


def _loss(on_validation: Mapping[str, Mapping[str, float]], choice: PriorSetting) -> str:
    before, after = on_validation["trained"], on_validation[choice]
    if sum(round(after[key], DECIMALS) - round(before[key], DECIMALS) for key in TRADED) > -0.5 * 10**-DECIMALS:
        return ""
    changes = ", ".join(f"{name} {before[key]:.{DECIMALS}f} to {after[key]:.{DECIMALS}f}" for key, name in TRADED.items())
    return (
        f"class priors {choice!r} lose more than they gain on validation pixels: {changes}; "
        "consider prediction.priors `trained`"
    )
