"""Search for the items of a configuration's sources, once: the workspace keeps what was found.

What was found is used until the search or its area changes, or another search is asked for. Later stages never search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyproj
import shapely
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from jobs.config.config import Config
from jobs.config.resolve import area, sources
from jobs.config.scene import SceneSection
from jobs.runtime.progress import info, warn
from jobs.search.search import in_degrees, report_progress, summarize
from jobs.workflow.found_items import SourceKey, searches, with_items
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.areas.area import Area
from pipeline.io import checksums, storage
from pipeline.io.lease import acquire
from pipeline.rasters.longitude import engineering_name
from pipeline.scenes.acquisition_time import days
from pipeline.scenes.reference_grid import reference_grid
from pipeline.stac.geoparquet import MixedItemsError, decode_table, encode_table, read_kept
from pipeline.stac.search import Found, Query, search


@dataclass(frozen=True)
class _Search:
    """The search of a source, and what is kept of it."""

    key: SourceKey
    query: Query
    stated: dict[str, Any]  #: what the result depends on, as kept with it
    url: str  #: where it is kept

    @property
    def name(self) -> str:
        """Its scene and source, for messages."""
        return f"{self.key[0]}: source {self.key[1]!r}"


@dataclass(frozen=True)
class _Result:
    """What a search found."""

    search: _Search
    content: bytes | None  #: of the file to write; None if the items are those that are kept
    lines: list[str]


def freeze(config: Config, *, refresh: bool) -> None:
    """Search for the items of every source that has a search, and keep them; those that are kept already stay.

    Nothing is written unless all searches succeed.

    Args:
        config: a configuration.
        refresh: search again, and say what has changed.

    Raises:
        InputError: a search fails, or what was kept is damaged; or there is no search to repeat.
        LeaseHeldError: another run holds the workspace.
    """
    declared = searches(config)
    if not declared:
        if refresh:
            raise InputError("--refresh: no source of the configuration has `stac.search`; leave the option out.")
        return
    wanted = _searches(config)
    if not refresh and not _to_search(wanted):
        return
    workspace = Workspace.of(config)
    storage.check_writable(workspace.url)
    with acquire(workspace.url, what=f"search for items of {config.name}") as lease:
        results = _found(wanted if refresh else _to_search(wanted), refresh=refresh)
        for result in results:
            for line in result.lines:
                info(line)
            if result.content is not None:
                lease.check()
                with storage.as_input_errors(result.search.url):
                    storage.write_bytes(result.search.url, result.content)


@contextmanager
def with_found_items(config: Config) -> Iterator[Config]:
    """Return a configuration whose searches are replaced by what they found, for the block, without changing the workspace.

    Searches that nothing is kept of are done, and forgotten after the block.

    Raises:
        InputError: as `freeze`.
    """
    wanted = _searches(config)
    with tempfile.TemporaryDirectory(prefix="mibf-items-") as folder:
        urls = {each.key: each.url for each in wanted}
        for number, result in enumerate(_found(_to_search(wanted), refresh=False)):
            url = urls[result.search.key] = storage.join(folder, f"{number}.parquet")
            storage.write_bytes(url, result.content or b"")
            for line in result.lines:
                info(line)
            info(f"{result.search.name}: nothing is kept of this search; `mibf prepare` searches again, and keeps it")
        yield with_items(config, urls)


def _searches(config: Config) -> list[_Search]:
    workspace = Workspace.of(config)
    found = []
    for scene in config.scenes:
        own = {key: section for key, section in searches(config).items() if key[0] == scene.name}
        if not own:
            continue
        ground = ground_of(scene)
        polygons = in_degrees(ground)
        for key, section in own.items():
            url = storage.absolute(section.url)
            start, end = days(section.dates)
            query = Query(url, polygons, start, end, section.collections, section.filter, section.max_items)
            stated = {
                "url": storage.redact_url(url),
                "collections": sorted(section.collections),
                "start": start.isoformat(),
                "end": end.isoformat(),
                "filter": section.filter,
                "area": checksums.digest([shapely.to_wkb(ground.geometry, hex=True), ground.crs.to_string()]),
            }
            found.append(_Search(key, query, stated, workspace.found_items(*key)))
    return found


def ground_of(scene: SceneSection) -> Area:
    """The area of a scene, or else that of its grid."""
    stated = area(scene)
    if stated is not None:
        return stated
    name, grid = f"of the grid of scene {scene.name!r}", scene.grid
    if grid.like is not None:
        like = scene.model_copy(update={"sources": {grid.like: scene.sources[grid.like]}})
        return _of_grid(name, reference_grid(sources(like)[grid.like]))
    assert grid.bounds is not None, "the configuration was checked"
    try:
        crs = pyproj.CRS.from_user_input(grid.crs)
    except pyproj.exceptions.CRSError as error:
        raise InputError(f"scene {scene.name!r}: grid.crs {grid.crs!r} is not a known CRS ({error}).") from error
    return _placed(name, shapely.box(*grid.bounds), crs.to_wkt())


def _of_grid(name: str, grid: GeoBox) -> Area:
    return _placed(name, grid.extent.geom, None if grid.crs is None else grid.crs.to_wkt())


def _placed(name: str, polygon: BaseGeometry, wkt: str | None) -> Area:
    if wkt is None or engineering_name(wkt) is not None:
        raise InputError(
            f"the area {name} has no CRS that refers to the Earth, so no items can be searched in it; give the scene an "
            "`area`."
        )
    return Area(name, polygon, pyproj.CRS.from_wkt(wkt))


def _to_search(wanted: list[_Search]) -> list[_Search]:
    """The searches that nothing is kept of, or the result of another search.

    Raises:
        InputError: what is kept is damaged.
    """
    missing = []
    for each in wanted:
        with storage.as_input_errors(each.url):
            there = storage.exists(each.url)
        if not there or _kept(each)[1] != each.stated:
            missing.append(each)
    return missing


def _kept(each: _Search) -> tuple[list[dict[str, Any]], Any]:
    """The items that are kept of a search, and what they were searched by."""
    remedy = "Restore the file, or search again with `mibf prepare --refresh`."
    try:
        with storage.as_input_errors(each.url):
            items, stated = read_kept(each.url)
    except InputError as error:
        raise InputError(f"{error} It holds the items that were found for {each.name}. {remedy}") from error
    if stated is None:
        raise InputError(f"{each.url}: does not say how its items of {each.name} were searched. {remedy}")
    return items, stated


def _found(wanted: list[_Search], *, refresh: bool) -> list[_Result]:
    """Search; the same search of several sources is done once."""
    done: dict[str, Found] = {}
    results = []
    for each in wanted:
        key = checksums.digest([each.stated, each.query.url])
        earlier = _earlier(each, refresh=refresh)
        if earlier is not None and earlier[1] != each.stated:
            info(f"{each.name}: the search has changed")
        if key not in done:
            info(f"{each.name}: search {each.query.name}")
            done[key] = search(each.query, report_progress)
        results.append(_compared(each, done[key], earlier))
    return results


def _earlier(each: _Search, *, refresh: bool) -> tuple[list[dict[str, Any]], Any] | None:
    """The items that were kept until now, and what they were searched by; None if there are none that can be read."""
    if not storage.exists(each.url):
        return None
    try:
        return _kept(each)
    except InputError as error:
        if not refresh:
            raise
        warn(f"{error} It is replaced; what is new is not known")
        return None


def _compared(each: _Search, found: Found, earlier: tuple[list[dict[str, Any]], Any] | None) -> _Result:
    """Encode what was found, and describe it next to what was kept before."""
    try:
        content = encode_table(found.items, each.stated)
    except MixedItemsError as error:
        raise InputError(
            f"{each.query.name}: {error}; save them with `mibf search --output items.json`, and give that file as "
            "`stac.url`."
        ) from error
    items = decode_table(content, each.url)
    summary = summarize(each.url, found, each.query.area, None if earlier is None else earlier[0], items)
    lines = [f"{each.name}: {line}" for line in summary.found()]
    return _Result(each, None if earlier == (items, each.stated) else content, lines)
