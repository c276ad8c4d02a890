"""Publish a finished map: build its files in parts, on as many machines as there are, then replace the earlier map.

Each tile of the map is read once: its checksum and coverage are checked, and its pixels encoded for all files. Of a file
whose description has not changed, only the tiles that have changed, and the overviews above them, are built; the others are
copied as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.geotiff import cog
from pipeline.geotiff.attribute_table import total_pixels
from pipeline.geotiff.encoded_tiles import EncodedPart
from pipeline.geotiff.tile_codec import TILE
from pipeline.geotiff.tile_pyramid import TileKey, TileTree
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.lease import Lease
from pipeline.io.retry import call_with_retry
from pipeline.maps.products import CLASS_PRODUCTS
from pipeline.parallel.executor import Executor
from pipeline.publishing.map_file import (
    DamagedFileError,
    FileContent,
    FileTask,
    MapFiles,
    PublishedFile,
    build_file,
    file_content,
)
from pipeline.publishing.map_part import MapSource, Part, SourceTile, encode_part, part_level
from pipeline.publishing.page.overviews import scene_overviews
from pipeline.publishing.page.page_file import PageFile, static_files, with_page
from pipeline.publishing.publish import replace_published, staging_folder
from pipeline.publishing.published_map import QUICKLOOK
from pipeline.publishing.qgis_style import STYLE, qgis_style
from pipeline.publishing.quicklook import quicklook
from pipeline.publishing.stac_item import SOURCES_LAYER, Asset, check_item
from pipeline.store.patch_store import PatchStore

#: What shows progress: called with the number of steps, and the context gives a function that is called with those done.
Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Publication:
    """A map to publish."""

    source: MapSource
    files: MapFiles
    block: int  #: maximum side of a file in pixels (see `cog.block_side`); a larger grid is divided into blocks
    tiles: Sequence[SourceTile]  #: all tiles of the map
    published: Mapping[str, FileContent]  #: files of the published map by name; those of another map are not used
    tile_list: PageFile | None = None  #: for the map's page; None: the map has no page

    @property
    def blocks(self) -> list[tuple[str, Window]]:
        """What the files of each product add to its name, with the part of the grid that they cover."""
        found = cog.pieces("", self.files.grid.shape, block=self.block)
        return [(name.removesuffix(".tif"), window) for name, window in found]


def publish_map(
    publication: Publication,
    executor: Executor,
    *,
    describe: Callable[[Sequence[Asset]], dict[str, Any]],
    run: str,
    lease: Lease,
    progress: Progress,
) -> list[Window]:
    """Publish a map; return the tiles that are damaged, in which case nothing was published.

    Args:
        publication: what to publish.
        executor: builds parts and files.
        describe: makes the STAC item from the map's assets.
        run: id of the run, which names its staging folder.
        lease: checked before each step that cannot be undone.
        progress: shows progress.

    Raises:
        IncompleteMapError: pixels are missing.
        InvalidItemError: the item is not valid STAC.
        LeaseLostError: the workspace lease was lost; nothing is removed or replaced from then on.
        PublishError: the disk is full.
        CogError: a file is not valid, or its pixels differ from those written.
    """
    gdal.configure_gdal()  # limits GDAL's cache, which by default grows to a fraction of the machine's memory
    files = publication.files
    with staging_folder(files.folder, run, lease) as staging:
        publication = replace(
            publication, source=replace(publication.source, staging=staging), files=replace(files, staging=staging)
        )
        plan = plan_publication(publication)
        try:
            built, damaged = _build(publication, plan, executor, progress)
        except DamagedFileError:  # its tiles may be intact, and are checked one by one
            plan = plan_publication(replace(publication, published={}))
            built, damaged = _build(publication, plan, executor, progress)
        if damaged:
            return damaged
        rasters = sorted([*plan.kept, *built], key=lambda file: (file.number, file.window))
        mosaics = _write_mosaics(publication, rasters)
        ordered = sorted([*rasters, *mosaics], key=lambda file: file.number)
        # Sidecars that no item lists are kept, too: those of earlier versions, and statistics that QGIS has added.
        kept = {name for file in plan.kept for name in (file.name, f"{file.name}.aux.xml")}
        others = _draw_quicklook(publication, rasters, kept) + _write_styles(publication)
        page = _write_page(publication)
        kept |= {file.name for file in page if _is_published(publication, file)}
        assets = [*(_asset(files, file) for file in ordered), *others, *_sidecar_assets(files, ordered)]
        item = with_page(describe(assets), page, _class_pixels(files, rasters))
        check_item(item)
        names = [name for file in ordered for name in (file.name, *file.sidecars)]
        names += [asset.name for asset in others] + [file.name for file in page]
        new = [name for name in names if name not in kept]
        replace_published(files.folder, staging, item, new=new, kept=sorted(kept), lease=lease)
        return []


@dataclass(frozen=True)
class PublicationPlan:
    """What must be built for a publication."""

    parts: list[Part] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)  #: blocks of which the unchanged tiles are copied from published files
    copied: list[str] = field(default_factory=list)  #: blocks without changed tiles whose files lack their sidecars
    kept: list[PublishedFile] = field(default_factory=list)  #: published files that stay as they are


def plan_publication(publication: Publication) -> PublicationPlan:
    """Plan what to build: parts with changed tiles, and all parts of a block whose published files differ otherwise."""
    plan = PublicationPlan()
    bands = [len(names) for names in publication.files.names]
    level = part_level(publication.source.products, bands, publication.source.tile_size)
    tiles = _by_block(publication)
    there = call_with_retry(publication.files.folder, lambda: set(storage.names(publication.files.folder)))
    for suffix, window in publication.blocks:
        contents = _reusable(publication, suffix, window)
        if contents is not None:
            plan.reused.add(suffix)
        parts = _parts(suffix, window, tiles[window], level, reuse=contents is not None)
        plan.parts.extend(parts)
        if contents is None or parts:
            continue
        if not _has_sidecars(publication, suffix, there):
            plan.copied.append(suffix)
        else:
            for number, product in enumerate(publication.source.products):
                name = f"{product.name}{suffix}.tif"
                sidecar = f"{name}.aux.xml"
                beside = {sidecar: publication.published[sidecar]} if sidecar in publication.published else {}
                plan.kept.append(PublishedFile(number, name, window, contents[number], beside))
    return plan


def _by_block(publication: Publication) -> dict[Window, list[SourceTile]]:
    """The tiles of each block. Blocks are whole numbers of tiles."""
    blocks = {(window.y, window.x): window for _, window in publication.blocks}
    found: dict[Window, list[SourceTile]] = {window: [] for window in blocks.values()}
    side = max(publication.block, 1) if len(blocks) > 1 else max(publication.files.grid.shape)
    for tile in publication.tiles:
        found[blocks[tile.window.y // side * side, tile.window.x // side * side]].append(tile)
    return found


def _reusable(publication: Publication, suffix: str, window: Window) -> list[FileContent] | None:
    """The published files of a block, if the new ones differ from them in nothing but pixels; None otherwise."""
    found = []
    for number, product in enumerate(publication.source.products):
        name = f"{product.name}{suffix}.tif"
        content = publication.published.get(name)
        if content is None or not _is_described(publication, number, name, window):
            return None
        found.append(content)
    return found


def _has_sidecars(publication: Publication, suffix: str, there: Collection[str]) -> bool:
    """Whether a block's published files have the sidecars that the item lists; items of earlier versions list none."""
    for product in publication.source.products:
        name = f"{product.name}{suffix}.tif.aux.xml"
        listed = name in publication.published
        if (listed and name not in there) or (product.name in CLASS_PRODUCTS and not listed):
            return False
    return True


def _is_described(publication: Publication, number: int, name: str, window: Window) -> bool:
    url = storage.join(publication.files.folder, name)

    def read() -> bool:
        filesystem, path = storage.open_url(url)
        with filesystem.open(path, "rb") as file:
            return publication.files.raster(number, window).is_described_by(file)

    try:
        return call_with_retry(url, read)
    except FileNotFoundError:
        return False


def _parts(suffix: str, window: Window, tiles: Sequence[SourceTile], level: int, *, reuse: bool) -> list[Part]:
    """The parts of a block to build, row by row."""
    tree = TileTree((window.height, window.width))
    level = min(level, len(tree.shapes) - 1)
    overlapped = {tile: _keys(window, tile.window) for tile in tiles}
    changed = {key for tile, keys in overlapped.items() if not (reuse and tile.published) for key in keys}
    keys: dict[TileKey, set[TileKey]] = {}
    sources: dict[TileKey, list[SourceTile]] = {}
    for key in changed:
        keys.setdefault(key.ancestor(level), set()).add(key)
    for tile, its_keys in overlapped.items():
        for root in {key.ancestor(level) for key in its_keys if key in changed}:
            sources.setdefault(root, []).append(tile)
    return [Part(window, suffix, root, frozenset(keys[root]), tuple(sources[root])) for root in sorted(keys)]


def _keys(block: Window, window: Window) -> list[TileKey]:
    """The tiles of the finest level of a block that a window of the grid overlaps."""
    y, x = window.y - block.y, window.x - block.x
    rows = range(y // TILE, -(-(y + window.height) // TILE))
    columns = range(x // TILE, -(-(x + window.width) // TILE))
    return [TileKey(0, row, column) for row in rows for column in columns]


def _build(
    publication: Publication, plan: PublicationPlan, executor: Executor, progress: Progress
) -> tuple[list[PublishedFile], list[Window]]:
    """Build the parts and then the files of a plan; return the files, or the damaged tiles."""
    products = publication.source.products
    suffixes = list(dict.fromkeys([*(part.suffix for part in plan.parts), *plan.copied]))
    encoded: dict[str, list[EncodedPart]] = {suffix: [] for suffix in suffixes}
    damaged: list[Window] = []
    files: list[PublishedFile] = []
    with progress(len(plan.parts) + len(suffixes) * len(products)) as advance:

        def take_part(found: tuple[str, EncodedPart | tuple[Window, ...]]) -> None:
            suffix, result = found
            if isinstance(result, EncodedPart):
                encoded[suffix].append(result)
            else:
                damaged.extend(result)
            advance(1)

        def take_file(file: PublishedFile) -> None:
            files.append(file)
            advance(1)

        executor.each(_encode, publication.source, plan.parts, take_part)
        if damaged:
            return [], sorted(set(damaged))
        windows = dict(publication.blocks)
        tasks = [
            FileTask(
                number,
                name := f"{product.name}{suffix}.tif",
                windows[suffix],
                tuple(sorted(encoded[suffix], key=lambda part: part.root)),
                publication.published[name] if suffix in plan.reused else None,
            )
            for suffix in suffixes
            for number, product in enumerate(products)
        ]
        executor.each(build_file, publication.files, tasks, take_file)
    return files, []


def _encode(source: MapSource, part: Part) -> tuple[str, EncodedPart | tuple[Window, ...]]:
    return part.suffix, encode_part(source, part)


def _write_mosaics(publication: Publication, rasters: Sequence[PublishedFile]) -> list[PublishedFile]:
    """Write the VRTs of a map of several blocks to the staging folder."""
    files, found = publication.files, list[PublishedFile]()
    if len(publication.blocks) == 1:
        return []
    rows, columns = files.grid.shape
    for number, product in enumerate(files.products):
        pieces = [file for file in rasters if file.number == number]
        pixels = total_pixels(file.content.pixels for file in pieces)
        text = cog.vrt(
            [(file.name, file.window) for file in pieces],
            product,
            grid=files.grid,
            names=files.names[number],
            classes=files.classes,
            tags=files.tags,
            pixels=pixels,
        ).encode()
        name = f"{product.name}.vrt"
        with TemporaryDirectory(prefix="mibf-") as temporary:
            path = Path(temporary, name)
            path.write_bytes(text)
            cog.check_crs(path, files.grid)
            content = replace(file_content(path), pixels=pixels)
        url = storage.join(files.staging, name)
        call_with_retry(url, lambda url=url, text=text: storage.write_bytes(url, text))  # type: ignore[misc]  # bound now
        found.append(PublishedFile(number, name, Window(0, 0, rows, columns), content))
    return found


def _asset(files: MapFiles, file: PublishedFile) -> Asset:
    product = files.products[file.number]
    return Asset(
        product=product.name,
        name=file.name,
        bytes=file.content.bytes,
        sha256=file.content.sha256,
        dtype=product.dtype,
        nodata=product.nodata,
        scale=product.scale,
        unit=product.unit,
        bands=files.sources if product.name == SOURCES_LAYER else files.names[file.number],
        window=file.window,
        pixels=file.content.pixels,
    )


def _sidecar_assets(files: MapFiles, rasters: Sequence[PublishedFile]) -> list[Asset]:
    return [
        Asset(files.products[file.number].name, name, content.bytes, content.sha256)
        for file in rasters
        for name, content in file.sidecars.items()
    ]


def _write_styles(publication: Publication) -> list[Asset]:
    """Write the QGIS styles of the products that have one to the staging folder."""
    files, found = publication.files, list[Asset]()
    for product in files.products:
        style = qgis_style(product, files.classes)
        if style is not None:
            name = f"{product.name}{STYLE}"
            url = storage.join(files.staging, name)
            call_with_retry(url, lambda url=url, style=style: storage.write_bytes(url, style))  # type: ignore[misc]  # bound now
            found.append(Asset(product.name, name, len(style), hashlib.sha256(style).hexdigest()))
    return found


def _draw_quicklook(publication: Publication, rasters: Sequence[PublishedFile], kept: Collection[str]) -> list[Asset]:
    """Draw the quicklook of the first product of classes, if there is one, in the staging folder."""
    files = publication.files
    number = next((i for i, product in enumerate(files.products) if product.name in CLASS_PRODUCTS), None)
    if number is None:
        return []
    parts = [
        (storage.join(files.folder if file.name in kept else files.staging, file.name), file.window)
        for file in rasters
        if file.number == number
    ]
    picture = quicklook(parts, files.grid.shape, files.classes)
    url = storage.join(files.staging, QUICKLOOK)
    call_with_retry(url, lambda: storage.write_bytes(url, picture))
    return [Asset("quicklook", QUICKLOOK, len(picture), hashlib.sha256(picture).hexdigest())]


def _class_pixels(files: MapFiles, rasters: Sequence[PublishedFile]) -> dict[int, int]:
    """Number of pixels by class id in the class raster; empty if there is none."""
    counts = [file.content.pixels for file in rasters if files.products[file.number].name == "class"]
    return (total_pixels(counts) or {}) if counts else {}


def _write_page(publication: Publication) -> list[PageFile]:
    """Write the files of the map's page to the staging folder, except those that are published already."""
    if publication.tile_list is None:
        return []
    store = call_with_retry(publication.source.store, lambda: PatchStore(publication.source.store))
    page = [*static_files(), publication.tile_list, *call_with_retry(store.url, lambda: scene_overviews(store))]
    for file in page:
        if not _is_published(publication, file):
            url = storage.join(publication.files.staging, file.name)
            call_with_retry(url, lambda file=file, url=url: storage.write_bytes(url, file.content))  # type: ignore[misc]  # bound now
    return page


def _is_published(publication: Publication, file: PageFile) -> bool:
    """Whether the published map has a file of the page as it is; `publication.published` are files that exist."""
    return publication.published.get(file.name) == FileContent(len(file.content), file.sha256)
