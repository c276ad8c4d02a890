"""What `prepare` reports of the stores that it wrote: figures for machines, and lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.config.config import Config
from jobs.prepare.preflight import MOST_LISTED, name_bands
from jobs.runtime.progress import pluralize
from jobs.workflow.split_caveat import split_caveat
from pipeline.codes import SUBSETS
from pipeline.scenes.coregistration import Shift, describe_shift
from pipeline.store.build import PreparedScene
from pipeline.store.quantiles import QuantileSketch
from pipeline.store.records import StoreRecords
from pipeline.store.source_overlap import SourceOverlap

#: Minimum share of valid pixels; the summary lists the coverage of sources below it.
COVERED = 0.999
#: In place of a period's name, of a composite without periods.
ALL_DATES = "all dates"


@dataclass(frozen=True)
class Written:
    """A scene whose store is complete but possibly not yet moved to its final location."""

    scene: PreparedScene
    url: str
    records: StoreRecords
    samples: NDArray[np.int64]  #: number per subset and class (subset, class)
    overlapping: float  #: share of test patches that overlap a training patch; NaN without test samples
    sketches: dict[str, QuantileSketch]  #: values of each source at training samples
    overlap: dict[str, SourceOverlap]  #: by source
    entire: dict[str, QuantileSketch]  #: all valid values of the matched sources


def _coverage(w: Written) -> dict[str, float]:
    """Return the share of valid pixels of each source in a scene's area."""
    pixels = max(1, w.scene.pixels)  # of the area: what is outside is not missing
    return {s.declared.name: w.records.valid(s.declared.name) / (pixels * s.scale**2) for s in w.scene.sources}


def _observations(w: Written) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by source and period, the median number of clear dates and the share of a scene's area without any."""
    found = {}
    for source in w.scene.sources:
        names = [period.name for period in source.declared.periods] or [ALL_DATES]
        if source.declared.planes:
            counted = w.records.observations(source.declared.name, w.scene.pixels * source.scale**2)
            found[source.declared.name] = {
                name: {"median": median, "without": without} for name, (median, without) in zip(names, counted, strict=True)
            }
    return found


def _observation_lines(periods: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Describe the clear dates of a source, by period."""
    parts = [
        f"{'' if name == ALL_DATES else f'{name}: '}{own['median']:g}"
        + (f" ({own['without']:.1%} of the pixels without any)" if own["without"] else "")
        for name, own in periods.items()
    ]
    return [f"    clear dates, median: {', '.join(parts)}"]


def store_figures(w: Written, shifts: dict[str, Shift]) -> dict[str, object]:
    """Figures of a scene's store, as JSON values."""
    template = w.scene.template
    rows, columns = template.shape
    area = {} if w.scene.area is None else {"area_pixels": w.scene.pixels}
    observations = _observations(w)
    skipped = {s.declared.name: list(map(str, s.declared.skipped)) for s in w.scene.sources if s.declared.skipped}
    return (
        area
        | ({"skipped": skipped} if skipped else {})
        | {
            "shape": [rows, columns],
            "shard": template.shard,
            "shards": len(w.records.shards),
            "objects": len(w.records.objects),
            "bytes": w.records.stored_bytes,
            "uncompressed_bytes": w.scene.uncompressed_bytes,
            "coverage": _coverage(w),
            **({"observations": observations} if observations else {}),
            "shifts": {name: asdict(shift) | {"credible": shift.credible} for name, shift in shifts.items()},
            "read_seconds": round(sum(s.read_seconds for s in w.records.shards), 1),
            "write_seconds": round(sum(s.write_seconds for s in w.records.shards), 1),
        }
    )


def store_lines(w: Written, shifts: dict[str, Shift]) -> list[str]:
    """Describe a scene's store as lines of text."""
    template = w.scene.template
    rows, columns = template.shape
    covered, observations = _coverage(w), _observations(w)
    share = w.records.stored_bytes / max(1, w.scene.uncompressed_bytes)
    lines = [
        f"{w.scene.name}: {rows} x {columns} pixels in {pluralize(len(w.records.shards), 'shards')} of {template.shard}, "
        f"{w.records.stored_bytes / 1e6:,.1f} MB ({share:.0%} of the uncompressed size)"
    ]
    if w.scene.area is not None:
        lines.append(f"  area: {w.scene.pixels:,} pixels, {w.scene.pixels / (rows * columns):.0%} of the grid")
    for source in w.scene.sources:
        name = source.declared.name
        at = "" if source.scale == 1 else f", at {source.scale} times the grid resolution"
        coverage = "" if covered[name] >= COVERED else f"; valid in {covered[name]:.1%} of the pixels"
        bands = name_bands(source.bands, source.declared.kept)
        lines.append(f"  {name}: {bands} of {source.dtype}, {' and '.join(source.how)}{at}{coverage}")
        lines += [f"    left out: {item}" for item in source.declared.skipped[:MOST_LISTED]]
        lines += _observation_lines(observations[name]) if name in observations else []
    first = w.scene.sources[0].declared.name
    lines += [f"  {describe_shift(name, first, shift)}" for name, shift in shifts.items()]
    return lines


def split_lines(config: Config, figures: Mapping[str, object]) -> list[str]:
    """Describe the split of all scenes as lines of text."""
    if not config.labelled:
        return ["no labels: no training samples and no normalization"]
    counts, overlap = figures["counts"], figures["overlap"]
    assert isinstance(counts, dict)
    assert isinstance(overlap, dict)
    lines = [f"samples by {config.split.method} split: {', '.join(f'{s} {sum(counts[s].values()):,}' for s in SUBSETS)}"]
    width = max(len(c.name) for c in config.classes)
    lines += [f"  {c.name:<{width}}" + "".join(f"  {counts[s][c.name]:>11,}" for s in SUBSETS) for c in config.classes]
    scenes = figures.get("scenes", {})
    assert isinstance(scenes, dict)
    lines += [
        f"{name}: {', '.join(f'{subset} {number:,}' for subset, number in own.items())}" for name, own in scenes.items()
    ]
    lines += [
        f"{name}: {share:.2%} of test patches overlap a training patch"
        for name, share in overlap.items()
        if np.isfinite(share)
    ]
    shared = figures["source_overlap"]
    assert isinstance(shared, dict)
    lines += [
        f"  {scene}: {share:.2%} of test patches hold a pixel of source {source!r} that a training patch holds"
        for scene, sources in shared.items()
        for source, share in sources.items()
    ]
    caveat = split_caveat(figures)
    if config.split.method == "random":
        lines.append(
            "note: a random split leaks: test patches contain training pixels; use its metrics only to compare methods"
        )
    elif config.split.method == "raster" and caveat is not None:
        lines.append(f"note: {caveat}")
    return lines
