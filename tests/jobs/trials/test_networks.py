"""Networks of trials: determinism, checkpoints, sources, symmetries, time and divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from jobs.trials.networks import NetworkRecipe, train_network
from jobs.trials.patches import TrialPatches, turned
from jobs.trials.samples import TrialSamples
from jobs.trials.trajectory import Trajectory
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from mibf.training.batch import BatchPlacer

SPEC = NetworkSpec((SourceSpec("optical", 2, WIDE), SourceSpec("radar", 1, NARROW, 2)), classes=2, patch=5)
RECIPE = NetworkRecipe("plain", batch_size=16, warmup=2)
TRAINING, PREDICTED = np.arange(60), np.arange(60, 90)


def train(samples: TrialSamples, **more: Any) -> Trajectory:
    given = {"spec": SPEC, "recipe": RECIPE, "checkpoints": (4, 8), "seconds": 1e9, "seed": 0, **more}
    return train_network(samples, TRAINING, PREDICTED, **given)


def test_checkpoints_do_not_change_what_follows_and_the_seed_decides(samples: TrialSamples) -> None:
    found = train(samples)
    assert list(found.logits) == [4, 8]
    assert all(own.shape == (30, 2) for own in found.logits.values())
    assert not np.array_equal(found.logits[4], found.logits[8])
    np.testing.assert_array_equal(train(samples, checkpoints=(8,)).logits[8], found.logits[8])
    np.testing.assert_array_equal(train(samples, checkpoints=(4, 20)).logits[4], found.logits[4])
    assert not np.array_equal(train(samples, seed=1).logits[8], found.logits[8])
    assert found.note is None


def test_network_learns(samples: TrialSamples) -> None:
    found = train(samples, checkpoints=(60,), recipe=replace(RECIPE, learning_rate=5e-3))
    assert (found.logits[60].argmax(axis=1) == samples.labels[PREDICTED]).mean() > 0.9


def test_predicted_labels_and_other_samples_are_not_used(samples: TrialSamples) -> None:
    labels = samples.labels.copy()
    labels[PREDICTED] = 1 - labels[PREDICTED]
    changed = replace(samples, labels=labels)
    np.testing.assert_array_equal(train(changed).logits[8], train(samples).logits[8])


def test_cosine_predicts_only_at_its_end(samples: TrialSamples) -> None:
    found = train(samples, recipe=replace(RECIPE, schedule="cosine"))
    assert list(found.logits) == [8]
    assert not np.array_equal(found.logits[8], train(samples).logits[8])


def test_single_source_ignores_the_other(samples: TrialSamples) -> None:
    recipe = replace(RECIPE, sources=("optical",), centre=True)
    spec = recipe.spec(SPEC)
    assert ([s.name for s in spec.sources], spec.without, spec.centre) == (["optical"], ("noise", "relation"), True)
    changed = replace(samples, patches=(samples.patches[0], np.zeros_like(samples.patches[1])))
    np.testing.assert_array_equal(train(samples, recipe=recipe).logits[8], train(changed, recipe=recipe).logits[8])


def test_batch_is_no_larger_than_the_samples(samples: TrialSamples) -> None:
    found = train(samples, recipe=replace(RECIPE, batch_size=500, augment=False, ema=False), checkpoints=(2,))
    assert np.isfinite(found.logits[2]).all()


def test_symmetries_are_all_eight_of_the_square() -> None:
    patch = np.random.default_rng(0).random((1, 2, 4, 4), np.float32)
    found = turned(np.repeat(patch, 8, axis=0), np.arange(8))
    assert len({one.tobytes() for one in found}) == 8
    for symmetry, one in enumerate(found):
        expected = np.stack([np.rot90(band, symmetry % 4) for band in patch[0]])
        np.testing.assert_array_equal(one, expected if symmetry < 4 else np.stack([np.fliplr(b) for b in expected]))


@pytest.mark.parametrize("names", [("optical", "radar"), ("radar",)])
@pytest.mark.parametrize("turns", [True, False])
def test_patches_gathered_on_a_device_are_those_cut_for_a_cpu(
    samples: TrialSamples, names: tuple[str, ...], turns: bool
) -> None:
    """The sources have different scales; every sample is there in all symmetries of the square."""
    chosen = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 8))
    symmetries = np.arange(len(chosen)) % 8 if turns else None
    placer = BatchPlacer(torch.device("cpu"))
    ours, theirs = (
        placer.place(TrialPatches.of(samples, names, patch=5, as_places=as_places).batch(chosen, symmetries))
        for as_places in (True, False)
    )
    assert torch.equal(ours.labels, theirs.labels)
    for one, other in zip(ours.patches(0, 160), theirs.patches(0, 160), strict=True):
        assert torch.equal(one, other)


def test_networks_of_places_learn_as_those_of_patches(samples: TrialSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    of, forms = TrialPatches.of, list[bool]()
    cut = train(samples).logits[8]

    def as_on_a_gpu(*given: Any, as_places: bool, **more: Any) -> TrialPatches:
        forms.append(as_places)
        return of(*given, as_places=True, **more)

    monkeypatch.setattr(TrialPatches, "of", as_on_a_gpu)
    np.testing.assert_allclose(train(samples).logits[8], cut, atol=1e-2)
    assert forms == [False]


def test_training_ends_where_time_would_run_out(
    samples: TrialSamples, ticking: Callable[[float], Callable[[], float]]
) -> None:
    found = train(samples, checkpoints=(2, 4, 100), seconds=40, clock=ticking(5))
    assert list(found.logits) == [2, 4]
    assert found.note == "stopped after 4 of 100 steps: 40 s are used up"


def test_divergence_is_a_note(samples: TrialSamples) -> None:
    broken = samples.patches[0].copy()
    broken[:] = np.nan
    found = train(replace(samples, patches=(broken, samples.patches[1])))
    assert found.logits == {}
    assert found.note == "diverged between steps 0 and 4"
