"""Resolve configuration sections to pipeline objects: files, masks, labels, areas. Reads STAC items but no pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jobs.config.config import Config
from jobs.config.scene import PALETTE, DecodeSection, LabelFileSection, MaskSection, SceneSection, SourceSection
from jobs.config.stac import PercentileSection, StacSection
from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.areas.area import Area, box_area, read_area
from pipeline.io import checksums, storage
from pipeline.rasters.header import RasterFile
from pipeline.scenes.labels import Labels
from pipeline.scenes.source import Source
from pipeline.stac.assets import AssetFile, Skipped, further_pages, series_files
from pipeline.stac.composite import Composite
from pipeline.stac.masks import Mask
from pipeline.stac.periods import Period, calendar_periods, intervals, select_days
from pipeline.stac.series import check_values, split_missing


def class_names(config: Config) -> tuple[ClassName, ...]:
    """Return the declared classes with their colours."""
    return tuple(
        ClassName(c.id, c.name, (c.color or PALETTE[position % len(PALETTE)]).lower())
        for position, c in enumerate(config.classes)
    )


def sources(scene: SceneSection) -> dict[str, Source]:
    """Return a scene's sources by name, in order.

    Raises:
        InputError: a STAC item cannot be read or lacks a requested asset.
    """
    return {name: _source(name, section) for name, section in scene.sources.items()}


def _source(name: str, section: SourceSection) -> Source:
    def file(url: str, variable: str | None, asset: AssetFile | None = None) -> RasterFile:
        return RasterFile(
            storage.absolute(url),
            variable,
            section.axes,
            section.bands if asset is None or asset.band is None else (asset.band,),
            section.nodata,
            section.unscale,
            section.crs,
            tuple(section.select.items()),
            decode="tessera" if isinstance(section.decode, DecodeSection) else section.decode,
            scales=scales.get(url),
            stated=() if asset is None else asset.stated,
            stated_crs=None if asset is None else asset.crs,
        )

    scales = _scales(section)
    variables = section.variable if isinstance(section.variable, tuple) else (section.variable,)

    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    dates: dict[str, Any] = {}
    if section.stac is not None:
        found = _items(section, section.stac)
        assets, scales = found.assets, _scale_assets(section, found)
        # Calendar periods are those of all items: a missing file takes none away.
        periods = periods_of(section.stac, [*(each.date for each in assets[0]), *(each.date for each in found.skipped)])
        found = _without_missing(section.stac, found, scales)
        assets, notes, skipped = found.assets, found.notes, found.skipped
        _check_bands(name, section, assets)
        layers = [[file(each.url, v, each) for each in layer] for layer in assets for v in variables]
        dates = _dates(section, section.stac, assets[0], found.masks) | {"periods": periods, "gaps": section.stac.gaps}
    else:
        layers = [[file(url, v) for url in layer] for layer in _layers(section) for v in variables]
    return Source(
        name,
        tuple(map(tuple, layers)),
        resampling=section.resampling,
        scale=section.scale,
        gain=section.gain,
        offset=section.offset,
        mask=None if section.mask is None else _mask(section.mask),
        missing=section.missing,
        notes=notes,
        band_names=section.names,
        derive=tuple(section.derive.items()),
        keep=section.keep,
        skipped=skipped,
        **dates,
    )


def _dates(
    section: SourceSection, stac: StacSection, files: Sequence[AssetFile], masks: Sequence[AssetFile]
) -> dict[str, Any]:
    """Return the values of a `Source` that say how the items of an asset are masked and combined."""
    found: dict[str, Any] = {}
    if stac.mask is not None:
        # The mask's own rule interprets every value, so none is treated as nodata.
        rule = (stac.mask.valid, stac.mask.invalid, stac.mask.bits, stac.mask.above)
        found["masks"] = tuple(
            Mask(
                RasterFile(
                    storage.absolute(each.url),
                    bands=(each.band or 1,),
                    nodata=math.nan,
                    crs=section.crs,
                    stated_crs=each.crs,
                ),
                *rule,
                chosen=each.band is not None,
                dilate=stac.mask.dilate,
            )
            for each in masks
        )
    if stac.composite is None:
        return found
    if isinstance(stac.composite, PercentileSection):
        composite = Composite("percentile", stac.composite.percentile)
    else:
        composite = Composite(stac.composite)
    return found | {"composite": composite, "dates": tuple(each.date for each in files)}


def periods_of(stac: StacSection, days: Sequence[str]) -> tuple[Period, ...]:
    """Return the periods of a composite, of which calendar periods depend on the days of the items; none if it has none."""
    if isinstance(stac.periods, str):
        return calendar_periods(stac.periods, days, where=storage.redact_url(stac.items))
    return intervals(stac.periods or ())


def _mask(section: MaskSection) -> Mask:
    # The mask's own rule interprets every value, so none is treated as nodata.
    file = RasterFile(
        storage.absolute(section.url),
        section.variable,
        section.axes,
        (section.band,),
        nodata=math.nan,
        crs=section.crs,
        select=tuple(section.select.items()),
    )
    return Mask(file, section.valid, section.invalid, section.bits, chosen="band" in section.model_fields_set)


def _scales(section: SourceSection) -> dict[str, RasterFile]:
    """Return the raster of scales of each file of a source whose values have some."""
    if not isinstance(section.decode, DecodeSection) or section.stac is not None:
        return {}
    declared = section.decode.tessera
    return {
        url: RasterFile(
            storage.absolute(scales),
            declared.variable,
            declared.axes,
            crs=section.crs,
            select=tuple(declared.select.items()),
        )
        for url, scales in zip(section.urls or section.tiles or (section.url or "",), declared.urls, strict=True)
    }


@dataclass(frozen=True)
class _Items:
    """The items that a source is read from, and those that are left out."""

    assets: tuple[tuple[AssetFile, ...], ...]  #: files of each asset
    masks: tuple[AssetFile, ...]  #: files of the mask, if there is one
    scales: tuple[AssetFile, ...]  #: files of the scales, if values have some
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]  #: on what items state


def _items(section: SourceSection, stac: StacSection) -> _Items:
    """Return the items of a source that have all assets, of its periods."""
    scales = section.decode.tessera.urls if isinstance(section.decode, DecodeSection) else ()
    return _read_items(
        stac,
        checksums.input_fingerprint(stac.items),
        scales=scales,
        bands=section.bands,
        unscale=section.unscale,
        checked=section.decode in (None, "db"),  # encodings of embeddings have scales of their own
        decided=bool({"unscale", "gain", "offset"} & section.model_fields_set),
    )


def _scale_assets(section: SourceSection, items: _Items) -> dict[str, RasterFile]:
    """Return the raster of scales of each file of the assets, which is an asset of the same item."""
    if section.stac is None or not isinstance(section.decode, DecodeSection):
        return {}
    declared = section.decode.tessera
    chosen = next((each for each in items.scales if each.band is not None), None)
    if chosen is not None:
        raise InputError(
            f"{storage.redact_url(section.stac.items)}: {declared.urls[0]!r} of `decode.tessera.scales` is one of several "
            f"bands of {storage.redact_url(chosen.url)}; give the key of an asset, whose bands are the scales."
        )
    return {
        each.url: RasterFile(
            storage.absolute(own.url),
            declared.variable,
            declared.axes,
            crs=section.crs,
            select=tuple(declared.select.items()),
            stated=own.stated,
            stated_crs=own.crs,
        )
        for layer in items.assets
        for each, own in zip(layer, items.scales, strict=True)
    }


def _without_missing(stac: StacSection, items: _Items, scales: dict[str, RasterFile]) -> _Items:
    """Leave out the items with missing files, if several dates are combined and some remain."""
    first = items.assets[0]
    if not _may_skip(stac) or len({item.date for item in first}) < 2:
        return items
    layers = [[file.url for file in layer] for layer in (*items.assets, *([items.masks] if items.masks else []))]
    layers += [[scales[file.url].url for file in layer] for layer in items.assets] if scales else []
    kept, missing = split_missing(first, layers)
    if not kept or not missing:
        return items
    return replace(
        items,
        assets=tuple(tuple(layer[at] for at in kept) for layer in items.assets),
        masks=tuple(items.masks[at] for at in kept if items.masks),
        skipped=(*items.skipped, *missing),
    )


def _may_skip(stac: StacSection) -> bool:
    """Whether unusable items of some dates are left out, rather than refused."""
    return stac.composite is not None and stac.on_error == "skip"


def _layers(section: SourceSection) -> tuple[tuple[str, ...], ...]:
    """Return the files of each layer of a source, which are mosaicked."""
    return (section.tiles,) if section.tiles else tuple((url,) for url in section.urls or (section.url or "",))


def _check_bands(name: str, section: SourceSection, assets: Sequence[Sequence[AssetFile]]) -> None:
    """Check that bands are not chosen twice: by their names, and by `bands`."""
    chosen = next((each for layer in assets for each in layer if each.band is not None), None)
    if chosen is not None and section.bands is not None:
        raise InputError(
            f"source {name!r}: a name in `stac.assets` chooses band {chosen.band} of {chosen.url}, and `bands` chooses "
            "others; leave out `bands`, or give the asset's key."
        )


@cache
def _read_items(
    stac: StacSection,
    stamp: str,
    *,
    scales: tuple[str, ...],
    bands: tuple[int, ...] | None,
    unscale: bool,
    checked: bool,
    decided: bool,
) -> _Items:
    """Read the items of a file, and return those of the periods that have all assets; `scales` are assets, too."""
    del stamp  # cache key only: a changed item is read again
    masked = () if stac.mask is None else (stac.mask.asset,)
    names = (*stac.assets, *masked, *scales)
    files, lacking = series_files(stac.items, names, alternate=stac.alternate, skip=_may_skip(stac))
    notes: list[str] = []
    if stac.periods is not None:
        days = [*(each.date for each in files[0]), *(each.date for each in lacking)]
        where = storage.redact_url(stac.items)
        taken, notes = select_days(periods_of(stac, days), days, gaps=stac.gaps, where=where)
        there = len(files[0])
        files = tuple(tuple(layer[position] for position in taken if position < there) for layer in files)
        lacking = tuple(lacking[position - there] for position in taken if position >= there)
        if not files[0]:
            raise InputError(f"{where}: no item of the periods has all assets: {lacking[0]}")
    assets, others = files[: len(stac.assets)], files[len(stac.assets) :]
    if checked:
        notes += check_values(stac.items, stac.assets, assets, bands=bands, unscale=unscale, decided=decided)
    left_out = further_pages(stac.items)
    notes += [] if left_out is None else [left_out]
    return _Items(assets, others[0] if masked else (), others[-1] if scales else (), lacking, tuple(notes))


def labels(scene: SceneSection) -> Labels | None:
    """Return a scene's own labels, or None."""
    return None if scene.labels is None else _labels(scene.labels)


def added_labels(scene: SceneSection) -> tuple[Labels, ...]:
    """Return the labels that are added to a scene's own."""
    return () if scene.labels is None else tuple(map(_labels, scene.labels.also))


def _labels(section: LabelFileSection) -> Labels:
    values = section.model_dump(exclude={"also"})
    return Labels(**values | {"url": storage.absolute(section.url)})


def area(scene: SceneSection) -> Area | None:
    """Return a scene's area, or None.

    Raises:
        InputError: the area's file cannot be used.
    """
    if scene.bbox is not None:
        return box_area(scene.bbox)
    return None if scene.area is None else read_area(storage.absolute(scene.area.url), scene.area.layer)


def scene_urls(scene: SceneSection) -> list[str]:
    """Return the URLs of all files that a scene's sources are read from.

    Raises:
        InputError: as for `sources`.
    """
    items = [section.stac.items for section in scene.sources.values() if section.stac is not None]
    return [*items, *(file.url for source in sources(scene).values() for file in source.files)]


def scene_input_urls(scene: SceneSection) -> list[str]:
    """Return the URLs of all files that a scene is read from: of its sources, its area and its labels.

    Raises:
        InputError: as for `sources`.
    """
    area = () if scene.area is None else (scene.area,)
    labelled = () if scene.labels is None else (scene.labels, *scene.labels.also)
    return [*scene_urls(scene), *(section.url for section in (*area, *labelled))]


def input_urls(config: Config) -> list[str]:
    """Return the URLs of all files that a configuration reads.

    Raises:
        InputError: as for `sources`.
    """
    urls = [url for scene in config.scenes for url in scene_input_urls(scene)]
    if config.split.method == "raster":
        urls.append(config.split.url)
    return list(dict.fromkeys(urls))
