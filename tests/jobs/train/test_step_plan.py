"""Epochs and passes of a training whose length is given in epochs or in steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.config.train import TrainSection
from jobs.train.step_plan import StepPlan


def test_length_in_epochs_makes_each_epoch_one_pass_over_the_sampled_share() -> None:
    plan = StepPlan.of(TrainSection(epochs=3, batch_size=100), 0.5, samples=2100)
    assert (plan.total, plan.epoch, plan.full_pass, plan.epochs) == (30, 10, 10, 3)
    assert list(plan.spans(2)) == [(2, 0, 10)]
    assert list(plan.spans(2, start=4)) == [(2, 4, 10)]
    assert list(plan.spans(2, start=10)) == []


def test_length_in_steps_makes_an_epoch_several_passes_over_few_samples() -> None:
    """2,000 samples are 7 batches of 256."""
    plan = StepPlan.of(TrainSection(steps=50, validate_steps=20), 1.0, samples=2000)
    assert (plan.total, plan.epochs, plan.full_pass) == (50, 3, 7)
    assert list(plan.spans(0)) == [(0, 0, 7), (1, 0, 7), (2, 0, 6)]
    assert list(plan.spans(1)) == [(2, 6, 7), (3, 0, 7), (4, 0, 7), (5, 0, 5)]
    assert list(plan.spans(2)) == [(5, 5, 7), (6, 0, 7), (7, 0, 1)]


def test_length_in_steps_makes_an_epoch_a_part_of_a_pass_over_many_samples() -> None:
    plan = StepPlan.of(TrainSection(steps=4000), 1.0, samples=700_000)
    assert (plan.total, plan.epochs, plan.epoch, plan.full_pass) == (4000, 20, 200, 2734)
    assert list(plan.spans(0)) == [(0, 0, 200)]
    assert list(plan.spans(13)) == [(0, 2600, 2734), (1, 0, 66)]


def test_epoch_longer_than_the_training_is_cut() -> None:
    plan = StepPlan.of(TrainSection(steps=30, validate_steps=100), 1.0, samples=2000)
    assert (plan.total, plan.epochs, plan.length(0)) == (30, 1, 30)


@given(
    steps=st.integers(1, 300),
    epoch=st.none() | st.integers(1, 400),
    samples=st.integers(2, 5000),
    batch=st.integers(2, 300),
)
def test_epochs_take_every_step_of_every_pass_once_and_in_order(
    steps: int, epoch: int | None, samples: int, batch: int
) -> None:
    plan = StepPlan.of(TrainSection(steps=steps, validate_steps=epoch, batch_size=batch), 1.0, samples=samples)
    taken = [
        (span.number, step)
        for number in range(plan.epochs)
        for span in plan.spans(number)
        for step in range(span.start, span.stop)
    ]
    assert taken == [divmod(step, max(1, samples // batch)) for step in range(steps)]
    lengths = [plan.length(number) for number in range(plan.epochs)]
    assert sum(lengths) == steps
    assert min(lengths) >= 1
    if steps >= 20 and epoch is None:
        assert 20 <= plan.epochs < 40


@given(st.data())
def test_epoch_entered_at_any_step_takes_the_remaining_steps(data: st.DataObject) -> None:
    plan = StepPlan(total=data.draw(st.integers(1, 90)), epoch=data.draw(st.integers(1, 40)), full_pass=7)
    epoch = data.draw(st.integers(0, plan.epochs - 1))
    start = data.draw(st.integers(0, plan.length(epoch)))

    def taken(start: int) -> list[tuple[int, int]]:
        return [(span.number, step) for span in plan.spans(epoch, start=start) for step in range(span.start, span.stop)]

    assert taken(start) == taken(0)[start:]
