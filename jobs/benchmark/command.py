"""Run a benchmark: prepare, train, evaluate and fit baselines for every split and seed, and write the table.

Whatever is finished is kept: stages by their fingerprints, a cell's figures as long as its evaluation is the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from jobs.baseline.command import baseline
from jobs.baseline.table import HEADINGS, MODEL_ROWS, Row
from jobs.benchmark.catalog import CATALOG
from jobs.benchmark.check import CheckedFiles, check_files
from jobs.benchmark.configuration import Cell, check_overrides, labels_url, make_cell, split_url
from jobs.benchmark.dataset import SPLITS, DataSet, SplitName
from jobs.benchmark.table import Benchmark, CellResult
from jobs.config.config import Config
from jobs.runtime.progress import info
from jobs.workflow.manifest import Manifest, StageName
from jobs.workflow.saved_config import as_run
from mibf.errors import InputError
from pipeline.codes import SUBSETS
from pipeline.io import storage
from pipeline.io.lease import Lease, acquire

#: Runs a stage of a configuration unless it is current.
Stage = Callable[[Config, StageName], Manifest]


@dataclass(frozen=True)
class Plan:
    """What a benchmark would run."""

    dataset: DataSet
    cells: Sequence[tuple[Cell, bool]]  #: each with whether it has finished before
    notes: list[str]

    def lines(self) -> list[str]:
        """Format as text."""
        lines = [f"{self.dataset.title}: files checked; {len(self.cells)} runs of prepare, train, evaluate and baseline"]
        lines += [
            f"  {cell.name:<20} {'finished before' if done else 'to run'}: {cell.config.workspace}"
            for cell, done in self.cells
        ]
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "name": self.dataset.name,
            "cells": [
                {"split": c.split, "seed": c.seed, "workspace": c.config.workspace, "finished": done}
                for c, done in self.cells
            ],
            "notes": self.notes,
        }


def find_dataset(name: str) -> DataSet:
    """Return the data set of a name.

    Raises:
        InputError: there is none.
    """
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-").replace(" ", ""), CATALOG, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise InputError(f"{name}: unknown data set{hint} Known are {', '.join(CATALOG)}.")


def benchmark(
    name: str,
    folder: str,
    stage: Stage,
    *,
    workspace: str,
    splits: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    block: int | None = None,
    overrides: Sequence[str] = (),
    unverified: bool = False,
    plan: bool = False,
) -> Benchmark | Plan:
    """Run a benchmark, or with `plan` only say what would run.

    Args:
        name: of the data set.
        folder: of its files, a path or URL.
        stage: runs a stage unless it is current.
        workspace: folder or URL for the results.
        splits: official, random or blocks; all that the data set has by default.
        seeds: of training, and of the random and the block split.
        block: side of the blocks in pixels, if not that of the catalog.
        overrides: `key.path=value`, for every run.
        unverified: accept files that are not the published ones.
        plan: write nothing.

    Raises:
        InputError: name, files, splits, seeds or overrides are refused, or no run was possible.
        LeaseHeldError: another run holds the workspace.
    """
    dataset = find_dataset(name)
    dataset = dataset if block is None else replace(dataset, block=block)
    chosen = _chosen(dataset, splits)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {','.join(map(str, seeds))}: give different integers from 0, such as 0,1,2.")
    check_overrides(overrides)
    workspace = storage.absolute(workspace)
    files = check_files(dataset, storage.absolute(folder), unverified=unverified)
    cells = [make_cell(dataset, files, workspace, split, seed, overrides) for split in chosen for seed in seeds]
    if dataset.official is None and splits is None:
        files.notes.append(f"{dataset.name} has no official split")
    if plan:
        return Plan(dataset, [(cell, storage.exists(_result_url(workspace, cell))) for cell in cells], files.notes)
    storage.check_writable(workspace)
    with acquire(workspace, what=f"mibf benchmark {name}") as lease:
        _write_inputs(dataset, files, workspace, lease)
        return _run(dataset, files, cells, stage, workspace, lease)


def _chosen(dataset: DataSet, splits: Sequence[str] | None) -> list[SplitName]:
    """The splits to run, in order."""
    wanted = dataset.splits if splits is None else splits
    for split in wanted:
        if split not in SPLITS:
            raise InputError(f"--splits {split}: unknown split; use {', '.join(SPLITS)}.")
        if split not in dataset.splits:
            raise InputError(f"--splits {split}: {dataset.name} has no official split; use {','.join(dataset.splits)}.")
    return [split for split in SPLITS if split in wanted]


def _write_inputs(dataset: DataSet, files: CheckedFiles, workspace: str, lease: Lease) -> None:
    """Write the official split, and the labels where masks hold them; unchanged files are kept, as stores depend on them."""
    if files.official is None:
        return
    rasters = {split_url(workspace): files.official.codes}
    if dataset.labels is None:
        rasters[labels_url(workspace)] = files.official.labels
    for url, values in rasters.items():
        content = _geotiff(values)
        if not storage.exists(url) or storage.read_bytes(url) != content:
            lease.check()
            storage.write_bytes(url, content)


def _geotiff(values: NDArray[np.uint8]) -> bytes:
    rows, columns = values.shape
    with MemoryFile() as memory:
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": rows, "width": columns, "nodata": 0}
        with memory.open(**profile, compress="deflate") as dataset:
            dataset.write(values, 1)
        return bytes(memory.read())


def _result_url(workspace: str, cell: Cell) -> str:
    return storage.join(workspace, "cells", f"{cell.name}.json")


def _run(
    dataset: DataSet, files: CheckedFiles, cells: Sequence[Cell], stage: Stage, workspace: str, lease: Lease
) -> Benchmark:
    """Run every cell and write the table after each."""
    refused: dict[str, str] = {}
    results: list[CellResult] = []
    error: InputError | None = None
    for number, cell in enumerate(cells, 1):
        info(f"== {dataset.name}: {cell.name} ({number} of {len(cells)})")
        lease.check()
        storage.write_bytes(storage.join(workspace, "configurations", f"{cell.name}.yaml"), as_run(cell.config).encode())
        try:
            prepared = stage(cell.config, "prepare")
        except InputError as caught:  # such as a class without training pixels in this assignment of blocks
            refused[cell.name], error = str(caught), caught
            info(f"{cell.name}: {caught}")
            continue
        stage(cell.config, "train")
        results.append(_measure(cell, prepared, stage(cell.config, "evaluate"), workspace, lease))
        _write(_benchmark(dataset, files, results, refused, workspace), lease)
    if error is not None and not results:
        raise error
    found = _benchmark(dataset, files, results, refused, workspace)
    _write(found, lease)
    return found


def _benchmark(
    dataset: DataSet, files: CheckedFiles, results: Sequence[CellResult], refused: dict[str, str], workspace: str
) -> Benchmark:
    return Benchmark(
        dataset.name, dataset.title, dataset.origin, files.sums, files.notes, list(results), dict(refused), workspace
    )


def _write(found: Benchmark, lease: Lease) -> None:
    lease.check()
    storage.write_json(storage.join(found.workspace, "benchmark.json"), found.to_json())
    storage.write_bytes(storage.join(found.workspace, "benchmark.md"), ("\n".join(found.lines()) + "\n").encode())


def _measure(cell: Cell, prepared: Manifest, evaluated: Manifest, workspace: str, lease: Lease) -> CellResult:
    """The figures of a cell; those of an earlier call if its evaluation is the same."""
    url = _result_url(workspace, cell)
    earlier = _earlier(url)
    if earlier is not None and earlier.evaluation == evaluated.identity:
        return earlier
    found = baseline(cell.config, test=True)
    (table,) = [table for table in found.tables if table.subset == "test"]
    counts: dict[str, dict[str, int]] = prepared.figures["counts"]
    (overlap,) = prepared.figures["overlap"].values()
    result = CellResult(
        split=cell.split,
        seed=cell.seed,
        evaluation=evaluated.identity,
        samples={subset: sum(counts[subset].values()) for subset in SUBSETS},
        overlap=overlap,
        models={_trained_model(cell.config): {metric: evaluated.figures[metric] for metric in HEADINGS}}
        | {_model(row): {metric: row.figures[metric] for metric in HEADINGS} for row in table.baselines},
        classified=table.samples,
        left_out=found.left_out,
    )
    lease.check()
    storage.write_json(url, result.to_json())
    return result


def _earlier(url: str) -> CellResult | None:
    """The stored figures of a cell; None if there are none, or none that this version can read."""
    try:
        return CellResult(**storage.read_json(url))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _trained_model(config: Config) -> str:
    """The name of the trained model, the same for all seeds, whatever the recipe `auto` chooses for each of them."""
    train = config.train
    is_network = config.model.kind == "mibf" and train.recipe != "auto" and not train.ensemble and not train.blend
    return MODEL_ROWS["the network" if is_network else "the model"]


def _model(row: Row) -> str:
    """A baseline in words: learner, features, class weights."""
    features = {"values": "pixel values", "neighborhood": "values and 7x7 means and deviations"}
    parts = [row.learner, None if row.features is None else features.get(row.features, row.features)]
    return ", ".join([*(part for part in parts if part), *(["balanced"] if row.weights == "balanced" else [])])
