"""What is declared of a published data set. Minimal dependencies in this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitName = Literal["official", "random", "blocks"]
SPLITS: tuple[SplitName, ...] = ("official", "random", "blocks")


@dataclass(frozen=True)
class DataArray:
    """An array of a file; `variable` is its name in a MATLAB file, None in a raster."""

    file: str
    variable: str | None
    shape: tuple[int | None, ...]  #: in the order of the axes; None: any length
    axes: tuple[str, ...] = ("y", "x")
    dtype: str | None = None  #: as stored; None: not known

    def __str__(self) -> str:
        return self.file if self.variable is None else f"{self.file} ({self.variable})"


@dataclass(frozen=True)
class SourceArray:
    """A source of the scene: an array, or some of its bands."""

    name: str
    array: DataArray
    bands: str | None = None  #: as in the configuration, from 1
    branch: Literal["wide", "narrow"] | None = None


@dataclass(frozen=True)
class MaskSplit:
    """An official split as two arrays (y, x) that hold the class ids of training and of test pixels, else 0."""

    train: DataArray
    test: DataArray

    @property
    def arrays(self) -> tuple[DataArray, DataArray]:
        """Both arrays."""
        return self.train, self.test


@dataclass(frozen=True)
class IndexSplit:
    """An official split as two lists (n, 2) of the rows and columns, from 0, of training and of test pixels."""

    train: DataArray
    test: DataArray

    @property
    def arrays(self) -> tuple[DataArray, DataArray]:
        """Both arrays."""
        return self.train, self.test


@dataclass(frozen=True)
class DataSet:
    """A published data set as its usual files hold it."""

    name: str
    title: str
    folder: str  #: in which the files usually are; they may also be directly in the folder that the user gives
    origin: str  #: where to get it
    terms: str  #: as stated by the origin
    facts: str  #: where sums, names and shapes are from
    files: dict[str, str | None]  #: SHA-256 of each file; None: not known
    sources: tuple[SourceArray, ...]
    labels: DataArray | None  #: None: the labels are those of both masks of the official split
    classes: dict[int, str]
    unlabelled: int = 0
    counts: tuple[int, ...] | None = None  #: labelled pixels of each class; None: not known
    official: MaskSplit | IndexSplit | None = None
    block: int = 32  #: side of the blocks of the block split in pixels

    @property
    def arrays(self) -> tuple[DataArray, ...]:
        """All arrays, each once."""
        found = [source.array for source in self.sources]
        found += [self.labels] if self.labels is not None else []
        found += self.official.arrays if self.official is not None else []
        return tuple(dict.fromkeys(found))

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that can be made of it."""
        return SPLITS if self.official is not None else SPLITS[1:]
