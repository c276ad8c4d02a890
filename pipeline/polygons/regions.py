"""Connected regions of one class across windows, which are visited row by row.

A region that touches no seam is complete when its window is. Those that touch seams are joined by a union-find, and are
complete when the last row of pixels that was visited has none of them: what is in memory are the regions that this row cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from pipeline.grid import Window
from pipeline.polygons import NODATA
from pipeline.polygons.grow import Connectivity


def label_window(classes: NDArray[np.uint8], connectivity: Connectivity) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Label the regions of a window: labels (height, width), 0 without data, and the class of each label.

    Equal windows get equal labels.
    """
    labels = label(classes, background=int(NODATA), connectivity=1 if connectivity == 4 else 2).astype(np.int32)
    of_label = np.full(int(labels.max(initial=0)) + 1, NODATA)
    of_label[labels.ravel()] = classes.ravel()
    of_label[0] = NODATA
    return labels, of_label


def at_seams(labels: NDArray[np.int32], window: Window, shape_yx: tuple[int, int]) -> NDArray[np.int32]:
    """The labels of a window that touch another window, ascending."""
    rows, columns = shape_yx
    sides = [
        side
        for side, inside in (
            (labels[0], window.y > 0),
            (labels[-1], window.y + window.height < rows),
            (labels[:, 0], window.x > 0),
            (labels[:, -1], window.x + window.width < columns),
        )
        if inside
    ]
    found = np.unique(np.concatenate(sides)) if sides else np.zeros(0, np.int32)
    return np.asarray(found[found > 0])


class SeamRegions:
    """Joins the regions of windows that touch seams. They are numbered from 1, in the order of windows and labels."""

    def __init__(self, shape_yx: tuple[int, int], connectivity: Connectivity) -> None:
        self._shape, self._shifts = shape_yx, (0,) if connectivity == 4 else (-1, 0, 1)
        self._parents: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._count = 0
        #: Numbers and classes of the last row above the windows, and of their own last row; padded by one pixel.
        self._above = self._blank()
        self._below = self._blank()
        self._left: tuple[NDArray[np.int64], NDArray[np.uint8]] | None = None

    def _blank(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        return np.zeros(self._shape[1] + 2, np.int64), np.full(self._shape[1] + 2, NODATA)

    def add(self, window: Window, labels: NDArray[np.int32], classes: NDArray[np.uint8], seam: NDArray[np.int32]) -> range:
        """Add the regions `seam` of a window (`at_seams`); return their numbers, in that order."""
        numbers = range(self._count + 1, self._count + 1 + len(seam))
        self._count += len(seam)
        for number in numbers:
            self._parents[number], self._members[number] = number, [number]
        of_label = np.zeros(len(classes), np.int64)
        of_label[seam] = numbers
        if window.y > 0:
            self._join(of_label[labels[0]], classes[labels[0]], *self._part(self._above, window))
        if window.x > 0 and self._left is not None:
            self._join(of_label[labels[:, 0]], classes[labels[:, 0]], *self._left)
        if window.y + window.height < self._shape[0]:
            below, after = self._part(self._below, window)
            below[1:-1], after[1:-1] = of_label[labels[-1]], classes[labels[-1]]
        right = labels[:, -1]
        self._left = np.pad(of_label[right], 1), np.pad(classes[right], 1, constant_values=NODATA)
        return numbers

    @staticmethod
    def _part(
        row: tuple[NDArray[np.int64], NDArray[np.uint8]], window: Window
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The part of a row along a window, with a pixel more at both ends."""
        return row[0][window.x : window.x + window.width + 2], row[1][window.x : window.x + window.width + 2]

    def _join(
        self,
        numbers: NDArray[np.int64],
        classes: NDArray[np.uint8],
        others: NDArray[np.int64],
        of_others: NDArray[np.uint8],
    ) -> None:
        """Join the regions of two lines of pixels next to each other where classes are equal; the second has a margin."""
        length = len(numbers)
        for shift in self._shifts:
            along = slice(1 + shift, 1 + shift + length)
            same = (classes == of_others[along]) & (numbers > 0) & (others[along] > 0)
            for one, other in np.unique(np.stack([numbers[same], others[along][same]]), axis=1).T.tolist():
                self._union(one, other)

    def _union(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        if one == other:
            return
        if len(self._members[one]) < len(self._members[other]):
            one, other = other, one
        self._parents[other] = one
        self._members[one] += self._members.pop(other)

    def root(self, number: int) -> int:
        """The number that stands for the whole region that a number belongs to, as known so far."""
        parents = self._parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    def end_row(self) -> list[Sequence[int]]:
        """End a row of windows: return the regions that are complete, each as the numbers of its parts."""
        still = {self.root(number) for number in np.unique(self._below[0]).tolist() if number}
        self._above, self._below, self._left = self._below, self._blank(), None
        complete = [self._members.pop(root) for root in list(self._members) if root not in still]
        for members in complete:
            for number in members:
                del self._parents[number]
        return list(complete)
