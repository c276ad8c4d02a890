"""Fit the thresholds of a model's prediction sets to validation pixels.

Temperatures, shares and the choice of the model may depend on the same pixels, so that the sets are slightly too small; what
they cover is measured on test pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.config.config import Config
from jobs.runtime.progress import pluralize, progress_bar, warn
from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.ensemble import mixture_log_probabilities
from mibf.metrics.prediction_sets import PredictionSets, fit_thresholds
from pipeline.sampling.drawn_pixels import draw_pixels
from pipeline.sampling.predictions import known_priors
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore

#: Validation pixels that thresholds are fitted to, at most, and of each class at least.
SAMPLES, LEAST = 20_000, 200
#: Side in pixels of the blocks where the split has none of its own, as for the bootstrap of the baselines.
SIDE = 64


def with_prediction_sets(config: Config, bundle: Bundle, stores: Sequence[PatchStore]) -> Bundle:
    """Return a model with thresholds that fit validation pixels; without any if there are none.

    Args:
        config: has the split and the seed of the draw of pixels.
        bundle: complete, with its temperatures.
        stores: without their test pixels.
    """
    seed, side = config.train.every_seed[0], config.split_block or SIDE
    drawn = list(draw_pixels(stores, "validation", limit=SAMPLES, least=LEAST, seed=seed, report=warn))
    if not drawn:
        return replace(bundle, prediction_sets=None)
    model, priors = SampleModel(bundle, warn), known_priors(bundle)
    corrections = {c: None if c == "trained" else bundle.correction(c) for c in priors}
    temperatures, shares = [m.temperature for m in bundle.members], [m.share for m in bundle.members]
    found: dict[PriorSetting, list[Any]] = {choice: [] for choice in priors}
    with progress_bar("prediction sets", sum(len(pixels.labels) for pixels in drawn), unit="samples") as advance:
        for pixels in drawn:
            for logits, _ in model.batches(stores[pixels.store], pixels):
                for choice, correction in corrections.items():
                    likely = mixture_log_probabilities(logits, temperatures, shares, correction).exp()
                    found[choice].append(likely.float().cpu().numpy())
                advance(len(logits[0]))
    labels = np.concatenate([pixels.labels for pixels in drawn])
    places = np.concatenate(
        [
            np.stack(
                [np.full_like(p.rows, p.store), (p.window.y + p.rows) // side, (p.window.x + p.columns) // side], axis=1
            )
            for p in drawn
        ]
    )
    _, block = np.unique(places, axis=0, return_inverse=True)
    block = block.reshape(-1)
    classes = bundle.spec.classes
    # Rare classes are drawn in larger shares.
    available = sample_table(stores, "validation", report=warn).counts
    weights = (available / np.maximum(1, np.bincount(labels, minlength=classes)))[labels]
    sets = PredictionSets(
        side=side,
        pixels=len(labels),
        blocks=int(block.max()) + 1,
        class_blocks=tuple(len(np.unique(block[labels == position])) for position in range(classes)),
        by_priors={c: fit_thresholds(np.concatenate(own), labels, block, weights) for c, own in found.items()},
    )
    return replace(bundle, prediction_sets=sets)


def describe(sets: PredictionSets) -> str:
    """Say what the thresholds were fitted to."""
    return (
        f"prediction sets fitted to {sets.pixels:,} validation pixels in {pluralize(sets.blocks, 'blocks')} of "
        f"{sets.side} x {sets.side} pixels"
    )
