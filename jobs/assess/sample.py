"""`mibf sample`: draw a probability sample of a run's published map, with everything that an interpreter needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.assess.run_map import RunMap
from jobs.assess.sheet import write_sheet
from jobs.config.config import Config
from jobs.evaluate.stage import check_trained_on
from jobs.runtime.progress import info, progress_bar
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.assessment.allocation import UNKNOWN, Allocation, allocate, needed_points, point_shares
from pipeline.assessment.design import ClassCount, Design, DesignName, Excluded, Stratum, stratum_numbers
from pipeline.assessment.points import csv_bytes, point_table, write_geopackage
from pipeline.assessment.selection import SIDE, DrawnPoints, FrameCounts, SceneFrame, survey, systematic
from pipeline.codes import Subset
from pipeline.grid import windows
from pipeline.io import storage
from pipeline.io.lease import Lease, acquire

#: Files of a sample.
POINTS, TABLE, RECORD, SHEET = "points.gpkg", "points.csv", "design.json", "sheet.html"
#: Most points that a sample may have: every one is held in memory, and must be labelled by a person.
MOST = 1_000_000
#: Points of each stratum, at least, by default.
MINIMUM = 25


@dataclass(frozen=True)
class SampleRequest:
    """What to draw."""

    design: DesignName = "stratified"
    points: int | None = None
    standard_error: float | None = None  #: of the overall accuracy, in place of a number of points
    allocation: Allocation = "proportional"
    minimum: int = MINIMUM
    expected: Mapping[str, float] = field(default_factory=dict)  #: user's accuracies by class name
    scenes: Sequence[str] = ()  #: empty: all
    excluded: Sequence[Subset] = ("train",)
    seed: int = 0
    name: str = "sample"
    replace: bool = False
    show_map: bool = False  #: show the interpreter the map's class


@dataclass(frozen=True)
class SampleResult:
    """A sample that was drawn."""

    folder: str
    design: Design
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Format for a terminal."""
        design = self.design
        area = "" if design.hectares is None else f", {design.hectares:,.0f} ha"
        lines = [
            f"{design.points:,} points, {design.design}{f' ({design.allocation})' if design.allocation else ''}, seed "
            f"{design.seed}, of a frame of {design.pixels:,} pixels{area}"
        ]
        if design.excluded.subsets:
            lines.append(
                f"{design.excluded.pixels:,} pixels of the map are not in the frame, as samples of "
                f"{', '.join(design.excluded.subsets)}: estimates hold for the rest of the map"
            )
        width = max(len(stratum.name) for stratum in design.strata)
        lines.append(f"{'stratum':<{width}}  {'pixels':>13}  {'points':>6}  inclusion probability")
        for each in design.strata:
            probability = f"{each.inclusion_probability:.3g}"
            lines.append(f"{each.name:<{width}}  {each.pixels:>13,}  {each.points:>6,}  {probability:>21}")
        lines += [f"note: {note}" for note in self.notes]
        lines += ["", f"label the points in {self.folder}:"]
        lines += [f"  {name}" for name in (SHEET, POINTS, TABLE)]
        return [*lines, "then run `mibf estimate CONFIG --sample FILE`"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "folder": self.folder,
            "files": [POINTS, TABLE, RECORD, SHEET],
            "notes": [*self.notes],
            **self.design.to_json(),
        }


def sample(config: Config, request: SampleRequest) -> SampleResult:
    """Draw a sample, and write its points, the record of its design, and the interpretation sheet.

    Raises:
        InputError: no map is published, the request cannot be met, or a sample of that name exists.
        LeaseHeldError: another run holds the workspace lease.
    """
    workspace = Workspace.of(config)
    _check(request)
    folder = workspace.sample(request.name)
    if not request.replace and storage.exists(storage.join(folder, RECORD)):
        raise InputError(
            f"{storage.redact_url(folder)}: has a sample, maybe with labels; choose another --name, or --replace it."
        )
    run_map = RunMap.open(config, workspace, request.scenes or [scene.name for scene in config.scenes])
    notes = _training_notes(config, workspace, request)
    storage.check_writable(workspace.url)
    with acquire(workspace.url, what=f"mibf sample of {config.name}, run {config.run}") as lease:
        expected = _expected(workspace, run_map, request)
        frame = run_map.frame(request.excluded)
        design, drawn, strata = _draw(frame, run_map, request, expected)
        if design.points == 0:
            raise InputError("the systematic grid has no pixel of the frame; draw more points (--n).")
        table = point_table(drawn, frame, design, strata)
        names = [run_map.classes[position].name for position in drawn.classes.tolist()] if request.show_map else None
        _write(config, workspace, folder, design, table, frame, run_map, names, lease)
    return SampleResult(folder, design, (*notes, *_notes(design, request)))


def _check(request: SampleRequest) -> None:
    if (request.points is None) == (request.standard_error is None):
        raise InputError("give either the number of points (--n) or the standard error of overall accuracy (--se).")
    if request.points is not None and not 2 <= request.points <= MOST:
        raise InputError(f"--n {request.points}: must be from 2 to {MOST:,}.")
    if request.standard_error is not None and not 0 < request.standard_error < 0.5:
        raise InputError(f"--se {request.standard_error}: must be between 0 and 0.5, such as 0.01.")
    if request.minimum < 2:
        raise InputError(f"--minimum {request.minimum}: must be at least 2, or no variance can be estimated.")
    if not request.name or set(request.name) & set("/\\:?#") or request.name.startswith("."):
        raise InputError(f"--name {request.name!r}: must be a plain name, without any of / \\ : ? #.")
    for name, value in request.expected.items():
        if not 0 <= value <= 1:
            raise InputError(f"--expected {name}={value}: must be between 0 and 1.")


def _training_notes(config: Config, workspace: Workspace, request: SampleRequest) -> list[str]:
    """Check that the store's training samples are those of the map's model; note where that is not known."""
    if config.map.model is not None:
        return ["the map was made with a model from elsewhere (map.model), whose training pixels are not known here"]
    if request.excluded:
        check_trained_on(config, workspace)
    if "train" in request.excluded:
        return []
    return ["training pixels were not excluded: accuracy that is estimated from this sample is that of fitted pixels, too"]


def _expected(workspace: Workspace, run_map: RunMap, request: SampleRequest) -> NDArray[np.float64]:
    """The expected user's accuracy of each class: as given, as measured on held-out samples, or NaN."""
    names = [each.name for each in run_map.classes]
    for name in request.expected:
        if name not in names:
            raise InputError(f"--expected {name}: the map has no such class; its classes are {', '.join(names)}.")
    try:
        rows = {row["name"]: row["precision"] for row in storage.read_json(workspace.evaluation)["classes"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        rows = {}
    found = [request.expected.get(name, rows.get(name)) for name in names]
    return np.array([np.nan if value is None else value for value in found], np.float64)


def _draw(
    frame: Sequence[SceneFrame], run_map: RunMap, request: SampleRequest, expected: NDArray[np.float64]
) -> tuple[Design, DrawnPoints, NDArray[np.int64]]:
    """Draw the points: the design, the points, and the position of each one's stratum."""
    classes = len(run_map.classes)
    strata = np.arange(classes) if request.design == "stratified" else np.zeros(classes, np.int64)
    keep = 0 if request.design == "systematic" else _most(request)
    total = sum(len(windows(scene.shape, SIDE)) for scene in frame)
    with progress_bar("sample", total, unit="windows") as advance:
        by_scene, drawn = survey(frame, strata=strata, keep=keep, seed=request.seed, advance=advance)
    counts = FrameCounts.total(by_scene)
    if not counts.pixels.any():
        raise InputError("the map has no pixel outside the excluded subsets, so there is nothing to draw; see --exclude.")
    design = _design(counts, run_map, request, expected)
    if len(frame) > 1:
        parts = {scene.name: _class_counts(run_map, own) for scene, own in zip(frame, by_scene, strict=True)}
        design = replace(design, classes_by_scene=parts)
    if request.design != "systematic" and max(stratum.points for stratum in design.strata) > keep:
        keep = max(stratum.points for stratum in design.strata)
        _, drawn = survey(frame, strata=strata, keep=keep, seed=request.seed)
    if request.design == "stratified":
        wanted = np.zeros(classes, np.int64)
        present = np.flatnonzero(counts.pixels)
        wanted[present] = [stratum.points for stratum in design.strata]
        rank = pd.Series(drawn.classes).groupby(drawn.classes).cumcount().to_numpy()
        drawn = drawn.at(rank < wanted[drawn.classes])
        return design, drawn, np.searchsorted(present, drawn.classes)
    if request.design == "random":
        drawn = drawn.at(np.arange(len(drawn)) < design.points)
    else:
        assert design.interval is not None
        drawn = systematic(frame, interval=design.interval, seed=request.seed)
        design = replace(design, strata=(replace(design.strata[0], points=len(drawn)),))
    return design, drawn, np.zeros(len(drawn), np.int64)


def _most(request: SampleRequest) -> int:
    """The points that are kept of each stratum while the frame is counted: rarely does one need more."""
    if request.points is not None:
        return request.points
    assert request.standard_error is not None
    # That of the largest variance in one stratum. An equal allocation may need more; then the map is read again.
    return min(MOST, max(math.ceil(0.25 / request.standard_error**2), 1000))


def _design(counts: FrameCounts, run_map: RunMap, request: SampleRequest, expected: NDArray[np.float64]) -> Design:
    """The design: strata with their numbers of points, of which a systematic grid finds only about as many."""
    pixels, known = counts.pixels, np.isfinite(counts.hectares).all()
    classes = _class_counts(run_map, counts)
    present = np.flatnonzero(pixels)
    excluded = Excluded(
        tuple(request.excluded),
        int(counts.excluded_pixels.sum()),
        float(counts.excluded_hectares.sum()) if known else None,
    )
    design = Design(
        request.design, (), classes, run_map.digest, run_map.item_ids, request.seed, None, None, request.standard_error
    )
    design = replace(design, excluded=excluded)
    size, accuracies = pixels[present], expected[present]
    if request.design != "stratified":
        shares = point_shares(size, accuracies, "proportional")
        wanted = _wanted(request, size, accuracies, shares)
        wanted = int(allocate([size.sum()], np.ones(1), wanted, minimum=2)[0])
        area = float(counts.hectares.sum()) if known else None
        all_of_it = Stratum(1, "all", int(size.sum()), area, wanted, wanted / int(size.sum()))
        interval = math.sqrt(int(size.sum()) / wanted) if request.design == "systematic" else None
        return replace(design, strata=(all_of_it,), interval=interval)
    shares = point_shares(size, accuracies, request.allocation)
    minima = int(np.minimum(size, request.minimum).sum())
    wanted = request.points or max(minima, _wanted(request, size, accuracies, shares))
    points = allocate(size, shares, wanted, minimum=request.minimum)
    numbers = stratum_numbers(
        [classes[position].name for position in present],
        np.random.default_rng(request.seed).permutation(len(present)).tolist(),
    )
    strata = tuple(
        Stratum(
            numbers[classes[position].name],
            classes[position].name,
            classes[position].pixels,
            classes[position].hectares,
            int(n),
            int(n) / classes[position].pixels,
            UNKNOWN if np.isnan(expected[position]) else float(expected[position]),
        )
        for position, n in zip(present.tolist(), points, strict=True)
    )
    return replace(design, strata=strata, allocation=request.allocation, minimum=request.minimum)


def _class_counts(run_map: RunMap, counts: FrameCounts) -> tuple[ClassCount, ...]:
    known = np.isfinite(counts.hectares).all()
    return tuple(
        ClassCount(each.id, each.name, int(n), float(area) if known else None)
        for each, n, area in zip(run_map.classes, counts.pixels, counts.hectares, strict=True)
    )


def _wanted(
    request: SampleRequest, size: NDArray[np.int64], accuracies: NDArray[np.float64], shares: NDArray[np.float64]
) -> int:
    """The number of points as given, or for the standard error; then at most all pixels."""
    if request.points is not None:
        return request.points
    assert request.standard_error is not None
    return min(needed_points(size, accuracies, shares, standard_error=request.standard_error), int(size.sum()))


def _notes(design: Design, request: SampleRequest) -> list[str]:
    """What the person who labels the points, or uses the estimates, should know."""
    notes = []
    if design.hectares is None:
        notes.append("the grid has no CRS on the Earth, so that areas will be given in pixels")
    if request.design == "systematic":
        notes.append(
            "the variance of a systematic sample is estimated as that of a random one, which is usually too large, and too "
            "small where the map has a pattern of the grid's interval"
        )
    if len(design.scenes) > 1:
        notes.append("ground that several scenes share is in the frame several times")
    return notes


def _write(
    config: Config,
    workspace: Workspace,
    folder: str,
    design: Design,
    table: pd.DataFrame,
    frame: Sequence[SceneFrame],
    run_map: RunMap,
    shown: Sequence[str] | None,
    lease: Lease,
) -> None:
    """Write the files of a sample, the record last: what has no record is no sample."""
    with TemporaryDirectory(prefix="mibf-") as temporary:
        points, sheet = Path(temporary, POINTS), Path(temporary, SHEET)
        write_geopackage(points, table, frame)
        with progress_bar("interpretation sheet", len(table), unit="points") as advance:
            write_sheet(
                sheet,
                title=f"{config.name}, run {config.run}",
                table=table,
                stores={scene.name: scene.store for scene in run_map.scenes},
                scaling=workspace.scaling,
                classes=run_map.classes,
                shown=shown,
                advance=advance,
            )
        lease.check()
        storage.remove(storage.join(folder, RECORD))
        for path in (points, sheet):
            lease.check()
            storage.publish(str(path), storage.join(folder, path.name))
    lease.check()
    storage.write_bytes(storage.join(folder, TABLE), csv_bytes(table))
    lease.check()
    storage.write_json(storage.join(folder, RECORD), design.to_json())
    info(f"wrote {storage.redact_url(folder)}")
