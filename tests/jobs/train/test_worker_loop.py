"""A training that was interrupted at any step and resumed equals one that was not, whatever ends its epochs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.train.settings import WorkerContext
from jobs.train.worker_loop import SeedTrainer
from mibf.training.epoch import Step
from pipeline.io.checkpoints import Checkpoints
from tests.support.scenes import SmallScene
from tests.support.trainers import trainer

WORKER = WorkerContext(0, 1, torch.device("cpu"))
#: There is a checkpoint every 4 steps; the model is the last epoch, so that it depends on every step.
FIXED = ("train.workers=0", "train.batch_size=64", "train.checkpoint_steps=4", "train.log_steps=3")
STEPS = ("train.steps=22", "train.validate_steps=6")
TIMED = ("samples_per_second", "waiting", "train_seconds", "validation_seconds")


class InterruptedTrainingError(Exception):
    """The training was stopped on purpose."""


class ShortPasses(SeedTrainer):
    """A training whose passes have 9 steps, as on a scene of few samples, and which can be stopped at a step."""

    stop = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.plan = replace(self.plan, full_pass=9)

    def _after_step(self, epoch: int, step: Step) -> None:
        super()._after_step(epoch, step)
        if self.plan.before(epoch) + step.number == self.stop:
            raise InterruptedTrainingError


def train(config: str, folder: Path, overrides: tuple[str, ...], *, interrupt: int = 0) -> SeedTrainer:
    """Train to the end, or until `interrupt` steps are done and then, resumed, to the end."""
    overrides = (*FIXED, *overrides)
    if interrupt:
        first = trainer(config, str(folder), WORKER, overrides=overrides, cls=ShortPasses)
        assert isinstance(first, ShortPasses)
        first.stop = interrupt
        with pytest.raises(InterruptedTrainingError):
            first.run()
    found = trainer(config, str(folder), WORKER, overrides=overrides, cls=ShortPasses)
    found.run()
    return found


def outcome(found: SeedTrainer) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The metrics without timings, and all tensors of the newest checkpoint."""
    newest = Checkpoints(found.checkpoints.url).newest(lambda line: None)
    assert newest is not None
    history = [{key: value for key, value in line.items() if key not in TIMED} for line in found.history]
    return history, {f"{part}.{k}": v for part in ("network", "average") for k, v in getattr(newest, part).items()}


def assert_same_outcome(one: SeedTrainer, other: SeedTrainer) -> None:
    (history, tensors), (other_history, other_tensors) = outcome(one), outcome(other)
    assert history == other_history
    assert tensors.keys() == other_tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(value, other_tensors[name]), name


@pytest.fixture
def config(prepared: tuple[SmallScene, Any], tmp_path: Path) -> str:
    """The prepared scene's configuration with a workspace of its own, which shares the stores."""
    source = prepared[0].folder
    own = tmp_path / "work"
    own.mkdir()
    for name in ("stores", "scaling.json", "split.json"):
        (own / name).symlink_to(source / "work" / name)
    text = (source / "small.yaml").read_text()
    path = tmp_path / "small.yaml"
    path.write_text(text.replace(f"workspace: {source / 'work'}", f"workspace: {own}"))
    assert str(own) in path.read_text()
    return str(path)


#: Every random change of samples and network.
RANDOM = (
    "train.augment=mirror_northeast_southwest",
    "train.source_dropout=0.2",
    "train.band_dropout=0.3",
    "train.jitter=0.1",
    "train.mixup=0.4",
    "train.label_smoothing=0.1",
    "train.dropout=0.2",
    "train.batch_norm_samples=100",
    "sampling.frequencies=balanced",
)


@pytest.mark.parametrize(("interrupt", "options"), [(10, ()), (15, RANDOM)])
def test_training_in_steps_that_was_interrupted_equals_one_that_was_not(
    config: str, tmp_path: Path, interrupt: int, options: tuple[str, ...]
) -> None:
    straight = train(config, tmp_path / "straight", (*STEPS, *options))
    assert_same_outcome(straight, train(config, tmp_path / "resumed", (*STEPS, *options), interrupt=interrupt))


@pytest.mark.parametrize("interrupt", [3, 5])
def test_early_stopping_by_loss_is_the_same_after_an_interruption(config: str, tmp_path: Path, interrupt: int) -> None:
    """With so high a rate the loss rises soon. A training that was stopped before its result was written stays stopped."""
    options = ("train.steps=40", "train.validate_steps=2", "train.select=loss", "train.early_stopping_patience=2")
    options = (*options, "train.learning_rate=0.1")
    straight = train(config, tmp_path / "straight", options)
    epochs = [line for line in straight.history if "train_loss" in line]
    losses = [line["validation_loss"] for line in epochs]
    assert len(epochs) < 20
    assert losses.index(min(losses)) == len(epochs) - 3, "two epochs without improvement"
    assert_same_outcome(straight, train(config, tmp_path / "resumed", options, interrupt=interrupt))
    again = trainer(config, str(tmp_path / "resumed"), WORKER, overrides=(*FIXED, *options), cls=ShortPasses)
    again.run()
    assert_same_outcome(straight, again)


def test_training_in_steps_takes_exactly_these_steps_and_validates_after_each_epoch(config: str, tmp_path: Path) -> None:
    found = train(config, tmp_path / "checkpoints", STEPS)
    lines = [line for line in found.history if "train_loss" in line]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 6), (2, 12), (3, 18), (4, 22)]
    assert all("validation_loss" in line for line in lines)
    assert found.learner.schedule.last_epoch == 22
    assert found.learner.average is not None
    assert found.learner.average.decay == pytest.approx(1 - 1 / max(1, 0.05 * 22))
    result = json.loads(Path(found.settings.workspace.result(0)).read_text())
    assert result["epochs"] == 4
    assert isinstance(result["warnings"], list)


def test_saved_statistics_of_batch_norm_are_those_of_the_training_samples(config: str, tmp_path: Path) -> None:
    """The first layer's mean over samples that neither augmentation nor source dropout changed, from the store's pixels."""
    options = ("train.steps=3", "train.batch_norm_samples=999999", "train.augment=true", "train.source_dropout=0.9")
    found = train(config, tmp_path / "checkpoints", options)
    newest = Checkpoints(found.checkpoints.url).newest(lambda line: None)
    assert newest is not None
    weights = newest.eval_weights
    patches = np.concatenate([batch.sources[0] for batch in replace(found.training, augment=False).in_order(batch=500)])
    values = torch.nn.functional.conv2d(torch.from_numpy(patches), weights["branches.0.spatial.0.weight"], padding=1)
    mean = values.mean(dim=(0, 2, 3))
    # The last incomplete batch of samples is left out.
    assert torch.allclose(weights["branches.0.spatial.1.running_mean"], mean, atol=0.02 * float(values.std()))
