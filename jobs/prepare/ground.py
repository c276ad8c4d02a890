"""The ground of a scene: its reference grid, and its area on that grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox

from jobs.config.resolve import area as declared_area
from jobs.config.scene import AUTO, SceneSection
from mibf.errors import InputError
from pipeline.areas.area import Area, describe_degrees
from pipeline.areas.area_grid import covering, cropped, outside_note, square_kilometers, zone, zone_note
from pipeline.rasters.longitude import geographic_extents
from pipeline.rasters.raster import header
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import AlignedSource, Source
from pipeline.store.template import StoredSource, Template

#: Maximum side of a grid in pixels; a larger one is probably an error in units.
LARGEST_SIDE = 1_000_000
#: Maximum pixels of an area unless the user agrees to more: 200,000 km2 at 10 m, half of Germany.
LARGEST_AREA = 2_000_000_000
#: An area of so many pixels by its outline holds the centers of some; they are not counted to know it.
CERTAIN = 1_000_000


@dataclass(frozen=True)
class Ground:
    """A scene's reference grid, the area on it, if there is one, and notes for the user on both."""

    grid: GeoBox
    area: AreaMask | None = None
    notes: tuple[str, ...] = ()


def scene_ground(scene: SceneSection, declared: dict[str, Source], *, smallest: int) -> Ground:
    """Determine a scene's reference grid and its area.

    Args:
        scene: as declared.
        declared: its sources, by name.
        smallest: minimum side of the grid in pixels.

    Raises:
        InputError: the area or the grid's CRS is unusable, a source does not overlap the area, or the grid is too small or
            too large.
    """
    section, area = scene.grid, declared_area(scene)
    notes = [] if area is None else list(area.notes)
    if area is not None:
        for source in declared.values():
            _check_overlap(area, source)
    if section.like is not None:
        grid = reference_grid(declared[section.like])
        grid = grid if area is None else cropped(grid, area)
    else:
        grid = _explicit(scene, area, next(iter(declared.values())), notes)
    _check_size(scene, grid, smallest)
    if area is None:
        return Ground(grid)
    mask = area.mask(grid)
    outside = outside_note(area, grid, mask)
    if mask.expected_pixels < CERTAIN and not mask.pixels:
        raise InputError(
            f"scene {scene.name!r}: no pixel of the reference grid has its center in the area {area.name}, which spans "
            f"{area.describe()}; use a finer grid or a larger area."
        )
    return Ground(grid, mask, (*notes, *([] if outside is None else [outside])))


def check_area_size(scene: SceneSection, area: AreaMask | None, sources: Sequence[AlignedSource]) -> None:
    """Check that an area is not larger than `LARGEST_AREA`, as one in wrong units or of the wrong file is.

    Raises:
        InputError: it is; the message has its size and that of its store.
    """
    if area is None or area.expected_pixels <= LARGEST_AREA:
        return
    stored = tuple(StoredSource(s.declared.name, s.bands, s.declared.missing, s.scale) for s in sources)
    template = Template(area.grid, stored, tuple(s.dtype for s in sources), (), 0)
    size = area.expected_pixels * template.bytes_per_pixel
    raise InputError(
        f"scene {scene.name!r}: its area has about {area.expected_pixels:,.0f} pixels of the reference grid "
        f"({square_kilometers(area):,.0f} km2), more than {LARGEST_AREA:,}; its store would have {size / 1e9:,.0f} GB "
        "before compression. If this is intended, add `--yes` to the command; otherwise check `area` or `bbox`, or use a "
        "coarser grid."
    )


def _explicit(scene: SceneSection, area: Area | None, first: Source, notes: list[str]) -> GeoBox:
    """The grid of a CRS, a resolution and the bounds that are stated, or else those of the area."""
    section = scene.grid
    assert section.crs is not None
    assert section.resolution is not None
    name = section.crs
    if name == AUTO:
        assert area is not None, "the configuration was checked"
        name = zone(area)
        notes += [note for note in [zone_note(area, name)] if note is not None]
    try:
        crs = CRS(name)
    except CRSError as error:
        raise InputError(f"scene {scene.name!r}: grid.crs {name!r} is not a known CRS ({error}).") from error
    if section.bounds is not None:
        return GeoBox.from_bbox(section.bounds, crs, resolution=section.resolution, tight=True)
    assert area is not None, "the configuration was checked"
    return covering(area, crs, section.resolution, header(first.layers[0][0]).grid, scale=first.scale)


def _check_size(scene: SceneSection, grid: GeoBox, smallest: int) -> None:
    """Check that a grid is neither smaller than a patch nor unreasonably large."""
    rows, columns = grid.shape
    if min(rows, columns) < smallest:
        raise InputError(f"scene {scene.name!r} is {rows} x {columns} pixels, smaller than one patch.")
    if max(rows, columns) > LARGEST_SIDE:
        raise InputError(
            f"scene {scene.name!r} would be {rows:,} x {columns:,} pixels; is `grid.resolution` "
            "in the units of `grid.crs` (degrees or metres)?"
        )


def _check_overlap(area: Area, source: Source) -> None:
    """Check that a source's files are georeferenced, and that one of each layer may overlap the area."""
    for layer in source.layers:
        places = []
        for file in layer:
            grid = header(file).grid
            if grid.crs is None:
                raise InputError(
                    f"{file}: has no CRS, so the area {area.name} cannot be located in it; set `crs` of source "
                    f"{source.name!r}, or assign it, for example with `rio edit-info --crs`."
                )
            places.append(geographic_extents(grid))
        if not any(area.meets(place) for place in places):
            more = f" (and {len(layer) - 1} more files)" if len(layer) > 1 else ""
            raise InputError(
                f"source {source.name!r} does not overlap the area {area.name}: {layer[0]} spans "
                f"{describe_degrees(places[0] or [])}{more}, the area {area.describe()}. "
                "Check `area` or `bbox`, and the files."
            )
