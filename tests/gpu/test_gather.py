"""Samples that are classified on the device: patches gathered from windows there are those cut on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.config.config import Config
from jobs.trials.patches import TrialPatches
from jobs.trials.samples import read_trial_samples
from jobs.workflow.workspace import Workspace
from mibf.training.batch import BatchPlacer
from pipeline.sampling.drawn_pixels import every_pixel
from pipeline.sampling.predictions import predict
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore
from tests.support.gpu import DEVICE, ON_GPU, Figures

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
CPU = torch.device("cpu")


def store_of(config: Config) -> PatchStore:
    return PatchStore(Workspace.of(config).store(config.scenes[0].name), without=("test",))


def test_evaluation_classifies_as_on_the_cpu(small: Config, figures: Figures) -> None:
    bundle = Workspace.of(small).read_bundle()
    sampler = Sampler([store_of(small)], bundle.scaling, bundle.spec.patch, "validation")
    ours, theirs = (
        predict(bundle, sampler, 1e-4, lambda samples: None, device=device).uncalibrated.confusion().counts
        for device in (DEVICE, CPU)
    )
    assert ours.sum() == theirs.sum() == sampler.samples()
    difference = float(np.abs(ours - theirs).sum() / 2 / theirs.sum())
    figures.add("evaluation against CPU", other_labels=difference)
    assert difference < 1e-3


def test_members_of_a_model_get_the_patches_of_the_cpu(small: Config) -> None:
    bundle, store = Workspace.of(small).read_bundle(), store_of(small)
    ours, theirs = (SampleModel(bundle, device=device) for device in (DEVICE, CPU))
    pixels = next(every_pixel([store], "validation"))
    given, other = (model.read(store, pixels) for model in (ours, theirs))
    assert (given.buffer is not None) == ON_GPU
    part = slice(500, 900)
    for one, expected in zip(ours._patches(given, part), theirs._patches(other, part), strict=True):
        assert torch.equal(one.cpu(), expected)


def test_trials_train_on_the_patches_of_the_cpu(small: Config) -> None:
    bundle = Workspace.of(small).read_bundle()
    samples = read_trial_samples([store_of(small)], bundle.scaling, patch=bundle.spec.patch, seed=0, limit=2000)
    names = [source.name for source in samples.sources]
    generator = np.random.default_rng(0)
    chosen, turns = generator.permutation(len(samples))[:300], generator.integers(0, 8, 300)
    ours, theirs = (
        BatchPlacer(device)
        .place(TrialPatches.of(samples, names, patch=bundle.spec.patch, as_places=as_places).batch(chosen, turns))
        .patches(0, 300)
        for device, as_places in ((DEVICE, True), (CPU, False))
    )
    for one, expected in zip(ours, theirs, strict=True):
        assert torch.equal(one.cpu(), expected)
