"""The official split of a data set as rasters of labels and subsets, drawn from its masks or lists of pixels.

Official splits have no validation pixels, which select the epoch and the temperature here. They are held out from the
training pixels: connected groups of them where there are several, so that validation is not surrounded by training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from jobs.benchmark.dataset import DataSet, IndexSplit
from mibf.errors import InputError
from pipeline.codes import CODES

#: Share of the official training pixels of each class that become validation pixels, and the seed that draws them.
HELD_OUT, SEED = 0.2, 0
#: Pixels that touch at a corner belong together.
TOUCHING = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Drawn:
    """The official split."""

    labels: NDArray[np.uint8]  #: class ids (y, x), 0 elsewhere, of the pixels that are in the split
    codes: NDArray[np.uint8]  #: subset codes (y, x), 0 elsewhere


def draw_official(
    dataset: DataSet, urls: dict[str, str], arrays: Sequence[NDArray[Any]], labels: NDArray[Any] | None
) -> Drawn:
    """Draw the official split.

    Args:
        dataset: with an official split.
        urls: of its files, for messages.
        arrays: the split's training and test array.
        labels: class ids (y, x); not needed where the split's arrays hold them.

    Raises:
        InputError: a pixel is both for training and for testing, outside the scene, or unlabelled.
    """
    official = dataset.official
    assert official is not None
    names = [f"{urls[a.file]} ({a.variable})" if a.variable else urls[a.file] for a in official.arrays]
    if isinstance(official, IndexSplit):
        assert labels is not None
        masks = [_marked(n, values, labels, dataset) for n, values in zip(names, arrays, strict=True)]
        ids = np.where(masks[0] | masks[1], labels, 0)
    else:
        masks = [np.asarray(values) != dataset.unlabelled for values in arrays]
        ids = np.where(masks[0], arrays[0], np.where(masks[1], arrays[1], 0))
    train, test = masks
    both = np.argwhere(train & test)
    if len(both):
        row, column = both[0].tolist()
        raise InputError(
            f"{names[0]} and {names[1]}: {len(both):,} pixels are in both, the first in row {row + 1}, column {column + 1}; "
            "a test pixel must not be a training pixel. Get the published files, or leave out the official split "
            "(--splits random,blocks)."
        )
    codes = np.where(test, CODES["test"], 0).astype(np.uint8)
    codes[train] = CODES["train"]
    codes[hold_out(ids, train)] = CODES["validation"]
    return Drawn(ids.astype(np.uint8), codes)


def _marked(name: str, places: NDArray[Any], labels: NDArray[Any], dataset: DataSet) -> NDArray[np.bool_]:
    """A mask (y, x) of the pixels of a list (n, 2) of rows and columns."""
    places = places.astype(np.int64)
    rows, columns = labels.shape
    inside = (places >= 0).all(axis=1) & (places < [rows, columns]).all(axis=1)
    labelled = np.zeros(len(places), bool)
    labelled[inside] = labels[tuple(places[inside].T)] != dataset.unlabelled
    if not labelled.all():
        row, column = places[~labelled][0].tolist()
        raise InputError(
            f"{name}: {int((~labelled).sum()):,} of {len(places):,} pixels have no label or are outside the "
            f"{rows} x {columns} pixels, the first in row {row}, column {column}, counted from 0. If the list counts from "
            "1, subtract 1; otherwise get the published files."
        )
    mask = np.zeros(labels.shape, bool)
    mask[tuple(places.T)] = True
    return mask


def hold_out(labels: NDArray[Any], train: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Choose validation pixels (y, x) among training pixels: `HELD_OUT` of each class, as far as it has two pixels.

    Connected groups of a class's pixels are taken in random order as long as they fit. What is then missing, as with a
    class that is one group, are the last pixels of the next group along its longer axis.
    """
    chosen = np.zeros(labels.shape, bool)
    generator = np.random.default_rng(SEED)
    for class_id in np.unique(labels[train]).tolist():
        own = train & (labels == class_id)
        total = int(own.sum())
        wanted = min(max(1, round(HELD_OUT * total)), total - 1)
        groups, number = ndimage.label(own, structure=TOUCHING)
        sizes = np.bincount(groups.ravel(), minlength=number + 1)
        taken, left = [], []
        for group in (generator.permutation(number) + 1).tolist():
            if sizes[group] <= wanted:
                taken.append(group)
                wanted -= int(sizes[group])
            else:
                left.append(group)
        chosen |= np.isin(groups, taken)
        if wanted and left:
            places = np.argwhere(groups == left[0])
            axis = int(np.ptp(places, axis=0).argmax())
            last = places[np.argsort(places[:, axis], kind="stable")[-wanted:]]
            chosen[tuple(last.T)] = True
    return chosen
