"""`mibf estimate`: accuracy and area of a run's published map, estimated from a labelled probability sample.

The result goes into the run's folder, from which the report takes it, and into the STAC items of the sampled maps. It is
bound to the map by the digest of its class rasters: of another map, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.assess.figures import estimate_lines, estimates_json, scene_json
from jobs.assess.run_map import RunMap
from jobs.assess.sample import RECORD
from jobs.config.config import Config
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.assessment.design import ClassCount, Design
from pipeline.assessment.estimators import TooFewPointsError
from pipeline.assessment.points import LabelledPoints, labelled_points, read_table
from pipeline.assessment.stratified import Strata, StratifiedEstimate, StratifiedPoints, estimate_stratified
from pipeline.io import storage
from pipeline.io.lease import Lease, acquire
from pipeline.maps.products import product
from pipeline.publishing.stac_item import check_item

#: Property of a map's item: the estimates, in brief.
PROPERTY = "mibf:estimates"
#: Labelled points that a scene needs for estimates of its own.
FEWEST = 25


@dataclass(frozen=True)
class EstimateResult:
    """The estimates of a map, as they are stored."""

    figures: dict[str, Any]
    outputs: list[str]

    def lines(self) -> list[str]:
        """Format for a terminal."""
        return [*estimate_lines(self.figures), "", "made:", *(f"  {output}" for output in self.outputs)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return self.figures


def estimate_map(
    config: Config, url: str, *, design_url: str | None = None, other_map: bool = False, skip_unlabelled: bool = False
) -> EstimateResult:
    """Estimate accuracy and area from a labelled sample, and store them.

    Args:
        config: of the run.
        url: the labelled sample, as GeoPackage, another vector file, or CSV.
        design_url: the record of its design; None: next to the sample, or in the run's folder.
        other_map: accept a sample of another map of the same ground, whose strata are not the classes of this one.
        skip_unlabelled: leave out points without a label, which takes them as missing at random in their stratum.

    Raises:
        InputError: the sample is not one of this map, or not completely labelled; nothing is written.
        LeaseHeldError: another run holds the workspace lease.
    """
    workspace = Workspace.of(config)
    table = read_table(url)
    source = storage.redact_url(url)
    with acquire(workspace.url, what=f"mibf estimate of {config.name}, run {config.run}") as lease:
        design = _design(workspace, url, design_url, table)
        run_map = RunMap.open(config, workspace, _scenes(config, design, source))
        is_same = design.map_digest == run_map.digest
        if not (is_same or other_map):
            raise InputError(
                f"{source}: is a sample of another map than the one that is published now ({', '.join(run_map.item_ids)}), "
                "which may have been made again since. Use the sample of this map, or give --other-map to estimate with the "
                "strata of the map that was sampled."
            )
        grids = {scene.name: scene.store.grid for scene in run_map.scenes}
        points = labelled_points(table, source, design, grids, {each.id: each.name for each in run_map.classes})
        given = len(points.points)
        points = _labelled(points, source, skip=skip_unlabelled)
        mapped = _mapped(run_map, points, source)
        found, method = _estimate(run_map, design, points, mapped, source, is_same=is_same)
        figures = estimates_json(found, design, run_map.classes, method=method, is_same=is_same)
        figures |= {
            "by_scene": _by_scene(run_map, design, points, mapped, is_same=is_same),
            "sample": source,
            "map_digest": run_map.digest,
            "scenes": run_map.item_ids,
            "points": len(points.points),
            "unlabelled": given - len(points.points),
            "notes": [*_merged_note(found.merged), *_frame_notes(design, given - len(points.points))],
        }
        outputs = _write(workspace, run_map, figures, lease)
    return EstimateResult(figures, outputs)


def _design(workspace: Workspace, url: str, given: str | None, table: Any) -> Design:
    """Find the record of a sample's design: as given, next to the sample, or the one of this run that fits it."""
    beside = storage.join(url.rpartition("/")[0] or ".", RECORD)
    urls = [given] if given is not None else [beside]
    of_points = set(table["sample"].astype("string")) if "sample" in table.columns else set()
    if given is None:
        urls += [storage.join(workspace.sample(name), RECORD) for name in storage.folders(workspace.samples)]
    for candidate in urls:
        try:
            found = Design.of_json(storage.read_json(candidate), storage.redact_url(candidate))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            raise InputError(f"{storage.redact_url(candidate)}: not valid JSON ({error}).") from error
        if candidate in (given, beside) or found.id in of_points:
            return found
    looked = (
        f"{storage.redact_url(given)}: no such file" if given else f"{storage.redact_url(url)}: has no {RECORD} next to it"
    )
    raise InputError(
        f"{looked}, the record of its sampling design, without which the points' inclusion probabilities are not known; "
        "give it as --design."
    )


def _scenes(config: Config, design: Design, source: str) -> list[str]:
    """The scenes that were sampled, which must be scenes of the run."""
    known = [scene.name for scene in config.scenes]
    unknown = [name for name in design.scenes if name not in known]
    if unknown or not design.scenes:
        raise InputError(
            f"{source}: was drawn from scenes that this configuration does not have ({', '.join(unknown) or 'none named'}); "
            f"its scenes are {', '.join(known)}."
        )
    return list(design.scenes)


def _labelled(points: LabelledPoints, source: str, *, skip: bool) -> LabelledPoints:
    """The points with labels; all of them must have one unless `skip`."""
    without = points.labels < 0
    if without.any() and not skip:
        listed = ", ".join(map(str, points.points[without][:5].tolist()))
        more = ", ..." if without.sum() > 5 else ""
        raise InputError(
            f"{source}: {int(without.sum()):,} of {len(without):,} points have no label (points {listed}{more}). Label "
            "them, or give --skip-unlabelled, which takes them as missing at random within their stratum."
        )
    return points.at(~without)


def _mapped(run_map: RunMap, points: LabelledPoints, source: str) -> NDArray[np.int64]:
    """Position of the map's class at each point.

    Raises:
        InputError: nothing is mapped at a point.
    """
    found = np.full(len(points.points), -1, np.int64)
    position = np.full(256, -1, np.int64)
    position[[each.id for each in run_map.classes]] = np.arange(len(run_map.classes))
    for number, frame in enumerate(run_map.frame()):
        own = points.scenes == number
        ids = frame.published.pixels(product("class"), points.rows[own], points.columns[own])
        found[own] = position[ids]
    if (found < 0).any():
        outside = points.points[found < 0]
        raise InputError(
            f"{source}: point{'' if len(outside) == 1 else 's'} {', '.join(map(str, outside[:5].tolist()))} "
            f"{'is' if len(outside) == 1 else 'are'} outside the map: no class is mapped there; use a sample of this map."
        )
    return found


def _estimate(
    run_map: RunMap, design: Design, points: LabelledPoints, mapped: NDArray[np.int64], source: str, *, is_same: bool
) -> tuple[StratifiedEstimate, str]:
    """Estimate with the strata of the design, or, of a sample without strata of this map, with its classes as strata.

    Returns:
        The estimates, and the name of the method.
    """
    of_sample = design.design == "stratified" or not is_same
    strata = Strata.of(design.strata if of_sample else design.classes)
    method = "post-stratified" if not of_sample else "stratified" if is_same else "indicator"
    sample = _points(run_map, design, points, points.strata if of_sample else mapped, mapped)
    taken = np.bincount(sample.strata, minlength=len(strata.names))
    if (taken > strata.pixels).any():
        name = strata.names[int((taken > strata.pixels).argmax())]
        raise InputError(f"{source}: has more points of {name} than its stratum has pixels.")
    try:
        return estimate_stratified(strata, sample, len(run_map.classes), merge=not of_sample), method
    except TooFewPointsError as error:
        few = ", ".join(f"{strata.names[h]} ({taken[h]})" for h in error.strata)
        raise InputError(
            f"{source}: too few labelled points in the strata {few}: each needs two, for one point has no variance. Label "
            "more of their points, or draw a sample with a larger --minimum."
        ) from error


def _points(
    run_map: RunMap, design: Design, points: LabelledPoints, strata: NDArray[np.int64], mapped: NDArray[np.int64]
) -> StratifiedPoints:
    areas = _areas(run_map, points) if design.hectares is not None else None
    return StratifiedPoints(strata, mapped, points.labels, areas)


def _by_scene(
    run_map: RunMap, design: Design, points: LabelledPoints, mapped: NDArray[np.int64], *, is_same: bool
) -> dict[str, Any]:
    """The estimates of each scene, by name, as JSON values; nothing if there is one scene.

    The points of a scene are stratified after they were drawn, by the map's classes: given their number in a class of the
    scene, they are a random sample of it, whether they were drawn from that class of all scenes or from all classes. Of a
    sample of another map they are stratified by the strata of that one.
    """
    found: dict[str, Any] = {}
    for number, scene in enumerate(run_map.scenes) if len(run_map.scenes) > 1 else ():
        own = points.scenes == number
        count = int(own.sum())
        found[scene.name] = {"points": count}
        counts = design.classes_by_scene.get(scene.name)
        if counts is None:
            found[scene.name]["note"] = "the record of the sample has no pixels by scene; draw a new sample for estimates"
            continue
        if count < FEWEST:
            found[scene.name]["note"] = f"{count} points are too few for estimates; {FEWEST} are needed"
            continue
        of_class = {each.name: each for each in counts}
        if is_same or design.design != "stratified":
            strata = Strata.of(counts if is_same else [_sum(counts)])
            position = mapped if is_same else np.zeros(len(mapped), np.int64)
        else:
            strata, position = Strata.of([of_class[stratum.name] for stratum in design.strata]), points.strata
        sample = _points(run_map, design, points.at(own), position[own], mapped[own])
        try:
            estimated = estimate_stratified(strata, sample, len(run_map.classes), merge=True)
        except TooFewPointsError:
            found[scene.name]["note"] = f"{count} points are too few in its classes for estimates"
            continue
        found[scene.name] |= scene_json(estimated, counts, run_map.classes, is_same=is_same)
    return found


def _sum(counts: Sequence[ClassCount]) -> ClassCount:
    """All pixels of a scene."""
    areas = [each.hectares for each in counts]
    known = [area for area in areas if area is not None]
    return ClassCount(0, "all", sum(each.pixels for each in counts), sum(known) if len(known) == len(areas) else None)


def _areas(run_map: RunMap, points: LabelledPoints) -> NDArray[np.float64]:
    """The area of each point's pixel, in hectares."""
    found = np.zeros(len(points.points))
    for number, scene in enumerate(run_map.scenes):
        own = points.scenes == number
        if own.any():
            found[own] = PixelArea(scene.store.grid).at(points.rows[own], points.columns[own])
    return found


def _merged_note(merged: Sequence[str]) -> list[str]:
    return [f"too few points: {', '.join(merged)} were merged to one stratum after drawing"] if merged else []


def _frame_notes(design: Design, unlabelled: int) -> list[str]:
    """What the estimates do not cover."""
    notes = []
    if design.excluded.pixels:
        area = "" if design.excluded.hectares is None else f" ({design.excluded.hectares:,.1f} ha)"
        notes.append(
            f"the estimates hold for the frame: {design.excluded.pixels:,} pixels{area} of the map are not in it, as "
            f"samples of {', '.join(design.excluded.subsets)}"
        )
    if unlabelled:
        notes.append(f"{unlabelled:,} points without a label were taken as missing at random within their stratum")
    if design.hectares is None:
        notes.append("the areas of pixels are not known, so that areas are in pixels")
    return notes


def _write(workspace: Workspace, run_map: RunMap, figures: dict[str, Any], lease: Lease) -> list[str]:
    """Write the estimates, and their summary into the item of every sampled map."""
    summary = _summary(figures)
    items = []
    for scene in run_map.scenes:
        item = dict(scene.item.item)
        own = figures["by_scene"].get(scene.name)
        of_scene = {} if own is None else {"of_scene": own if "note" in own else {"points": own["points"], **_brief(own)}}
        item["properties"] = {**item["properties"], PROPERTY: summary | of_scene}
        check_item(item)
        items.append((scene.item_url, item))
    lease.check()
    storage.write_json(workspace.estimates, figures)
    for url, item in items:
        lease.check()
        storage.write_json(url, item)
    return [workspace.estimates, *(url for url, _ in items)]


def _summary(figures: dict[str, Any]) -> dict[str, Any]:
    """What a map's item says of its accuracy and areas."""
    return {
        **{name: figures[name] for name in ("design", "method", "points", "coverage", "area_unit")},
        "scenes": list(figures["scenes"]),
        **_brief(figures),
    }


def _brief(figures: dict[str, Any]) -> dict[str, Any]:
    names: Sequence[str] = ("users_accuracy", "producers_accuracy", "f1", "area")
    return {
        "frame": figures["frame"],
        "overall_accuracy": figures["overall_accuracy"],
        "classes": [{name: row[name] for name in ("id", "name", *names)} for row in figures["classes"]],
    }
