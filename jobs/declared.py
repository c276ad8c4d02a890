"""From what a configuration declares to what the pipeline opens: files, masks, labels. Reads STAC items, no pixels."""

from __future__ import annotations

import math
from functools import cache

from jobs.config import PALETTE, Config, SceneSection, SourceSection
from mibf.bundle import ClassName
from pipeline import storage
from pipeline.labels import Labels
from pipeline.raster import RasterFile
from pipeline.scene import Mask, Source
from pipeline.stac import asset_urls


def class_names(config: Config) -> tuple[ClassName, ...]:
    """The declared classes with their colours."""
    return tuple(
        ClassName(c.id, c.name, (c.color or PALETTE[position % len(PALETTE)]).lower())
        for position, c in enumerate(config.classes)
    )


def sources(scene: SceneSection) -> dict[str, Source]:
    """A scene's sources by name, in order.

    Raises:
        InputError: a STAC item cannot be read, or has not the assets.
    """
    return {name: _source(name, section) for name, section in scene.sources.items()}


def _source(name: str, section: SourceSection) -> Source:
    def file(url: str) -> RasterFile:
        return RasterFile(
            storage.absolute(url), section.variable, section.axes, section.bands, section.nodata, section.unscale
        )

    mask = None
    if section.mask is not None:
        told = section.mask
        # Its values are all told apart by the mask's own rule: none of them is taken as no data.
        file_of_mask = RasterFile(storage.absolute(told.url), told.variable, told.axes, (told.band,), nodata=math.nan)
        mask = Mask(file_of_mask, told.valid, told.invalid, told.bits)
    return Source(
        name,
        tuple(tuple(file(url) for url in layer) for layer in _layers(section)),
        resampling=section.resampling,
        scale=section.scale,
        gain=section.gain,
        offset=section.offset,
        mask=mask,
        missing=section.missing,
    )


def _layers(section: SourceSection) -> tuple[tuple[str, ...], ...]:
    """The files of each layer of a source, side by side."""
    if section.stac is not None:
        return _assets(section.stac.url, section.stac.assets, storage.stamp(section.stac.url))
    if section.tiles:
        return (section.tiles,)
    return tuple((url,) for url in section.urls or (section.url or "",))


@cache
def _assets(url: str, assets: tuple[str, ...], stamp: str) -> tuple[tuple[str, ...], ...]:
    del stamp  # tells an item from the one that was there before
    return asset_urls(url, assets)


def labels(scene: SceneSection) -> Labels | None:
    """A scene's labels, if it has any."""
    if scene.labels is None:
        return None
    return Labels(**scene.labels.model_dump() | {"url": storage.absolute(scene.labels.url)})


def scene_urls(scene: SceneSection) -> list[str]:
    """Every file that a scene's sources are read from.

    Raises:
        InputError: as `sources`.
    """
    items = [section.stac.url for section in scene.sources.values() if section.stac is not None]
    return [*items, *(file.url for source in sources(scene).values() for file in source.files)]


def input_urls(config: Config) -> list[str]:
    """Every file that a configuration reads.

    Raises:
        InputError: as `sources`.
    """
    urls = [url for scene in config.scenes for url in scene_urls(scene)]
    urls += [scene.labels.url for scene in config.scenes if scene.labels is not None]
    if config.split.method == "raster":
        urls.append(config.split.url)
    return list(dict.fromkeys(urls))
