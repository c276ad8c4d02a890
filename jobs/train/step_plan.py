"""Plan the steps of a training run: how many there are, where its epochs end, and which samples they draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jobs.config.train import TrainSection

#: Number of epochs of a training whose length is given in steps, without `train.validate_steps`.
EPOCHS = 20


class Span(NamedTuple):
    """The steps [start, stop) of pass `number` over the training samples; all are counted from 0."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class StepPlan:
    """The steps of a training run.

    An epoch is what lies between two validations. If the length of training is given in epochs, each of them is one pass
    over the sampled share of the training samples. If it is given in steps, an epoch is a number of steps: several passes
    over few samples, or a part of a pass over many. The passes do not depend on where the epochs end: each draws the
    samples once, in an order of its own.
    """

    total: int  #: steps of the training run
    epoch: int  #: steps of an epoch; the last one may be shorter
    full_pass: int  #: steps of a pass over the samples

    @classmethod
    def of(cls, train: TrainSection, epoch_fraction: float, samples: int) -> StepPlan:
        """Plan the training on this many samples, of which an epoch draws the share `epoch_fraction`."""
        full_pass = max(1, int(epoch_fraction * samples) // train.batch_size)
        if train.steps is None:
            return cls(train.epochs * full_pass, full_pass, full_pass)
        epoch = train.validate_steps or max(1, train.steps // EPOCHS)
        return cls(train.steps, min(epoch, train.steps), full_pass)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return -(-self.total // self.epoch)

    def before(self, epoch: int) -> int:
        """Number of steps before an epoch, counted from 0; of all steps for the epoch after the last one."""
        return min(epoch * self.epoch, self.total)

    def length(self, epoch: int) -> int:
        """Number of steps of an epoch, counted from 0."""
        return self.before(epoch + 1) - self.before(epoch)

    def spans(self, epoch: int, *, start: int = 0) -> Iterator[Span]:
        """Yield the parts of passes that an epoch consists of, from its step `start` on."""
        step, end = self.before(epoch) + start, self.before(epoch + 1)
        while step < end:
            number, begin = divmod(step, self.full_pass)
            stop = min(self.full_pass, begin + end - step)
            yield Span(number, begin, stop)
            step += stop - begin
