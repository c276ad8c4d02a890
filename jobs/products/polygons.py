"""`mibf polygons`: the regions of published class maps as polygons, in GeoPackage and GeoParquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jobs.products.published import published_maps
from jobs.runtime.progress import progress_bar
from mibf import __version__
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.polygons.generalize import Rules
from pipeline.polygons.vector_files import format_of
from pipeline.polygons.write import PolygonTotals, write_polygons
from pipeline.publishing.class_map import ClassMap

#: Files that are written into the map's folder where none are named.
DEFAULTS = ("polygons.gpkg", "polygons.parquet")
#: Name of a scene in the URL of an output.
SCENE = "{scene}"


@dataclass(frozen=True)
class ScenePolygons:
    """The polygons of one map."""

    scene: str
    found: ClassMap
    outputs: tuple[str, ...]
    totals: PolygonTotals

    def lines(self) -> list[str]:
        """Format polygons, pixels and hectares by class."""
        known = {c.id: c.name for c in self.found.classes}
        totals = self.totals
        names = {number: known.get(number, f"class {number}") for number in sorted(totals.polygons)}
        width = max((len(name) for name in names.values()), default=0)
        lines = [f"{self.scene}: {sum(totals.polygons.values()):,} polygons"]
        lines += [
            f"  {name:<{width}}  {totals.polygons[number]:>10,}  {totals.pixels[number]:>14,} px"
            + ("" if np.isnan(totals.hectares[number]) else f"  {totals.hectares[number]:>16,.2f} ha")
            for number, name in names.items()
        ]
        return [*lines, *(f"  {storage.redact_url(url)}" for url in self.outputs)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        known = {c.id: c.name for c in self.found.classes}
        totals = self.totals
        by_class = [
            {
                "id": number,
                "name": known.get(number, f"class {number}"),
                "polygons": totals.polygons[number],
                "pixels": totals.pixels[number],
                "hectares": totals.hectares[number],
            }
            for number in sorted(totals.polygons)
        ]
        outputs = [storage.redact_url(url) for url in self.outputs]
        return {"scene": self.scene, "outputs": outputs, "classes": by_class}


@dataclass(frozen=True)
class Polygons:
    """The polygons of one or more maps, by the same rules."""

    rules: Rules
    scenes: list[ScenePolygons]
    notes: list[str]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return [line for scene in self.scenes for line in scene.lines()] + self.notes

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"rules": asdict(self.rules), "maps": [scene.to_json() for scene in self.scenes], "notes": self.notes}


def polygons(target: str, rules: Rules, *, outputs: Sequence[str], scene: str | None, overrides: Sequence[str]) -> Polygons:
    """Write the polygons of published maps; each map's files replace existing ones when all of them are complete.

    Args:
        target: a configuration, or the URL of a map.
        rules: how the maps are generalized first.
        outputs: URLs of the files; `{scene}` stands for the scene's name. In the map's folder, if there are none.
        scene: only this scene of a configuration.
        overrides: values that replace those of the configuration.

    Raises:
        InputError: an argument is not valid; nothing was written.
        MapReplacedError: another map was published in the meantime.
    """
    for url in outputs:
        format_of(url)
    maps = published_maps(target, scene=scene, overrides=overrides)
    if len(maps) > 1 and any(SCENE not in url for url in outputs):
        raise InputError(
            f"--output: {target} has several scenes; put {SCENE} into the file's name, or choose one with --scene."
        )
    done, notes = [], []
    for name, found in maps.items():
        urls = tuple(url.replace(SCENE, name) for url in outputs)
        urls = urls or tuple(storage.join(found.folder, file) for file in DEFAULTS)
        for url in urls:
            _check_parent(url)
        facts = {
            "mibf_map": storage.redact_url(found.folder),
            "mibf_fingerprint": found.fingerprint,
            "mibf_rules": ", ".join(f"{key} {value:g}" for key, value in asdict(rules).items()),
            "mibf_version": __version__,
        }
        rows, columns = found.shape
        with progress_bar(f"{name}: polygons", rows * columns, unit="pixels") as advance:
            totals = write_polygons(found, rules, urls, facts=facts, advance=advance)
        done.append(ScenePolygons(name, found, urls, totals))
        notes += _notes(name, found, totals)
    return Polygons(rules, done, notes)


def _check_parent(url: str) -> None:
    """Check that a file can be written, before anything is computed."""
    parent = storage.absolute(url).rpartition("/")[0]
    try:
        storage.check_writable(parent)
    except InputError as error:
        message = str(error).removeprefix("workspace ").replace(", or choose another workspace", "")
        raise InputError(f"{message} Name the files with --output.") from error


def _notes(name: str, found: ClassMap, totals: PolygonTotals) -> list[str]:
    notes = []
    if found.confidence is None:
        notes.append(f"{name}: the map has no product `confidence`, so that the polygons have none.")
    if any(np.isnan(size) for size in totals.hectares.values()):
        notes.append(f"{name}: the grid has no CRS that refers to the Earth, so that the polygons have no area.")
    return notes
