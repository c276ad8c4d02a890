"""Human-readable summaries of maps: what was published, where the time went, which tiles are missing and why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from textwrap import shorten
from typing import Any

from jobs.map.request import TileRequest
from jobs.map.scene_map import SceneMap
from jobs.runtime.progress import pluralize
from pipeline.maps.tile_selection import select_tiles

REMEDY = "Fix the causes above, then run `mibf rerun` to map only the remaining tiles."


def published_line(scene: SceneMap) -> str:
    """One line on a published scene's map."""
    rows, columns = scene.store.shape
    skipped = f", {len(scene.empty):,} without data skipped" if scene.empty else ""
    tiles = f"{pluralize(len(scene.tasks), 'tiles')}{skipped}"
    return f"{scene.name}: {scene.pixels():,} of {rows * columns:,} pixels mapped, {tiles}"


def timing_lines(figures: dict[str, Any], workers: int, *, published: bool) -> list[str]:
    """Describe how the time was spent."""
    if not figures["tiles_mapped"]:
        return ["no tiles to map; " + ("the files were published again" if published else "nothing was changed")]
    shares = ", ".join(f"{name} {100 * figures[name]:.1f} %" for name in ("reading", "computing", "writing", "waiting"))
    where = "in this process" if workers == 0 else f"by {pluralize(workers, 'workers')}, excluding their startup"
    return [
        f"{pluralize(figures['tiles_mapped'], 'tiles')} mapped in {figures['tiles_seconds']:,.0f} s {where}: "
        f"{figures['pixels_per_second']:,.0f} pixels/s",
        f"shares of that time (they may overlap): {shares}; publishing took another {figures['publish_seconds']:,.1f} s",
    ]


def incomplete_lines(scene: SceneMap, request: TileRequest) -> list[str]:
    """Describe which tiles a scene's map lacks, and why."""
    states = scene.states()
    counts = Counter(states.values())
    failed = [f"{counts['failed']:,} of {pluralize(len(states), 'tiles')} failed"] if counts["failed"] else []
    others = [f"{counts[state]:,} of {len(states):,} are {state}" for state in ("pending", "stale") if counts[state]]
    kept = "the earlier map is still published" if scene.item() is not None else "nothing was published"
    left = select_tiles(
        scene.tasks,
        scene.ledger.last(),
        max_attempts=request.max_attempts,
        backoff_seconds=request.backoff,
        now=time.time(),
    )
    lines = [f"{scene.name}: {' and '.join(failed + others)}; {kept}", *format_causes(scene.causes())]
    if left.exhausted:
        lines.append(
            f"  skipped {len(left.exhausted):,} of the failed tiles, which had {request.max_attempts} or more failed "
            "attempts; run `mibf map` to retry them"
        )
    if left.retry_at is not None:
        until = datetime.fromtimestamp(left.retry_at, UTC)
        lines.append(
            f"  {len(left.backing_off):,} of the failed tiles will not be retried before {until:%Y-%m-%dT%H:%M:%SZ}"
        )
    return lines


#: Maximum number of causes shown, of tiles per cause, and of characters per cause.
CAUSES_SHOWN, TILES_SHOWN, CAUSE_LENGTH = 5, 3, 400


def format_causes(causes: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Format causes, one per line, with the first of their tiles."""
    lines = []
    for cause, keys in causes[:CAUSES_SHOWN]:
        more = f" and {len(keys) - TILES_SHOWN:,} more" if len(keys) > TILES_SHOWN else ""
        lines.append(f"  {', '.join(keys[:TILES_SHOWN])}{more}: {shorten(cause, CAUSE_LENGTH, placeholder=' ...')}")
    if len(causes) > CAUSES_SHOWN:
        lines.append(f"  and {pluralize(len(causes) - CAUSES_SHOWN, 'other causes')}; `mibf status --json` lists all")
    return lines
