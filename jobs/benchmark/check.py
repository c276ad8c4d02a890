"""Check a user's files of a published data set: names, SHA-256, shapes, axis order, number types and class ids."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from jobs.benchmark.dataset import DataArray, DataSet
from jobs.benchmark.official import Drawn, draw_official
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import checksums, storage
from pipeline.rasters.header import RasterFile
from pipeline.rasters.matlab_raster import matlab_arrays
from pipeline.rasters.raster import header, open_raster

UNVERIFIED = "To use it nevertheless, add --unverified; the table then says so"


@dataclass(frozen=True)
class CheckedFiles:
    """The files of a data set, and what was read of them."""

    urls: dict[str, str]  #: of each file
    sums: dict[str, str]  #: SHA-256 of each file
    official: Drawn | None  #: labels and split of the official split
    notes: list[str]  #: what differs from the published files, or could not be checked


def check_files(dataset: DataSet, folder: str, *, unverified: bool) -> CheckedFiles:
    """Check the files in a folder, or in its folder of the data set's usual name.

    Args:
        dataset: what is expected.
        folder: path or URL.
        unverified: accept files with another SHA-256, number type or number of labels, with a note.

    Raises:
        InputError: a file is missing or unreadable, or is not the published one.
    """
    urls = _find(dataset, folder)
    notes: list[str] = []
    sums: dict[str, str] = {}
    known = True
    for file, url in urls.items():
        with storage.as_input_errors(url):
            sums[file] = checksums.sha256(url)[1]
        expected = dataset.files[file]
        if expected is None:
            notes.append(f"{file}: its SHA-256 is not known; only shapes, number types and labels were checked")
        elif sums[file] != expected:
            problem = f"{url}: has the SHA-256 {sums[file]}; the file of {dataset.title} has {expected}"
            if not unverified:
                raise InputError(f"{problem}. Get the file again from {dataset.origin}. {UNVERIFIED}.")
            notes.append(problem)
        known &= sums[file] == expected
    for array in dataset.arrays:
        _check_array(
            array, urls[array.file], notes, strict=not unverified, exact=sums[array.file] == dataset.files[array.file]
        )
    labels = None if dataset.labels is None else read_array(dataset.labels, urls[dataset.labels.file])
    if labels is not None and dataset.labels is not None:
        _check_ids(dataset, dataset.labels, urls, labels)
    official = None
    if dataset.official is not None:
        masks = [read_array(array, urls[array.file]) for array in dataset.official.arrays]
        if dataset.labels is None:
            for array, values in zip(dataset.official.arrays, masks, strict=True):
                _check_ids(dataset, array, urls, values)
        official = draw_official(dataset, urls, masks, labels)
        labels = official.labels if labels is None else labels
    assert labels is not None
    if not known:
        _check_counts(dataset, urls, labels, notes, strict=not unverified)
    return CheckedFiles(urls, sums, official, notes)


def _find(dataset: DataSet, folder: str) -> dict[str, str]:
    """The URLs of all files."""
    places = (folder, storage.join(folder, dataset.folder))
    found: dict[str, str] = {}
    for file in dataset.files:
        candidates = [storage.join(place, file) for place in places]
        there = next((url for url in candidates if storage.exists(url)), None)
        found |= {} if there is None else {file: there}
    missing = [file for file in dataset.files if file not in found]
    if missing:
        raise InputError(
            f"{places[0]}: {', '.join(missing)} not found, neither there nor in {places[1]}. {dataset.title} consists of "
            f"{', '.join(dataset.files)}; get it from {dataset.origin} (terms: {dataset.terms}), and give its folder with "
            "--data."
        )
    return {file: found[file] for file in dataset.files}


def read_array(array: DataArray, url: str) -> NDArray[Any]:
    """Read an array completely, with its axes as declared."""
    if array.variable is not None:
        values = _matlab_array(array, url)
        return np.asarray(values.toarray() if scipy.sparse.issparse(values) else values[(slice(None),) * len(values.shape)])
    with open_raster(RasterFile(url)) as raster:
        rows, columns = raster.header.grid.shape
        return np.asarray(raster.read(Window(0, 0, rows, columns))[0][0])


def _matlab_array(array: DataArray, url: str) -> Any:
    arrays = matlab_arrays(url, checksums.input_fingerprint(url))
    if array.variable not in arrays:
        raise InputError(
            f"{url}: has no variable {array.variable!r}; it has {', '.join(arrays) or 'none'}. It is not the published "
            "file: get it again, or rename the variable."
        )
    return arrays[array.variable]


def _described(array: DataArray, url: str) -> tuple[tuple[int, ...], str]:
    """Shape, in the file's order of axes, and number type."""
    if array.variable is not None:
        values = _matlab_array(array, url)
        return tuple(values.shape), np.dtype(values.dtype).name
    head = header(RasterFile(url))
    bands = (len(head.dtypes),) if "band" in array.axes or len(head.dtypes) > 1 else ()
    return (*head.grid.shape, *bands), head.dtypes[0]


def _check_array(array: DataArray, url: str, notes: list[str], *, strict: bool, exact: bool) -> None:
    """Check shape, axis order and number type; `exact`: the file is the published one."""
    shape, dtype = _described(array, url)
    where = url if array.variable is None else f"{url} ({array.variable})"
    if not _fits(shape, array.shape):
        expected = _axes(array.axes, array.shape)
        for order in permutations(range(len(shape))):
            if len(shape) == len(array.shape) and _fits(tuple(shape[i] for i in order), array.shape):
                there = [array.axes[order.index(i)] for i in range(len(shape))]
                raise InputError(
                    f"{where}: its axes are in another order, {_axes(there, shape)} instead of {expected}. Save it again "
                    f"with permute(data, [{' '.join(str(i + 1) for i in order)}]) in MATLAB, or get the published file."
                )
        raise InputError(
            f"{where}: has the shape {' x '.join(map(str, shape))} instead of {expected}. It is not the published file, or "
            "a part of it; get it again."
        )
    if array.dtype is not None and dtype != array.dtype and not exact:
        problem = f"{where}: holds {dtype} instead of {array.dtype}"
        if strict:
            raise InputError(f"{problem}; its values may have been scaled. Get the published file. {UNVERIFIED}.")
        notes.append(problem)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or n == e for n, e in zip(shape, expected, strict=True))


def _axes(axes: Any, shape: Any) -> str:
    return f"({', '.join(axes)}) = ({', '.join('n' if n is None else str(n) for n in shape)})"


def _check_ids(dataset: DataSet, array: DataArray, urls: dict[str, str], values: NDArray[Any]) -> None:
    """Check that labels are ids of the data set's classes."""
    allowed = {*dataset.classes, dataset.unlabelled}
    unknown = sorted(v for v in np.unique(values).tolist() if v not in allowed)
    if unknown:
        listed = ", ".join(f"{v:g}" for v in unknown[:5]) + (" and others" if len(unknown) > 5 else "")
        raise InputError(
            f"{urls[array.file]}{'' if array.variable is None else f' ({array.variable})'}: holds the class ids {listed}; "
            f"{dataset.title} has {min(dataset.classes)} to {max(dataset.classes)}, and {dataset.unlabelled} where there is "
            "no label. Get the published file, or renumber the classes."
        )


def _check_counts(dataset: DataSet, urls: dict[str, str], labels: NDArray[Any], notes: list[str], *, strict: bool) -> None:
    """Compare the number of labels of each class with the published one."""
    for (class_id, name), expected in zip(dataset.classes.items(), dataset.counts or (), strict=False):
        found = int((labels == class_id).sum())
        if found == expected:
            continue
        array = dataset.labels or dataset.arrays[-1]
        problem = f"{urls[array.file]}: {found:,} labels of class {class_id} ({name}) instead of {expected:,}"
        if strict:
            raise InputError(f"{problem}. Get the published file. {UNVERIFIED}.")
        notes.append(problem)
