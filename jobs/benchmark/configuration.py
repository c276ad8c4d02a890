"""The configuration of each run of a benchmark: one per split and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.benchmark.check import CheckedFiles
from jobs.benchmark.dataset import DataSet, SourceArray, SplitName
from jobs.config.config import Config
from jobs.config.loader import configure
from mibf.errors import InputError
from pipeline.io import storage

#: Shares of each class that are training and validation pixels of the random split: the paper's 10 %, and 5 % held out.
RANDOM_TRAIN, RANDOM_VALIDATION = 0.1, 0.05
#: Keys that the benchmark sets itself.
OWN_KEYS = ("name", "workspace", "run", "scenes", "classes", "split", "train.seed", "train.seeds")


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    split: SplitName
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Its name in files and messages."""
        return f"{self.split}-seed-{self.seed}"


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that no override concerns what the benchmark sets itself.

    Raises:
        InputError: one does.
    """
    for override in overrides:
        path = override.partition("=")[0]
        own = next((key for key in OWN_KEYS if path == key or path.startswith(f"{key}.")), None)
        if own is not None:
            raise InputError(
                f"--set {override}: the benchmark sets {own} itself, from the data set, --workspace, --splits and --seeds; "
                "to change it, edit a configuration in WORKSPACE/configurations and use `mibf run`."
            )


def labels_url(workspace: str) -> str:
    """The labels that are drawn from two masks."""
    return storage.join(workspace, "inputs", "labels.tif")


def split_url(workspace: str) -> str:
    """The official split as a raster."""
    return storage.join(workspace, "inputs", "official.tif")


def make_cell(
    dataset: DataSet, files: CheckedFiles, workspace: str, split: SplitName, seed: int, overrides: Sequence[str]
) -> Cell:
    """Make the configuration of a split and seed.

    The seed is that of training, and of the random and the block split. Runs on the official split share their stores.

    Raises:
        InputError: an override is not allowed.
    """
    sources = {source.name: _source(source, files) for source in dataset.sources}
    if dataset.labels is None:
        labels: dict[str, Any] = {"url": labels_url(workspace), "nodata": 0}
    else:
        labels = _file(files.urls[dataset.labels.file], dataset.labels.variable) | {"nodata": dataset.unlabelled}
    splits: dict[SplitName, dict[str, Any]] = {
        "official": {"method": "raster", "url": split_url(workspace)},
        "random": {"method": "random", "train": RANDOM_TRAIN, "validation": RANDOM_VALIDATION, "seed": seed},
        "blocks": {"method": "blocks", "block": dataset.block, "seed": seed},
    }
    values: dict[str, Any] = {
        "name": dataset.name,
        "workspace": storage.join(workspace, split if split == "official" else f"{split}-seed-{seed}"),
        "run": f"seed-{seed}",
        "scenes": [{"name": dataset.name, "grid": {"like": dataset.sources[0].name}, "sources": sources, "labels": labels}],
        "classes": [{"id": class_id, "name": name} for class_id, name in dataset.classes.items()],
        "split": splits[split],
        "train": {"seed": seed},
    }
    return Cell(split, seed, configure(values, name=f"mibf benchmark {dataset.name}", overrides=overrides))


def _source(source: SourceArray, files: CheckedFiles) -> dict[str, Any]:
    array = source.array
    section = _file(files.urls[array.file], array.variable)
    section |= {} if array.variable is None else {"axes": list(array.axes)}
    section |= {} if source.bands is None else {"bands": source.bands}
    return section | ({} if source.branch is None else {"branch": source.branch})


def _file(url: str, variable: str | None) -> dict[str, Any]:
    return {"url": url} if variable is None else {"url": url, "variable": variable}
