"""`mibf suggest`: choose places to label next on the published maps, and write them as GeoPackages.

Places are on training ground alone, so that labels that come back change neither validation nor test pixels, and where no
pixel is labelled. They are no probability sample: no accuracy or area may be estimated from them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.config.config import Config
from jobs.prepare.scenes import open_scenes
from jobs.runtime.progress import info, pluralize, progress_bar
from jobs.suggest.geopackage import LABEL, Place, check_no_labels, write_places
from jobs.suggest.measures import MapMeasures, ranks_of, reason
from jobs.suggest.places import BestPlaces, Places, Rank, pixel_scores, score_places
from jobs.workflow.manifest import check_dependencies
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.io import storage
from pipeline.io.lease import acquire
from pipeline.parallel.executor import ThreadExecutor
from pipeline.publishing.stac_item import matches_grid
from pipeline.publishing.stac_item_reader import require_item
from pipeline.scenes.labels import NoLabels
from pipeline.scenes.split import AddedLabels, training_ground
from pipeline.store.build import PreparedScene

#: Side of the windows that are read at a time, about, in pixels.
WINDOW = 1024
#: Places at most: more are no reading of a person.
MOST = 100_000


@dataclass(frozen=True)
class Suggestions:
    """The places that were written."""

    files: dict[str, str]  #: URL of the GeoPackage of each scene that has some
    places: dict[str, list[Place]]  #: by scene
    measures: tuple[str, ...]
    distance: float  #: in pixels
    notes: list[str]

    def lines(self) -> list[str]:
        """Say how many places there are, why, and how their labels come back."""
        every = [place for own in self.places.values() for place in own]
        lines = [f"note: {note}" for note in self.notes]
        counts = Counter(place.predicted for place in every)
        lines.append(
            f"{pluralize(len(every), 'places')} by {', '.join(self.measures)}, at least {self.distance:.0f} pixels apart: "
            + ", ".join(f"{name} {count}" for name, count in counts.most_common())
        )
        for scene, url in self.files.items():
            lines.append(f"{scene}: {pluralize(len(self.places[scene]), 'places')} in {url}")
            lines += [
                f"  Fill in the column `{LABEL}` with class names or ids, then add the file to the scene's labels:",
                f"    labels: {{..., also: [{{url: {url}, attribute: {LABEL}}}]}}",
            ]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "files": self.files,
            "measures": list(self.measures),
            "distance": self.distance,
            "notes": self.notes,
            "places": {scene: [vars(place) for place in own] for scene, own in self.places.items()},
        }


@dataclass(frozen=True)
class _SceneMap:
    """A scene with a published map."""

    prepared: PreparedScene
    measures: MapMeasures

    @property
    def shape_yx(self) -> tuple[int, int]:
        rows, columns = self.prepared.grid.shape
        return rows, columns

    def eligible(self, window: Window, ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which pixels of a window are mapped, not labelled, and on training ground."""
        labels, split = self.prepared.labels, self.prepared.split
        found = labels.read(window)
        free = np.asarray((ids != UNLABELLED) & (found == UNLABELLED))
        if isinstance(labels, NoLabels):  # the first labels of all
            return free
        own = labels.own.read(window) if isinstance(labels, AddedLabels) else found
        return np.asarray(free & training_ground(labels.split if isinstance(labels, AddedLabels) else split, window, own))


def suggest(
    config: Config,
    *,
    number: int,
    side: int = 3,
    distance: float | None = None,
    seed: int = 0,
    output: str | None = None,
) -> Suggestions:
    """Suggest places to label on the published maps of a run.

    Args:
        config: of the run.
        number: of places, over all scenes.
        side: of a place, in pixels of the grid.
        distance: between two places, at least, in pixels; by default half the distance of as many places on a regular grid.
        seed: of the choice.
        output: folder of the GeoPackages; by default that of the run.

    Raises:
        InputError: no map is published, it lacks a product, there is nothing to label, or labels would be overwritten.
        LeaseHeldError: another run holds the workspace lease.
    """
    if not 1 <= number <= MOST:
        raise InputError(f"--n {number}: give a number of places from 1 to {MOST:,}.")
    check_dependencies(config, "map")
    workspace = Workspace.of(config)
    folder = storage.absolute(output) if output is not None else storage.join(workspace.run_folder, "suggestions")
    with acquire(workspace.url, what=f"mibf suggest of {config.name}, run {config.run}") as lease:
        scenes, notes = _open(config, workspace)
        ranks = ranks_of([scene.measures.sample(scene.shape_yx) for scene in scenes])
        best, pixels = _search(scenes, ranks, number=number, side=side, seed=seed)
        apart = max(0.5 * math.sqrt(pixels / number), side, config.model.patch) if distance is None else distance
        chosen = best.choose(distance=apart)
        if chosen is None:
            raise InputError(
                "there is no place to label: every mapped pixel of the training ground is labelled, or near the border of "
                "another subset. Add a scene, or map a larger area."
            )
        if len(chosen) < number:
            notes.append(
                f"only {len(chosen)} of {number} places are {apart:.0f} pixels apart; choose fewer, or a smaller --distance"
            )
        names = {c.id: c.name for c in scenes[0].prepared.classes}
        files, places = {}, {}
        for position, scene in enumerate(scenes):
            own = chosen[chosen.scene == position]
            if len(own):
                files[scene.prepared.name] = url = storage.join(folder, f"{scene.prepared.name}.gpkg")
                check_no_labels(url)
                own = own[np.argsort(-own.score, kind="stable")]
                places[scene.prepared.name] = _described(scene, own, ranks, names)
        for scene in scenes:
            if (name := scene.prepared.name) in files:
                lease.check()
                write_places(files[name], places[name], scene.prepared.grid, side=side)
    return Suggestions(files, places, scenes[0].measures.names, apart, notes)


def _open(config: Config, workspace: Workspace) -> tuple[list[_SceneMap], list[str]]:
    """Open the scenes that can be labelled and their maps, with notes on the others."""
    prepared = open_scenes(config, ThreadExecutor(), any_size=True)
    found, notes = list[_SceneMap](), list[str]()
    for scene in prepared:
        if isinstance(scene.labels, NoLabels) and config.labelled:
            notes.append(f"scene {scene.name!r} has no `labels`, to which others could be added; it is left out")
            continue
        folder = workspace.map_folder(scene.name)
        item = require_item(folder)
        if not matches_grid(item.item, scene.grid):
            raise InputError(f"{storage.redact_url(folder)}: the map has another grid than the scene; run `mibf run` first.")
        found.append(_SceneMap(scene, MapMeasures.of(folder, item)))
    if not found:
        raise InputError("no scene with labels has a map; add `labels` to a scene, or run `mibf map`.")
    if len({scene.measures.names for scene in found}) > 1:
        listed = "; ".join(f"{scene.prepared.name}: {', '.join(scene.measures.products)}" for scene in found)
        raise InputError(f"the maps of the scenes have different products ({listed}); run `mibf map` for all of them.")
    return found, notes


def _search(
    scenes: Sequence[_SceneMap], ranks: dict[str, Rank], *, number: int, side: int, seed: int
) -> tuple[BestPlaces, int]:
    """Score the places of all scenes, window by window; also count the pixels that can be labelled."""
    best, pixels, step = BestPlaces(number), 0, side * max(1, WINDOW // side)
    position_of = np.full(256, -1, np.int64)
    classes = scenes[0].prepared.classes
    position_of[[c.id for c in classes]] = np.arange(len(classes))
    parts = [windows(scene.shape_yx, step) for scene in scenes]
    with progress_bar("score places", sum(map(len, parts)), unit="windows") as advance:
        for index, (scene, own) in enumerate(zip(scenes, parts, strict=True)):
            for window in own:
                ids = scene.measures.read_codes("class", window)
                assert ids is not None  # `MapMeasures.of` has checked it
                eligible = scene.eligible(window, ids)
                advance(1)
                if not eligible.any():
                    continue
                pixels += int(eligible.sum())
                scores = pixel_scores(scene.measures.read(window), ranks)
                corner = window.y, window.x
                best.add(
                    score_places(scores, position_of[ids], eligible, side=side, corner_yx=corner, scene=index, seed=seed)
                )
    info(f"{pluralize(best.seen, 'places')} of {side} x {side} pixels can be labelled")
    return best, pixels


def _described(scene: _SceneMap, places: Places, ranks: dict[str, Rank], names: dict[int, str]) -> list[Place]:
    """Read what the map says at the central pixel of each place."""
    found = []
    for row, column, score in zip(places.row.tolist(), places.column.tolist(), places.score.tolist(), strict=True):
        window = Window(row, column, 1, 1)
        first, second = (scene.measures.read_codes(name, window) for name in ("class", "second_class"))
        assert first is not None
        shares = {name: float(ranks[name](values)[0, 0]) for name, values in scene.measures.read(window).items()}
        other = None if second is None else names.get(int(second[0, 0]))
        found.append(Place(row, column, names[int(first[0, 0])], other, score, reason(shares)))
    return found
