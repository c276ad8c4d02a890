"""What one training of a trial gives: predictions after several lengths of training, within a time. Numpy only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Returns a time in seconds.
Clock = Callable[[], float]


@dataclass(frozen=True)
class Trajectory:
    """Logits (m, classes) of the predicted samples, and seconds spent until then, by number of steps."""

    logits: dict[int, NDArray[np.floating]]
    seconds: dict[int, float]
    note: str | None = None  #: why it ends before the last checkpoint


def follow(
    checkpoints: Sequence[int],
    predict: Callable[[int], NDArray[np.floating]],
    *,
    seconds: float,
    clock: Clock = time.monotonic,
) -> Trajectory:
    """Train to one checkpoint after the other and predict there, as far as the time allows.

    Args:
        checkpoints: numbers of steps, in ascending order.
        predict: trains to a number of steps and returns the logits (m, classes) there; raises `ArithmeticError` if training
            diverges before.
        seconds: no checkpoint after the first is started that would probably exceed them.
        clock: returns a time in seconds.
    """
    started, done = clock(), 0
    found = Trajectory({}, {})
    for steps in checkpoints:
        spent = clock() - started
        if done and spent * steps / done > seconds:
            return replace(found, note=f"stopped after {done} of {checkpoints[-1]} steps: {seconds:.0f} s are used up")
        try:
            found.logits[steps] = predict(steps)
        except ArithmeticError:
            return replace(found, note=f"diverged between steps {done} and {steps}")
        done = steps
        found.seconds[steps] = clock() - started
    return found
