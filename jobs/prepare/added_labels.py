"""Labels that are added to those of a scene: checked, merged once the scene is split, and counted for a note."""

from __future__ import annotations

from collections import Counter

import numpy as np
from odc.geo.geobox import GeoBox

from jobs.config.resolve import added_labels
from jobs.config.scene import SceneSection
from jobs.runtime.progress import pluralize
from mibf.bundle.classes import ClassName
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.parallel.executor import Executor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.label_counts import LabelGrid
from pipeline.scenes.labels import OpenLabels, open_labels, refuse_unknown
from pipeline.scenes.split import AddedLabels, AddedSplit, EntireScene, RandomSplit, Split


def open_added(
    scene: SceneSection, grid: GeoBox, classes: tuple[ClassName, ...], *, like: RasterFile | None, area: AreaMask | None
) -> tuple[OpenLabels, ...]:
    """Open the labels that are added to those of a scene; arguments and errors are those of `open_labels`."""
    return tuple(open_labels(each, grid, classes, like=like, area=area) for each in added_labels(scene))


def all_labels(own: OpenLabels, added: tuple[OpenLabels, ...]) -> OpenLabels:
    """Return the labels of a scene, own and added, wherever they are."""
    return AddedLabels(own, added, EntireScene("train")) if added else own


def merged(own: OpenLabels, added: tuple[OpenLabels, ...], split: Split) -> tuple[OpenLabels, Split]:
    """Return the labels of a scene whose own labels are split, with those that are added, and the split of all."""
    if not added:
        return own, split
    labels = AddedLabels(own, added, split)
    return labels, AddedSplit(labels) if isinstance(split, RandomSplit) else split


def count_added(
    executor: Executor, scene: SceneSection, labels: AddedLabels, shape_yx: tuple[int, int], classes: tuple[ClassName, ...]
) -> str:
    """Count the pixels that were added to a scene, and those of them that train; return both as a note.

    Raises:
        InputError: an added raster holds labels that no class declares.
    """
    total, unknown = np.zeros(2, np.int64), Counter[float]()

    def take(part: tuple[int, int, dict[float, int]]) -> None:
        total[:] += part[:2]
        unknown.update(part[2])

    executor.each(_count, labels, LabelGrid(labels, shape_yx).windows, take)
    urls = ", ".join(storage.redact_url(each.url) for each in added_labels(scene))
    refuse_unknown(urls, {f"{value:g}": count for value, count in unknown.items()}, classes)
    added, used = total.tolist()
    note = f"{scene.name}: {pluralize(added, 'pixels')} of added labels ({urls}), of which {used:,} train"
    if used < added:
        note += (
            "; the others are on ground of other subsets or between subsets, where the scene's own labels stay as they are"
        )
    return note


def _count(labels: AddedLabels, window: Window) -> tuple[int, int, dict[float, int]]:
    """The pixels of a window with added labels, those of them that train, and labels of no class."""
    added = labels.read_added(window)
    labelled = added != UNLABELLED
    own = labels.own.read(window)
    train = labels.training(window, own) & labelled
    unknown: Counter[float] = Counter()
    for each in labels.added:
        unknown.update(each.unknown(window))
    return int(labelled.sum()), int(train.sum()), dict(unknown)
