"""Resolve configuration sections to pipeline objects: files, masks, labels, areas. Reads STAC items but no pixels."""

from __future__ import annotations

import math
from functools import cache

from jobs.config.config import Config
from jobs.config.scene import PALETTE, DecodeSection, SceneSection, SourceSection
from mibf.bundle.classes import ClassName
from pipeline.areas.area import Area, box_area, read_area
from pipeline.io import checksums, storage
from pipeline.rasters.header import RasterFile
from pipeline.scenes.labels import Labels
from pipeline.scenes.source import Mask, Source
from pipeline.stac.assets import asset_urls, further_pages


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
    def file(url: str, variable: str | None) -> RasterFile:
        return RasterFile(
            storage.absolute(url),
            variable,
            section.axes,
            section.bands,
            section.nodata,
            section.unscale,
            section.crs,
            tuple(section.select.items()),
            decode="tessera" if isinstance(section.decode, DecodeSection) else section.decode,
            scales=scales.get(url),
        )

    scales = _scales(section)
    variables = section.variable if isinstance(section.variable, tuple) else (section.variable,)

    mask = None
    if section.mask is not None:
        mask_section = section.mask
        # The mask's own rule interprets every value, so none is treated as nodata.
        mask_file = RasterFile(
            storage.absolute(mask_section.url),
            mask_section.variable,
            mask_section.axes,
            (mask_section.band,),
            nodata=math.nan,
            crs=mask_section.crs,
            select=tuple(mask_section.select.items()),
        )
        mask = Mask(
            mask_file,
            mask_section.valid,
            mask_section.invalid,
            mask_section.bits,
            chosen="band" in mask_section.model_fields_set,
        )
    layers, notes = _layers(section)
    return Source(
        name,
        tuple(tuple(file(url, variable) for url in layer) for layer in layers for variable in variables),
        resampling=section.resampling,
        scale=section.scale,
        gain=section.gain,
        offset=section.offset,
        mask=mask,
        missing=section.missing,
        notes=notes,
        band_names=section.names,
        derive=tuple(section.derive.items()),
        keep=section.keep,
    )


def _scales(section: SourceSection) -> dict[str, RasterFile]:
    """Return the raster of scales of each file of a source whose values have some."""
    if not isinstance(section.decode, DecodeSection):
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


def _layers(section: SourceSection) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return the files of each layer of a source, which are mosaicked, and notes on how they were found."""
    if section.stac is not None:
        return _assets(section.stac.url, section.stac.assets, checksums.input_fingerprint(section.stac.url))
    if section.tiles:
        return (section.tiles,), ()
    return tuple((url,) for url in section.urls or (section.url or "",)), ()


@cache
def _assets(url: str, assets: tuple[str, ...], stamp: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    del stamp  # cache key only: a changed item is read again
    found = asset_urls(url, assets)
    left_out = further_pages(url)
    return found, () if left_out is None else (left_out,)


def labels(scene: SceneSection) -> Labels | None:
    """Return a scene's labels, or None."""
    if scene.labels is None:
        return None
    return Labels(**scene.labels.model_dump() | {"url": storage.absolute(scene.labels.url)})


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
    items = [section.stac.url for section in scene.sources.values() if section.stac is not None]
    return [*items, *(file.url for source in sources(scene).values() for file in source.files)]


def input_urls(config: Config) -> list[str]:
    """Return the URLs of all files that a configuration reads.

    Raises:
        InputError: as for `sources`.
    """
    urls = [url for scene in config.scenes for url in scene_urls(scene)]
    urls += [scene.area.url for scene in config.scenes if scene.area is not None]
    urls += [scene.labels.url for scene in config.scenes if scene.labels is not None]
    if config.split.method == "raster":
        urls.append(config.split.url)
    return list(dict.fromkeys(urls))
