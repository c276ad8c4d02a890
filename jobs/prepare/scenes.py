"""Open and check the scenes of a configuration and assign the split. Reads headers and labels; writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from jobs.config.base import Section
from jobs.config.config import Config
from jobs.config.resolve import class_names, labels, sources
from jobs.config.scene import SceneSection
from jobs.config.split import BlocksSection, RandomSplitSection, RasterSplitSection, ScenesSplitSection
from jobs.prepare.added_labels import all_labels, merged, open_added
from jobs.prepare.damaged import without_damaged
from jobs.prepare.ground import check_area_size, scene_ground
from jobs.runtime.progress import pluralize, progress_bar, warn
from jobs.workflow.errors import naming_scene
from jobs.workflow.found_items import found_items
from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.codes import CODES, SUBSETS, Subset
from pipeline.io import storage
from pipeline.parallel.executor import Executor
from pipeline.rasters.header import stored_dtype
from pipeline.rasters.longitude import geographic_extents, overlapping_pairs
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.label_counts import LabelGrid, count_labels, count_shared, count_subsets, random_splits
from pipeline.scenes.labels import NoLabels, OpenLabels, open_labels, refuse_unknown
from pipeline.scenes.source import AlignedSource, open_source
from pipeline.scenes.split import Blocks, EntireScene, NoSplit, Split, check_blocks, open_split_raster
from pipeline.stac.periods import without_years
from pipeline.store.build import PreparedScene
from pipeline.stratification.assign import assign_blocks
from pipeline.stratification.block_counts import BlockCounts

#: The remedy where scenes have different periods.
SAME_PERIODS = "Set `stac.periods` to intervals that are the same in all scenes but for their years."


@dataclass(frozen=True)
class SceneDraft:
    """An opened scene before its split is assigned."""

    declared: SceneSection
    grid: GeoBox
    sources: list[AlignedSource]
    labels: OpenLabels
    area: AreaMask | None = None
    notes: tuple[str, ...] = ()  #: on the area and the grid
    added: tuple[OpenLabels, ...] = ()  #: labels that do not take part in the split

    @property
    def labelled(self) -> LabelGrid:
        """The scene's own labels on its grid."""
        return self.on_grid(self.labels)

    def on_grid(self, labels: OpenLabels) -> LabelGrid:
        """Labels on the scene's grid."""
        return LabelGrid(labels, (self.grid.shape[0], self.grid.shape[1]))


def open_scenes(config: Config, executor: Executor, *, any_size: bool = False) -> list[PreparedScene]:
    """Open and check all scenes, count their labels and decide the split.

    Raises:
        InputError: a source or the labels are unusable, a source was not searched yet, or the split leaves a class without
            training pixels; or an area is very large, unless areas may have `any_size`.
    """
    classes = class_names(config)
    if isinstance(config.split, BlocksSection | ScenesSplitSection):
        check_blocks(block=config.split_block, buffer=buffer_pixels(config) or 0, patch=config.model.patch)
    opened: list[SceneDraft] = []
    for number, section in enumerate(declared := found_items(config).scenes, 1):
        with naming_scene(section.name, number, of=len(declared)):
            opened.append(_open(section, classes, patch=config.model.patch, any_size=any_size))
    for position, first in enumerate(opened[0].sources):
        bands = {scene.declared.name: scene.sources[position].bands for scene in opened}
        if len(set(bands.values())) > 1:
            remedy = ""
            if first.declared.periods:
                periods = {scene.declared.name: scene.sources[position].declared.periods for scene in opened}
                listed = "; ".join(f"{name}: {own[0].name} to {own[-1].name}" for name, own in periods.items() if own)
                remedy = f" Their periods are {listed}. {SAME_PERIODS}"
            raise InputError(
                f"source {first.declared.name!r} has different band counts in different scenes: {bands}.{remedy}"
            )
        scales = {scene.declared.name: scene.sources[position].scale for scene in opened}
        if len(set(scales.values())) > 1:
            raise InputError(f"source {first.declared.name!r} has different scales in different scenes: {scales}.")
        _check_names(first.declared.name, {scene.declared.name: scene.sources[position] for scene in opened})
        dtypes = {scene.sources[position].dtype for scene in opened}
        if len(dtypes) > 1:  # one dtype per source: its normalization limits are fitted over all scenes
            common = stored_dtype([str(dtype) for dtype in dtypes])
            for scene in opened:
                scene.sources[position] = replace(scene.sources[position], dtype=common)
    _check_disjoint_ground(
        [scene for scene in opened if scene.declared.labels is not None],
        reach=buffer_pixels(config) or config.model.patch - 1,
        split=config.split,
    )
    splits = _splits(config, classes, opened, executor)
    return [
        PreparedScene(
            scene.declared.name,
            scene.grid,
            tuple(scene.sources),
            own,
            split,
            classes,
            config.prepare.shard,
            scene.area,
            scene.notes,
        )
        for scene, (own, split) in zip(opened, splits, strict=True)
    ]


def _check_names(name: str, scenes: dict[str, AlignedSource]) -> None:
    """Check that the bands of a source have the same names, in the same order, in all scenes that name them.

    Periods of scenes may be of different years.
    """
    named = {scene: source.declared.kept for scene, source in scenes.items() if source.declared.kept}
    if len(set(map(without_years, named.values()))) > 1:
        listed = "; ".join(f"{scene}: {', '.join(names)}" for scene, names in named.items())
        remedy = "Read its bands in the same order, with `bands` or `keep`, and give them the same names."
        if any(source.declared.periods for source in scenes.values()):
            remedy = SAME_PERIODS
        raise InputError(f"source {name!r} has different band names in different scenes ({listed}). {remedy}")


def _open(scene: SceneSection, classes: tuple[ClassName, ...], *, patch: int, any_size: bool) -> SceneDraft:
    declared = {name: without_damaged(source, scene.sources[name]) for name, source in sources(scene).items()}
    ground = scene_ground(scene, declared, smallest=patch)
    grid, area = ground.grid, ground.area
    like = None if scene.grid.like is None or area is not None else declared[scene.grid.like].layers[0][0]
    opened = [open_source(source, grid, like=like, area=area) for source in declared.values()]
    if not any_size:
        check_area_size(scene, area, opened)
    wanted = labels(scene)
    found = NoLabels() if wanted is None else open_labels(wanted, grid, classes, like=like, area=area)
    added = open_added(scene, grid, classes, like=like, area=area)
    return SceneDraft(scene, grid, opened, found, area, ground.notes, added)


def _check_disjoint_ground(scenes: Sequence[SceneDraft], *, reach: int, split: Section) -> None:
    """Check that no ground is labelled in two scenes: test pixels of one would be training pixels of the other.

    Scenes may overlap where their labels are more than `reach` pixels apart, or if the split puts both into one subset
    entirely, as images of the same ground at other times.
    """

    def together(one: SceneDraft, other: SceneDraft) -> bool:
        if not isinstance(split, ScenesSplitSection):
            return False
        subset = split.subset(one.declared.name)
        return subset is not None and subset == split.subset(other.declared.name)

    by_labels: dict[str, list[SceneDraft]] = {}
    for scene in scenes:
        if scene.grid.crs is None and scene.declared.labels is not None:
            by_labels.setdefault(storage.absolute(scene.declared.labels.url), []).append(scene)
    for url, sharing in by_labels.items():
        for one, other in combinations(sharing, 2):
            if not together(one, other):
                raise InputError(
                    f"scenes {one.declared.name!r} and {other.declared.name!r} have the same labels, {url}: test pixels of "
                    "one would be training pixels of the other. Remove one of the scenes."
                )
    placed = [scene for scene in scenes if scene.grid.crs is not None]
    for i, j in overlapping_pairs([geographic_extents(scene.grid) for scene in placed]):
        one, other = placed[i], placed[j]
        if together(one, other):
            continue
        first, second = (each.on_grid(all_labels(each.labels, each.added)) for each in (one, other))
        shared = count_shared(first, one.grid, second, other.grid, reach=reach)
        if shared:
            raise InputError(
                f"scenes {one.declared.name!r} and {other.declared.name!r} share labelled ground: {shared:,} labelled "
                f"pixels of the first are within {reach} pixels of labelled pixels of the second, so that test pixels of "
                "one would be training pixels of the other. Clip one of them, remove the labels of one, or merge their "
                "rasters as sources of one scene."
            )


def buffer_pixels(config: Config) -> int | None:
    """Return the buffer in pixels: split.buffer, default patch - 1; None for a raster split, 0 for a random one.

    Of a split by scene, it is also the distance that labels of scenes in different subsets keep.
    """
    if isinstance(config.split, BlocksSection | ScenesSplitSection):
        return config.model.patch - 1 if config.split.buffer is None else config.split.buffer
    return None if isinstance(config.split, RasterSplitSection) else 0


def _splits(
    config: Config, classes: tuple[ClassName, ...], scenes: Sequence[SceneDraft], executor: Executor
) -> list[tuple[OpenLabels, Split]]:
    """Return each scene's labels and split, checked for training pixels of every class; `NoSplit` if no scene has labels.

    The split is that of the scenes' own labels, to which others are then added.
    """
    if not config.labelled:
        return [(scene.labels, NoSplit()) for scene in scenes]
    ids = tuple(c.id for c in classes)
    tables = []
    with progress_bar("count labels", len(scenes), unit="scenes") as advance:
        for scene in scenes:
            block = config.split_block or max(scene.grid.shape)
            unknown, table = count_labels(executor, scene.labelled, block=block, ids=ids)
            url = "" if scene.declared.labels is None else scene.declared.labels.url
            refuse_unknown(url, {f"{value:g}": count for value, count in unknown.items()}, classes)
            tables.append(BlockCounts.of(table))
            advance(1)
    totals = np.sum([table.totals() for table in tables], axis=0)
    if config.trainable and not any(scene.added for scene in scenes):
        check_classes(classes, totals, config.split)
    decided = _decided(config, scenes, tables, executor, ids=ids)
    splits = [merged(scene.labels, scene.added, split) for scene, split in zip(scenes, decided, strict=True)]
    counts = np.sum(
        [count_subsets(executor, s.on_grid(own), split, ids) for s, (own, split) in zip(scenes, splits, strict=True)], axis=0
    )
    labelled: dict[Subset, NDArray[np.int64]] = dict(zip(SUBSETS, counts, strict=True))
    if config.trainable:
        check_classes(classes, labelled["train"], config.split)
    for subset in required_subsets(config):
        check_subset(subset, int(labelled[subset].sum()), config.split)
    if isinstance(config.split, BlocksSection):
        _warn_about_shares(config, classes, labelled, scenes, executor)
    return splits


def _decided(
    config: Config,
    scenes: Sequence[SceneDraft],
    tables: Sequence[BlockCounts],
    executor: Executor,
    *,
    ids: tuple[int, ...],
) -> list[Split]:
    """Assign each scene's split; `tables` are its labelled pixel counts by block."""
    declared = config.split
    if isinstance(declared, RasterSplitSection):
        return [open_split_raster(declared.url, scenes[0].grid)]
    if isinstance(declared, RandomSplitSection):
        total = np.sum([table.totals() for table in tables], axis=0)
        drawn = random_splits(
            executor,
            [scene.labelled for scene in scenes],
            total,
            ids=ids,
            train=declared.train,
            validation=declared.validation,
            seed=declared.seed,
        )
        return list(drawn)
    buffer = buffer_pixels(config)
    assert buffer is not None
    if isinstance(declared, BlocksSection):
        margin = -(-buffer // 2)
        return _assign(scenes, tables, _fractions(declared), block=declared.block, margin=margin, seed=declared.seed)
    return _by_scene(declared, scenes, tables, margin=-(-buffer // 2))


def _by_scene(
    declared: ScenesSplitSection, scenes: Sequence[SceneDraft], tables: Sequence[BlockCounts], *, margin: int
) -> list[Split]:
    """Give entire scenes to subsets, and assign the blocks of the others to training and validation."""
    splits: list[Split] = []
    shared = []
    for position, scene in enumerate(scenes):
        subset = declared.subset(scene.declared.name)
        unlabelled = isinstance(scene.labels, NoLabels)
        splits.append(NoSplit() if unlabelled or subset is None else EntireScene(subset))
        if subset is None and not unlabelled:
            shared.append(position)
    if shared and isinstance(declared.validation, float):
        fractions: dict[Subset, float] = {"train": 1 - declared.validation, "validation": declared.validation}
        own_scenes, own_tables = [scenes[i] for i in shared], [tables[i] for i in shared]
        blocks = _assign(own_scenes, own_tables, fractions, block=declared.block, margin=margin, seed=declared.seed)
        for position, split in zip(shared, blocks, strict=True):
            splits[position] = split
    return splits


def _assign(
    scenes: Sequence[SceneDraft],
    tables: Sequence[BlockCounts],
    fractions: dict[Subset, float],
    *,
    block: int,
    margin: int,
    seed: int,
) -> list[Split]:
    """Assign the blocks of scenes to subsets; `tables` are their labelled pixel counts by block."""
    codes = assign_blocks(BlockCounts.joined(tables), fractions, seed=seed)
    splits: list[Split] = []
    start = 0
    for scene, table in zip(scenes, tables, strict=True):
        stop = start + table.blocks
        rows, columns = scene.grid.shape
        own = codes[start:stop].reshape(-(-rows // block), -(-columns // block))
        unlabelled = isinstance(scene.labels, NoLabels)
        splits.append(NoSplit() if unlabelled else Blocks(own, block, margin, (rows, columns)))
        start = stop
    return splits


def _fractions(split: BlocksSection) -> dict[Subset, float]:
    shares = split.fractions
    return {"train": shares.train, "validation": shares.validation, "test": shares.test}


def _warn_about_shares(
    config: Config,
    classes: tuple[ClassName, ...],
    labelled: dict[Subset, NDArray[np.int64]],
    scenes: Sequence[SceneDraft],
    executor: Executor,
) -> None:
    """Warn of classes whose shares per subset are far below the requested fractions because of blocks and buffer."""
    assert isinstance(config.split, BlocksSection)
    fractions = _fractions(config.split)
    total = np.maximum(1, np.sum([labelled[s] for s in SUBSETS], axis=0))
    uneven = np.logical_or.reduce([labelled[s] / total < fractions[s] / 2 for s in SUBSETS])
    if not uneven.any():
        return
    # Smaller blocks help only a class that lies in several of them; a quarter of the side is a fair try.
    side = max(2 * (buffer_pixels(config) or 0) + 1, config.split.block // 4)
    ids = tuple(c.id for c in classes)
    tables = [count_labels(executor, scene.labelled, block=side, ids=ids)[1] for scene in scenes]
    held = np.sum([(table > 0).sum(axis=(0, 1)) for table in tables], axis=0)
    for position in np.flatnonzero(uneven):
        listed = ", ".join(f"{s} {labelled[s][position]:,}" for s in SUBSETS)
        advice = f"smaller blocks may help, for example `split.block: {side}`"
        if side >= config.split.block or held[position] < len(SUBSETS):
            advice = f"it lies in {pluralize(int(held[position]), 'blocks')} of {side} pixels; label it in more places"
        warn(f"class {classes[position].name} is unevenly split between subsets ({listed} pixels); {advice}")


def required_subsets(config: Config) -> list[Subset]:
    """The subsets that must have samples: those of a model that is only tested are for testing."""
    without: set[Subset] = set() if config.validated else {"validation"}
    if not config.trainable:
        without = {"train", "validation"}
    return [subset for subset in SUBSETS if subset not in without]


def check_subset(subset: Subset, samples: int, split: Section) -> None:
    """Check that a subset has samples.

    Raises:
        InputError: it has none.
    """
    if samples:
        return
    remedy = "use smaller, and therefore more, blocks (split.block), or other fractions"
    if isinstance(split, ScenesSplitSection) and (subset == "test" or split.validation_scenes):
        remedy = f"its scenes have no labels where all sources have data; choose other scenes (split.{subset})"
    raise InputError(f"no samples in the {subset} subset; {remedy}.")


def check_classes(classes: tuple[ClassName, ...], counts: NDArray[np.int64], split: Section) -> None:
    """Check that every class has training pixels, given the pixel counts per class.

    Raises:
        InputError: some classes have none; the message lists them.
    """
    missing = [f"{c.id} ({c.name})" for c, count in zip(classes, counts, strict=True) if count == 0]
    if not missing:
        return
    remedy = "Label some in training blocks, change split.seed or split.block so training blocks contain the class"
    if isinstance(split, ScenesSplitSection):
        remedy = "Label some in a training scene, take a scene that contains the class out of split.test or split.validation"
    raise InputError(
        f"no training pixels for class {', '.join(missing)}. {remedy}, or move it from `classes` to `labels.ignore`."
    )


def subset_counts(config: Config, classes: tuple[ClassName, ...], counts: NDArray[np.int64]) -> dict[Subset, dict[str, int]]:
    """Convert counts (subset, class) to a nested dict by name, after checking training classes and required subsets.

    Raises:
        InputError: a class has no training samples, or a subset is empty.
    """
    if config.trainable:
        check_classes(classes, counts[CODES["train"] - 1], config.split)
    named = {s: {c.name: int(n) for c, n in zip(classes, row, strict=True)} for s, row in zip(SUBSETS, counts, strict=True)}
    for subset in required_subsets(config):
        found = named[subset]
        check_subset(subset, sum(found.values()), config.split)
        absent = [name for name, count in found.items() if count == 0]
        if absent:
            warn(f"no {subset} samples of {', '.join(absent)}; the metrics of these classes will be missing")
    return named
