"""Leave items with damaged files out of a composite, so that one of hundreds of dates does not stop the others."""

from __future__ import annotations

import time
from dataclasses import replace

from jobs.config.scene import SourceSection
from jobs.runtime.progress import pluralize
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.rasters.header import DamagedError, RasterFile
from pipeline.rasters.raster import header, stamped
from pipeline.scenes.source import Source
from pipeline.stac.assets import Skipped
from pipeline.stac.series import emptied_periods

#: Times that a remote file is opened, and seconds between, before it counts as damaged.
ATTEMPTS, PAUSE = 3, 1.0


def without_damaged(source: Source, section: SourceSection) -> Source:
    """Leave out items whose files are not rasters, if others remain, and add notes on all skipped items.

    Whether a file is one depends on its content, which is part of the fingerprint; a file that cannot be reached is
    refused. What is damaged beyond a file's header is found when it is read, and refused, too.

    Raises:
        InputError: a file cannot be reached, or is not what is declared; or no item is left of a period that needs one.
    """
    dates = {*source.dates, *(item.date for item in source.skipped)}
    if section.stac is None or section.stac.on_error == "refuse" or len(dates) < 2:
        return source
    kept, damaged = list[int](), dict[int, InputError]()
    for at in range(len(source.dates)):
        files = [layer[at] for layer in source.layers] + [mask.file for mask in source.masks[at : at + 1]]
        try:
            for file in files:
                _open(stamped(file))
        except DamagedError as error:
            damaged[at] = error
        else:
            kept.append(at)
    if not kept:
        raise next(iter(damaged.values()))
    skipped = [Skipped(source.dates[at], f"an item of {source.dates[at]}: {error}") for at, error in damaged.items()]
    skipped = [*source.skipped, *skipped]
    if not skipped:
        return source
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    note = (
        f"source {source.name!r}: {pluralize(len(skipped), 'items')} of {len(kept) + len(skipped)} left out of the "
        f"composite: {str(skipped[0]).rstrip('.')}{more}; `stac.on_error: refuse` stops instead"
    )
    days = tuple(source.dates[at] for at in kept)
    emptied = emptied_periods(source.name, source.periods, days, skipped, source.gaps)
    return replace(
        source,
        layers=tuple(tuple(layer[at] for at in kept) for layer in source.layers),
        masks=tuple(source.masks[at] for at in kept if source.masks),
        dates=days,
        skipped=tuple(skipped),
        notes=(*source.notes, note, *emptied),
    )


def _open(file: RasterFile) -> None:
    """Read a file's header; a server may fail once and answer later."""
    for _ in range(0 if storage.is_local(file.url) else ATTEMPTS - 1):
        try:
            header(file)
        except DamagedError:
            time.sleep(PAUSE)
        else:
            return
    header(file)
