"""Compare an exported model with what maps are computed with, on random pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.workflow.errors import StageError
from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.inference.dense import Dense

#: Largest accepted difference of a probability.
TOLERANCE = 1e-4
#: Windows, rows and columns of the inputs; exporters trace the first ones.
SHAPES = ((2, 5, 6), (1, 2, 3), (3, 9, 4))
#: Share of pixels without data.
MISSING = 0.05
#: Runs an exported model: sources to probabilities (N, classes, H, W) and class ids (N, H, W).
Run = Callable[[Sequence[Tensor]], tuple[NDArray[Any], NDArray[Any]]]


class ExportError(StageError):
    """An exported model does not compute what mibf computes; nothing was written."""


def random_inputs(bundle: Bundle, windows: int, rows: int, columns: int) -> list[Tensor]:
    """Raw values (N, C, (H + p - 1) s, (W + p - 1) s) of each source, somewhat beyond the limits, some without data."""
    random = np.random.default_rng(windows * rows * columns)
    found = []
    for source in bundle.spec.sources:
        limits, reach = bundle.scaling[source.name], bundle.spec.patch - 1
        shape = (windows, source.bands, (rows + reach) * source.scale, (columns + reach) * source.scale)
        low, high = limits.low[:, None, None], limits.high[:, None, None]
        span = np.where(high > low, high - low, 1)
        values = (low + random.uniform(-0.1, 1.1, shape) * span).astype(np.float32)
        values[random.random(shape) < MISSING / source.bands] = np.nan
        found.append(torch.from_numpy(values))
    return found


def largest_difference(name: str, run: Run, bundle: Bundle, priors: PriorSetting) -> float:
    """Run an exported model on random inputs of several shapes; return the largest difference of a probability.

    Raises:
        ExportError: a probability differs by more than `TOLERANCE`, or a class where that cannot be the cause.
    """
    ids = np.array([c.id for c in bundle.classes], np.uint8)
    largest = 0.0
    for shape in SHAPES:
        inputs = random_inputs(bundle, *shape)
        probabilities, classes = run(inputs)
        expected = _expected(bundle, priors, inputs)
        difference = float(np.abs(probabilities - expected).max())
        ranked = np.sort(expected, axis=1)
        certain = ranked[:, -1] - ranked[:, -2] > 2 * TOLERANCE
        wrong = (classes != ids[expected.argmax(axis=1)]) & certain
        if not difference <= TOLERANCE or wrong.any():
            raise ExportError(
                f"{name} was not written: on windows of {shape[1]} x {shape[2]} pixels its probabilities differ from those "
                f"of mibf by up to {difference:.2g} (accepted: {TOLERANCE:g}), and {int(wrong.sum())} classes differ. It is "
                "a fault of the exporter: try other versions of torch, onnxscript and onnxruntime."
            )
        largest = max(largest, difference)
    return largest


def _expected(bundle: Bundle, priors: PriorSetting, inputs: Sequence[Tensor]) -> NDArray[np.float64]:
    """Probabilities as maps have them, (N, classes, H, W)."""
    total: NDArray[np.float64] | None = None
    for position, member in enumerate(bundle.networks):
        dense = Dense(bundle.network(priors, position=position), temperature=member.temperature)
        windows = []
        for window in zip(*inputs, strict=True):
            scaled = [
                torch.from_numpy(bundle.scaling[source.name].apply(values.numpy(), ~np.isnan(values.numpy()).any(axis=0)))
                for source, values in zip(bundle.spec.sources, window, strict=True)
            ]
            windows.append(dense(scaled, products=["probabilities"])["probabilities"].double().numpy())
        part = np.stack(windows) * member.share
        total = part if total is None else total + part
    assert total is not None
    return total / sum(member.share for member in bundle.networks)
