"""Small files in the layouts of published data sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from jobs.benchmark import catalog
from jobs.benchmark.dataset import DataArray, DataSet, IndexSplit, MaskSplit

ROWS, COLUMNS, BANDS = 60, 72, 3


@dataclass(frozen=True)
class SmallDataSet:
    """A data set of the catalog with small arrays."""

    dataset: DataSet
    folder: Path
    labels: NDArray[np.uint8]

    def write(self, file: str, **variables: Any) -> None:
        """Write a MATLAB file, in place of an earlier one."""
        scipy.io.savemat(self.folder / file, variables)

    def rehash(self, monkeypatch: pytest.MonkeyPatch) -> DataSet:
        """Declare the sums of the files as they are."""
        sums = {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in self.dataset.files}
        return declare(replace(self.dataset, files=sums), monkeypatch)


def declare(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Put an entry into the catalog."""
    monkeypatch.setitem(catalog.CATALOG, dataset.name, dataset)
    return dataset


def scene() -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float32]]:
    """Labels of two classes (y, x) in squares of 6 pixels, 0 on a fifth; a cube that shows them; and a second source."""
    generator = np.random.default_rng(5)
    squares = generator.integers(1, 3, (ROWS // 6, COLUMNS // 6))
    labels = np.kron(squares, np.ones((6, 6), int)).astype(np.uint8)
    cube = (1000 + 300 * labels[..., None].astype(int) + generator.integers(0, 60, (ROWS, COLUMNS, BANDS))).astype(np.uint16)
    labels[generator.random(labels.shape) < 0.2] = 0
    return labels, cube, generator.random((ROWS, COLUMNS)).astype(np.float32)


def with_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDataSet:
    """The layout of Houston 2013 and Trento: a cube, LiDAR, and class ids of training and of test pixels."""
    labels, cube, lidar = scene()
    train = np.where(np.arange(COLUMNS) < COLUMNS // 2, labels, 0)
    entry = catalog.CATALOG["houston2013"]
    cube_array, lidar_array = (source.array for source in entry.sources)
    masks = MaskSplit(*(replace(array, shape=(ROWS, COLUMNS)) for array in _masks(entry)))
    sources = (
        replace(entry.sources[0], array=replace(cube_array, shape=(ROWS, COLUMNS, BANDS))),
        replace(entry.sources[1], array=replace(lidar_array, shape=(ROWS, COLUMNS))),
    )
    small = replace(
        entry, sources=sources, official=masks, classes={1: "Healthy grass", 2: "Stressed grass"}, counts=None, block=16
    )
    found = SmallDataSet(small, folder, labels)
    found.write("HSI.mat", HSI=cube)
    found.write("LiDAR.mat", LiDAR=lidar)
    found.write("TRLabel.mat", TRLabel=train)
    found.write("TSLabel.mat", TSLabel=labels - train)
    return replace(found, dataset=found.rehash(monkeypatch))


def _masks(entry: DataSet) -> tuple[DataArray, DataArray]:
    assert isinstance(entry.official, MaskSplit)
    return entry.official.arrays


def with_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDataSet:
    """The layout of Augsburg: a cube, SAR, labels, and the rows and columns of training and of test pixels, from 0."""
    labels, cube, _ = scene()
    entry = catalog.CATALOG["augsburg"]
    assert isinstance(entry.official, IndexSplit)
    shapes = ((ROWS, COLUMNS, BANDS), (ROWS, COLUMNS, 2))
    small = replace(
        entry,
        sources=tuple(
            replace(source, array=replace(source.array, shape=shape))
            for source, shape in zip(entry.sources, shapes, strict=True)
        ),
        labels=DataArray("augsburg_gt.mat", "augsburg_gt", (ROWS, COLUMNS), dtype="uint8"),
        classes={1: "Forest", 2: "Residential area"},
        counts=None,
    )
    found = SmallDataSet(small, folder, labels)
    places = np.argwhere(labels > 0).astype(np.uint16)
    found.write("augsburg_hsi.mat", augsburg_hsi=cube)
    found.write("augsburg_sar.mat", augsburg_sar=np.zeros((ROWS, COLUMNS, 2)))
    found.write("augsburg_gt.mat", augsburg_gt=labels)
    found.write("augsburg_index.mat", augsburg_train=places[::5], augsburg_test=places[1::5])
    return replace(found, dataset=found.rehash(monkeypatch))
