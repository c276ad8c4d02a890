"""`mibf change`: which classes of one published map have become which ones of another, in pixels and hectares."""

from __future__ import annotations

import csv
import io
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import numpy as np

from jobs.products.change_sample import read_change_sample
from jobs.runtime.progress import progress_bar
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.publishing.class_map import ClassMap
from pipeline.transitions.count import Transitions, check_same_grid, count_transitions
from pipeline.transitions.estimate import AreaEstimate, ChangeEstimate, SampledBy, estimate_change
from pipeline.transitions.raster import transition_raster

#: What every result says.
CAVEAT = (
    "These are counts of pixels of two maps, not estimates of change: pixels that either map has wrong count as changed, "
    "and the errors of both add up. For areas of change with confidence intervals, label a sample of the transitions and "
    "pass it as --sample."
)
#: Largest number of transitions that are listed as text.
LISTED = 20


@dataclass(frozen=True)
class Change:
    """The transitions between two maps."""

    first: ClassMap
    second: ClassMap
    found: Transitions
    written: tuple[str, ...]
    estimate: ChangeEstimate | None = None

    def lines(self) -> list[str]:
        """Format the transitions between different classes, the largest first."""
        found = self.found
        total = int(found.pixels.sum())
        share = f" ({found.changed_pixels / total:.2%})" if total else ""
        lines = [
            f"{storage.redact_url(self.first.folder)} -> {storage.redact_url(self.second.folder)}",
            f"{total:,} pixels have a class in both maps; {found.changed_pixels:,}{share} have another one"
            + ("" if np.isnan(found.changed_hectares) else f": {found.changed_hectares:,.2f} ha"),
        ]
        if found.only_first or found.only_second:
            lines.append(
                f"{found.only_first:,} pixels have a class in the first map only, {found.only_second:,} in the second only"
            )
        changed = sorted((s for s in found.strata if s.before != s.after), key=lambda s: -s.pixels)
        width = max((len(f"{s.before} -> {s.after}") for s in changed[:LISTED]), default=0)
        lines += [
            f"  {f'{s.before} -> {s.after}':<{width}}  {s.pixels:>14,} px"
            + ("" if np.isnan(s.hectares) else f"  {s.hectares:>16,.2f} ha")
            for s in changed[:LISTED]
        ]
        if len(changed) > LISTED:
            lines.append(f"  and {len(changed) - LISTED} more (--output transitions.csv has all)")
        return [*lines, CAVEAT, *self._estimated(), *(storage.redact_url(url) for url in self.written)]

    def _estimated(self) -> list[str]:
        found = self.estimate
        if found is None:
            return []
        lines = [
            f"estimated from {found.points:,} labelled points, with 95 % intervals; the maps agree with "
            f"{found.agreement:.1%} of the area:",
            f"  all changes  {_area(found.changed, found.unit)}",
        ]
        if found.merged:
            lines.insert(1, f"  {found.merged} transitions with few points were merged for the variance")
        for (before, after), area in sorted(found.transitions.items(), key=lambda entry: -entry[1].value)[:LISTED]:
            if before != after:
                lines.append(f"  {before} -> {after}  {_area(area, found.unit)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; rows are classes of the first map, columns those of the second."""
        found = self.found
        return {
            "first": storage.redact_url(self.first.folder),
            "second": storage.redact_url(self.second.folder),
            "classes": list(found.classes),
            "pixels": found.pixels.tolist(),
            "hectares": found.hectares.tolist(),
            "changed_pixels": found.changed_pixels,
            "changed_hectares": found.changed_hectares,
            "only_first": found.only_first,
            "only_second": found.only_second,
            "caveat": CAVEAT,
            "files": [storage.redact_url(url) for url in self.written],
            "estimate": None if self.estimate is None else _estimate_json(self.estimate),
        }


def change(
    first: ClassMap,
    second: ClassMap,
    *,
    output: str | None = None,
    raster: str | None = None,
    sample: str | None = None,
    sampled_by: str = "transitions",
) -> Change:
    """Count the transitions between two maps, and write them as CSV and as a raster where URLs are given.

    Args:
        first: the earlier map.
        second: the later map.
        output: URL of the table.
        raster: URL of the raster.
        sample: URL of labelled points, from which areas of change are estimated.
        sampled_by: how they were drawn, of `SampledBy`.

    Raises:
        InputError: the maps are not on the same grid, the sample cannot be used, or a file cannot be written.
        MapReplacedError: a map was replaced while it was read; nothing was written.
    """
    check_same_grid(first, second)
    for option, url, suffix in (("--output", output, ".csv"), ("--raster", raster, ".tif")):
        if url is not None:
            if not url.lower().endswith(suffix):
                raise InputError(f"{option} {url}: must end in {suffix}.")
            storage.check_writable(storage.absolute(url).rpartition("/")[0])
    if sampled_by not in get_args(SampledBy):
        raise InputError(f"--sampled-by {sampled_by}: must be one of {', '.join(get_args(SampledBy))}.")
    rows, columns = first.shape
    with ExitStack() as stack:
        take = None if raster is None else stack.enter_context(transition_raster(first, second, raster))
        progress = progress_bar("transitions", rows * columns, unit="pixels")
        found = count_transitions(first, second, take=take, progress=progress)
        estimate = None
        if sample is not None:
            labelled = read_change_sample(sample, first, second, found)
            estimate = estimate_change(found, labelled, cast(SampledBy, sampled_by))
    if output is not None:
        content = _csv(found)
        call_with_retry(output, lambda: storage.write_bytes(output, content))
    return Change(first, second, found, tuple(url for url in (output, raster) if url is not None), estimate)


def _area(found: AreaEstimate, unit: str) -> str:
    return f"{found.value:>14,.2f} {unit} ({found.low:,.2f} to {found.high:,.2f})"


def _estimate_json(found: ChangeEstimate) -> dict[str, Any]:
    transitions = [{"before": pair[0], "after": pair[1], **asdict(area)} for pair, area in found.transitions.items()]
    return {**asdict(found), "transitions": transitions}


def _csv(found: Transitions) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["from", "to", "pixels", "hectares"])
    for stratum in found.strata:
        hectares = "" if np.isnan(stratum.hectares) else repr(stratum.hectares)
        writer.writerow([stratum.before, stratum.after, stratum.pixels, hectares])
    return text.getvalue().encode()
