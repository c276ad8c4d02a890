"""`mibf change`: which classes of one published map have become which ones of another, in pixels and hectares."""

from __future__ import annotations

import csv
import io
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.runtime.progress import progress_bar
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.publishing.class_map import ClassMap
from pipeline.transitions.count import Transitions, check_same_grid, count_transitions
from pipeline.transitions.raster import transition_raster

#: What every result says.
CAVEAT = (
    "These are counts of pixels of two maps, not estimates of change: pixels that either map has wrong count as changed, "
    "and the errors of both add up. For areas of change with confidence intervals, sample the transitions and label them."
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
        return [*lines, CAVEAT, *(storage.redact_url(url) for url in self.written)]

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
        }


def change(first: ClassMap, second: ClassMap, *, output: str | None = None, raster: str | None = None) -> Change:
    """Count the transitions between two maps, and write them as CSV and as a raster where URLs are given.

    Raises:
        InputError: the maps are not on the same grid, or a file cannot be written; nothing was written.
        MapReplacedError: a map was replaced while it was read; nothing was written.
    """
    check_same_grid(first, second)
    for option, url, suffix in (("--output", output, ".csv"), ("--raster", raster, ".tif")):
        if url is not None:
            if not url.lower().endswith(suffix):
                raise InputError(f"{option} {url}: must end in {suffix}.")
            storage.check_writable(storage.absolute(url).rpartition("/")[0])
    rows, columns = first.shape
    with ExitStack() as stack:
        take = None if raster is None else stack.enter_context(transition_raster(first, second, raster))
        progress = progress_bar("transitions", rows * columns, unit="pixels")
        found = count_transitions(first, second, take=take, progress=progress)
    if output is not None:
        content = _csv(found)
        call_with_retry(output, lambda: storage.write_bytes(output, content))
    return Change(first, second, found, tuple(url for url in (output, raster) if url is not None))


def _csv(found: Transitions) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["from", "to", "pixels", "hectares"])
    for stratum in found.strata:
        hectares = "" if np.isnan(stratum.hectares) else repr(stratum.hectares)
        writer.writerow([stratum.before, stratum.after, stratum.pixels, hectares])
    return text.getvalue().encode()
