"""Plots of the report: training curves and reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jobs.report.pictures import svg
from mibf.bundle.classes import ClassName

SUBSET_COLORS = {"train": "#0072b2", "validation": "#e69f00", "test": "#cc79a7"}
#: Diagrams of classes in a row.
ACROSS = 4


def training_curve(history: list[dict[str, Any]]) -> str:
    """Plot cross-entropy and overall accuracy by epoch for training and validation."""
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    epochs = [line["epoch"] for line in history]
    lines = {"train": history, "validation": [line for line in history if "validation_loss" in line]}
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("cross_entropy", "overall_accuracy"),
        ("cross-entropy (nats)", "overall accuracy"),
        strict=True,
    ):
        for subset, own in lines.items():
            points = [line["epoch"] for line in own], [line[f"{subset}_{key}"] for line in own]
            if own:
                axes.plot(*points, "o-" if len(own) <= 50 else "-", color=SUBSET_COLORS[subset], label=subset)
        axes.set(xlabel="epoch", title=title)
        axes.set_xticks(epochs if len(epochs) <= 12 else epochs[:: math.ceil(len(epochs) / 12)])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False)
    return svg(figure)


def reliability_plot(bins: list[dict[str, Any]]) -> str:
    """Plot accuracy against confidence of the test samples by bin, and the number of samples per bin."""
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = [b for b in bins if b["samples"]]
    left.plot([0, 1], [0, 1], color="#99a", linewidth=1, linestyle="--")
    left.plot([b["confidence"] for b in known], [b["accuracy"] for b in known], "o-", color=SUBSET_COLORS["test"])
    left.set(xlabel="confidence", title="accuracy", xlim=(0, 1), ylim=(0, 1))
    edges = np.arange(len(bins)) / len(bins)
    right.bar(edges, [b["samples"] for b in bins], width=1 / len(bins), align="edge", color=SUBSET_COLORS["test"])
    right.set(xlabel="confidence", title="test samples", xlim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return svg(figure)


def class_reliability_plot(classes: Sequence[ClassName], bins: Sequence[list[dict[str, Any]]] | None) -> str | None:
    """Plot accuracy against confidence of the test samples that are predicted as each class; None in earlier evaluations.

    The area of a point is in proportion to the samples of its bin.
    """
    if bins is None:
        return None
    rows = math.ceil(len(classes) / ACROSS)
    figure = Figure(figsize=(2.4 * ACROSS, 2.5 * rows), layout="constrained")
    every = figure.subplots(rows, ACROSS, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, each, own in zip(every, classes, bins, strict=False):
        known = [b for b in own if b["samples"]]
        total = sum(b["samples"] for b in known)
        axes.plot([0, 1], [0, 1], color="#99a", linewidth=1, linestyle="--")
        confidences, accuracies = ([b[key] for b in known] for key in ("confidence", "accuracy"))
        sizes = [4 + 120 * b["samples"] / total for b in known]
        axes.plot(confidences, accuracies, color=SUBSET_COLORS["test"], linewidth=1)
        axes.scatter(confidences, accuracies, sizes, color=SUBSET_COLORS["test"], alpha=0.7)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"{each.name} ({total:,})", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.supxlabel("confidence", fontsize="medium")
    figure.supylabel("accuracy", fontsize="medium")
    for axes in every[len(classes) :]:
        axes.set_visible(False)
    return svg(figure)
