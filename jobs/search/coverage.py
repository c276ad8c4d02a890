"""Report, before anything is read, the items of each period of a source, and how much of the area they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from jobs.config.config import Config
from jobs.config.resolve import periods_of
from jobs.config.scene import SceneSection
from jobs.config.stac import StacSection
from jobs.runtime.progress import info, pluralize, warn
from jobs.search.frozen import ground_of
from jobs.search.search import in_degrees
from mibf.errors import InputError
from pipeline.areas.area import Area, describe_degrees
from pipeline.areas.footprints import covered, footprint, share
from pipeline.io import storage
from pipeline.rasters.longitude import Extent
from pipeline.stac.assets import read_items, solar_dates
from pipeline.stac.periods import listed

#: Share of the area that footprints of a period should cover; less is warned of.
LEAST_COVERAGE = 0.95
#: Periods of a source that are listed one by one.
LISTED = 24


@dataclass(frozen=True)
class PeriodItems:
    """The items of a source in a period, or all of a source without periods, whose period has no name."""

    period: str
    items: int
    dates: int
    coverage: float | None  #: share of the area that their footprints cover, 0 to 1; None if that is unknown
    without_footprint: int = 0  #: items that state no footprint

    def __str__(self) -> str:
        name = f" {self.period}" if self.period else ""
        if not self.items:
            return f"{name}: no items"
        known = "" if not self.without_footprint else "at least "
        share = "coverage unknown" if self.coverage is None else f"{known}{100 * self.coverage:.1f} % of the area"
        return f"{name}: {pluralize(self.items, 'items')}, {pluralize(self.dates, 'dates')}, {share}"

    @property
    def lacking(self) -> bool:
        """Whether it is known that its items cover too little of the area."""
        known = self.coverage is not None and not self.without_footprint
        return known and bool(self.items) and (self.coverage or 0.0) < LEAST_COVERAGE


@dataclass(frozen=True)
class _Items:
    """The items of a source: their days and footprints."""

    stac: StacSection
    days: list[str]
    footprints: list[BaseGeometry | None]


def report_items(config: Config) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Print what the items of each source and period cover, warn of what they lack, and return it by scene and source.

    Args:
        config: a configuration without searches.

    Raises:
        InputError: items cannot be read, or all of a source are outside the area.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for scene in config.scenes:
        declared = {name: source.stac for name, source in scene.sources.items() if source.stac is not None}
        read = {name: _read(stac) for name, stac in declared.items()}
        if not read:
            continue
        ground = _ground(scene, read)
        area = None if ground is None else ground if isinstance(ground, BaseGeometry) else in_degrees(ground)
        found[scene.name] = {}
        for name, items in read.items():
            periods, joint = _by_period(items, area)
            if isinstance(ground, Area):
                _check_overlap(scene.name, name, items, periods, ground)
            _report(f"{scene.name}: {name}", items.stac, periods, joint)
            found[scene.name][name] = [asdict(period) for period in periods]
    return found


def _read(stac: StacSection) -> _Items:
    url = storage.absolute(stac.items)
    items = read_items(url)
    return _Items(stac, solar_dates(url, items), [footprint(item) for item in items])


def _ground(scene: SceneSection, read: dict[str, _Items]) -> Area | BaseGeometry | None:
    """The area of a scene; else that of its grid, which is the footprints' where it is that of items; None if unknown.

    Raises:
        InputError: the area cannot be used.
    """
    like = scene.grid.like
    if scene.area is not None or scene.bbox is not None:
        return ground_of(scene)
    if like in read:
        known = [each for each in read[like].footprints if each is not None]
        return shapely.union_all(known) if known else None
    try:
        ground = ground_of(scene)
        in_degrees(ground)
    except InputError:  # it has no place on the Earth, or its file cannot be read, which is reported when it is
        return None
    return ground


def _check_overlap(scene: str, name: str, items: _Items, periods: Sequence[PeriodItems], ground: Area) -> None:
    """Check that some item of some period is in the area, if all footprints are known.

    Raises:
        InputError: none is.
    """
    there = [period for period in periods if period.items]
    if not there or any(period.coverage != 0 or period.without_footprint for period in there):
        return
    place = Extent(*shapely.union_all([each for each in items.footprints if each is not None]).bounds)
    url = storage.redact_url(items.stac.items)
    of = f" of {listed([period.period for period in there])}" if items.stac.periods is not None else ""
    raise InputError(
        f"scene {scene!r}: no item of source {name!r}{of} covers any of the area {ground.name}: the items in {url} span "
        f"{describe_degrees([place])}, the area {ground.describe()}. Search in this area, or check `area`, `bbox` or `grid`."
    )


def _by_period(items: _Items, area: BaseGeometry | None) -> tuple[list[PeriodItems], float | None]:
    """The items of each period, and the share of the area that the items of every period cover, if it is known."""
    found, joint = list[PeriodItems](), area
    periods = periods_of(items.stac, items.days)
    for period in periods or (None,):
        chosen = [at for at, day in enumerate(items.days) if period is None or day in period]
        footprints = [each for at in chosen if (each := items.footprints[at]) is not None]
        part = None if area is None or (chosen and not footprints) else covered(area, footprints)
        days = len({items.days[at] for at in chosen})
        own = None if area is None or part is None else share(area, part)
        name = "" if period is None else period.name
        found.append(PeriodItems(name, len(chosen), days, own, len(chosen) - len(footprints)))
        joint = None if joint is None or part is None else joint.intersection(part)
    return found, None if area is None or joint is None else share(area, joint)


def _report(name: str, stac: StacSection, periods: Sequence[PeriodItems], joint: float | None) -> None:
    """Print a line for each period, or one for many, and warn of those that cover too little."""
    lacking = [period for period in periods if period.lacking]
    if len(periods) <= LISTED:
        for period in periods:
            info(f"{name}{period}")
    else:
        known = [period.coverage for period in periods if period.coverage is not None]
        span = f", {100 * min(known):.1f} to {100 * max(known):.1f} % of the area" if known else ""
        items = sum(period.items for period in periods)
        first, last = periods[0].period, periods[-1].period
        info(f"{name}: {pluralize(items, 'items')} in {len(periods)} periods, {first} to {last}{span}")
    if not lacking:
        return
    least = min(lacking, key=lambda period: period.coverage or 0.0)
    those = f" of {listed([period.period for period in lacking])}" if stac.periods is not None else ""
    figure = f"{100 * (least.coverage or 0.0):.1f} % of the area" + (f" ({least.period})" if len(lacking) > 1 else "")
    if stac.periods is None or (stac.gaps == "exclude" and len(periods) == 1):
        what = "elsewhere the source has no data"
    elif stac.gaps == "exclude":
        most = "" if joint is None else f": at most {100 * joint:.1f} % of the area is left"
        what = f"pixels that lack a period have no data{most}; set `gaps` to `interpolate` or `fill` to keep them"
    else:
        what = f"the values of these periods are {'interpolated' if stac.gaps == 'interpolate' else 'filled'} elsewhere"
    warn(f"{name}: the items{those} cover only {figure}; {what}")
