"""`mibf init --recipe`: write the configuration of an area and dates, whose sources are searched in a STAC API."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, cast, get_args

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from jobs.config.loader import load
from jobs.init.arguments import clean_name, parse_file
from jobs.init.choose_split import choose_patch, choose_split
from jobs.init.command import check_output, find_classes, label_summary, scene_name, write_new
from jobs.init.recipes import APIS, CLOUDS, MOST_CLOUDS, NOT_SEARCHED, RECIPES, Api, Recipe, RecipeSource
from jobs.init.write_config import LABELS_HINT, Draft, config_text, label_section, scalar
from mibf.errors import InputError
from pipeline.areas.area import Area, area_of_option
from pipeline.areas.area_grid import covering, zone
from pipeline.io import storage
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.acquisition_time import days

#: Length of the dates up to which months become bands; with longer ones, seasons do.
LONGEST_BY_MONTH = timedelta(days=366)


@dataclass(frozen=True)
class RecipeWritten:
    """A new configuration whose sources are searched."""

    config: str
    recipe: str
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    labels: tuple[str, ...]  #: what the labels hold, as lines

    def lines(self) -> list[str]:
        """Format what was written as lines of text."""
        quoted = shlex.quote(self.config)
        return [
            f"{self.recipe}: {', '.join(self.sources)}",
            *(f"note: {note}" for note in self.notes),
            *self.labels,
            "",
            f"written: {self.config}",
            f"next: check it, then mibf plan {quoted}, which searches, and mibf run {quoted}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return dict(vars(self))


def init_recipe(
    recipe: str,
    *,
    area: str | None,
    dates: str | None,
    api: str | None,
    labels: str | None,
    attribute: str | None,
    output: str,
    name: str | None,
    workspace: str | None,
) -> RecipeWritten:
    """Write the configuration of a recipe; nothing is searched yet.

    Args:
        recipe: a key of `RECIPES`.
        area: a vector file with the polygons to map.
        dates: START/END, both included.
        api: a key of `APIS`; by default the first of the recipe.
        labels: a raster of class ids or a vector file; None if the scene is only mapped.
        attribute: the column of a vector file with the class.
        output: where the configuration is written.
        name: name of the scene; by default that of the area's file.
        workspace: folder or URL for the results.

    Raises:
        InputError: an argument is missing or wrong, or a file cannot be used; nothing is written.
    """
    chosen = _choose(recipe, api)
    if area is None or dates is None:
        raise InputError(f"--recipe {recipe}: also needs --area FILE and --dates START/END.")
    period = _period(recipe, chosen, dates)
    if storage.without_queries(area) != area:
        raise InputError(
            f"--area {storage.redact_url(area)}: has a query or a password; pass credentials by the environment."
        )
    check_output(output)
    ground = area_of_option(area)
    scene = scene_name(name, clean_name(PurePosixPath(area).stem, default="scene"))
    grid = _grid(ground, chosen.resolution)
    patch = choose_patch(grid)
    found, split = None, None
    if labels is not None:
        executor = ThreadExecutor()
        found = find_classes(parse_file(labels), attribute, grid, executor)
        found, split = choose_split(found, grid, executor, patch=patch)
    elif attribute is not None:
        raise InputError(f"--attribute {attribute}: names a column of the label file; give that with --labels.")
    draft = Draft(scene, workspace or f"./work/{scene}", output, (), patch, found, split)
    lines = _scene(draft, chosen, area, period)
    with write_new(output, config_text(draft, lines)):
        load(output)
    names = tuple(source.name for source in chosen.sources)
    return RecipeWritten(output, recipe, names, chosen.notes, tuple(label_summary(found, split)))


def _choose(name: str, api: str | None) -> Recipe:
    """The recipe of an API.

    Raises:
        InputError: there is none.
    """
    if name in NOT_SEARCHED:
        raise InputError(f"--recipe {name}: {NOT_SEARCHED[name]}.")
    if name not in RECIPES:
        raise InputError(f"--recipe {name}: is unknown; the recipes are {', '.join((*RECIPES, *NOT_SEARCHED))}.")
    if api is not None and api not in get_args(Api):
        raise InputError(f"--api {api}: is unknown; choose one of {', '.join(get_args(Api))}.")
    by_api = RECIPES[name]
    if api is None:
        return next(iter(by_api.values()))
    found = by_api.get(cast(Api, api))
    if found is None:
        others = [each for each in by_api if each is not None]
        remedy = f"use --api {others[0]}" if others else "leave --api out, and its own index is searched"
        raise InputError(f"--recipe {name}: {APIS[cast(Api, api)][1]} does not have it; {remedy}.")
    return found


def _period(name: str, recipe: Recipe, dates: str) -> str:
    """The dates to search; of a recipe with one item a year, that year.

    Raises:
        InputError: they are none.
    """
    try:
        start, end = days(dates)
    except ValueError as error:
        raise InputError(f"--dates {dates}: {error}.") from None
    if not recipe.yearly:
        return dates
    if start.year != end.year:
        raise InputError(f"--dates {dates}: {name} has one image a year; give dates of one year.")
    return f"{start.year}-01-01/{start.year}-12-31"


def _grid(area: Area, resolution: int) -> GeoBox:
    """The grid that the area will have, unless the first item's pixels are shifted against it."""
    nowhere = GeoBox((1, 1), Affine.identity(), "EPSG:4326")
    return covering(area, CRS(zone(area)), resolution, nowhere, scale=1)


def _scene(draft: Draft, recipe: Recipe, area: str, dates: str) -> list[str]:
    lines = [
        "scenes:",
        f"  - name: {scalar(draft.name)}",
        f"    area: {scalar({'url': area})}  # nothing outside is read or mapped",
        f"    # The UTM zone of the area; pixels of {recipe.resolution} m.",
        f"    grid: {scalar({'crs': 'auto', 'resolution': recipe.resolution})}",
        "    # Items are searched once, by prepare, and kept in the workspace; `mibf prepare --refresh` searches again.",
        "    sources:",
    ]
    start, end = days(dates)
    period = "month" if end - start <= LONGEST_BY_MONTH else "season"
    for source in recipe.sources:
        lines += _source(source, recipe.url, source.dates or dates, period)
    return [*lines, *(label_section(draft.labels) if draft.labels is not None else [LABELS_HINT])]


def _source(source: RecipeSource, url: str, dates: str, period: str) -> list[str]:
    search: dict[str, Any] = {"url": url}
    search |= {"collections": list(source.collections)} if source.collections else {}
    lines = [
        f"      # {source.comment.format(period=period)}",
        f"      {source.name}:",
        "        stac:",
        "          search:",
    ]
    lines += _keys(search | {"dates": dates}, indent=12)
    if source.dates is not None:
        lines[-1] += "  # there is one date, which they include"
    if source.cloudy:
        lines += [
            f"            # Leaves out images that the catalogue calls {MOST_CLOUDS} % cloudy or more; without it, none.",
            f"            filter: {scalar(CLOUDS)}",
        ]
    lines += _keys({"assets": list(source.assets)}, indent=10)
    lines += [f"          # {source.mask}"] if source.mask else []
    lines += _keys(dict(source.stac), indent=10)
    if source.has_periods:
        lines += _keys({"periods": period, "gaps": "interpolate"}, indent=10)
        lines[-1] += f"  # a {period} without a clear date lies between its neighbors"
    names = {"band_names": list(source.band_names)} if source.band_names else {}
    return [*lines, *_keys({**names, **source.keys}, indent=8)]


def _keys(values: dict[str, Any], *, indent: int) -> Sequence[str]:
    return [f"{' ' * indent}{key}: {scalar(value)}" for key, value in values.items()]
