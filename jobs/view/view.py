"""Find the published maps of a configuration or URL, serve them, and open a browser."""

from __future__ import annotations

import posixpath
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.map.publish import listed_tiles
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.progress import info, pluralize
from jobs.view.served_map import ServedMap
from jobs.view.server import MapServer
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.publishing.page.page_file import INDEX, PageFile
from pipeline.publishing.page.tile_list import tile_list
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_item import InvalidItemError
from pipeline.publishing.stac_item_reader import read_item


@dataclass(frozen=True)
class Viewed:
    """What was served until the server was stopped."""

    url: str
    maps: dict[str, str]  #: folder of each map, by name
    requests: int

    def lines(self) -> list[str]:
        """Say that the server ended."""
        return [f"stopped after {pluralize(self.requests, 'requests')}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self)


def find_maps(target: str, *, overrides: Sequence[str] = (), scene: str | None = None) -> list[ServedMap]:
    """Find the published maps of a configuration (a YAML file), or the one in a folder.

    Args:
        target: path or URL of a configuration, of a map's folder, or of its item or page.
        overrides: changed values of a configuration.
        scene: the only scene to show; None for all of the configuration.

    Raises:
        InputError: no map is published there.
    """
    if target.endswith((".yaml", ".yml")):
        return _maps_of(load(target, overrides=overrides), scene)
    if overrides or scene is not None:
        raise InputError(f"{target}: --set and --scene need a configuration; this is the folder of a map.")
    folder = storage.absolute(target.rstrip("/"))
    folder = posixpath.dirname(folder) if posixpath.basename(folder) in (ITEM, INDEX) else folder
    if not _is_published(folder):
        raise InputError(
            f"{storage.redact_url(folder)}: no map is published there ({ITEM} is missing). Give the folder of a map, "
            "WORKSPACE/maps/SCENE/RUN, or a configuration."
        )
    return [ServedMap("map", folder)]


def _is_published(folder: str) -> bool:
    with storage.as_input_errors(folder):
        try:
            return read_item(folder) is not None
        except InvalidItemError as error:
            raise InputError(f"{storage.redact_url(folder)}/{ITEM}: {error}") from error


def _maps_of(config: Config, wanted: str | None) -> list[ServedMap]:
    workspace = Workspace.of(config)
    names = [scene.name for scene in config.scenes]
    if wanted is not None and wanted not in names:
        raise InputError(f"--scene {wanted}: no such scene; the configuration has {', '.join(names[:20])}.")
    chosen = [scene for scene in config.scenes if wanted in (None, scene.name)]
    folders = {scene.name: workspace.map_folder(scene.name) for scene in chosen}
    published = {scene.name for scene in chosen if _is_published(folders[scene.name])}
    if not published:
        raise InputError(f"{next(iter(folders.values()))}: no map is published yet; run `mibf map` first.")

    def tiles(name: str) -> Callable[[], PageFile]:
        section = next(scene for scene in config.scenes if scene.name == name)
        return lambda: tile_list(listed_tiles(SceneMap(MapSpec.of(config, workspace), workspace, section)))

    return [ServedMap(name, folder, tiles=tiles(name)) for name, folder in folders.items() if name in published]


def serve(maps: Sequence[ServedMap], *, port: int = 0, browser: bool = True, origin: str | None = None) -> Viewed:
    """Serve maps until interrupted.

    Raises:
        InputError: the port cannot be used.
    """
    with MapServer(maps, port=port, origin=origin) as server:
        info(f"showing {pluralize(len(maps), 'maps')} at {server.url}; press Ctrl-C to stop")
        if browser and not webbrowser.open(server.url):
            info("no browser was found: open that address in one")
        with suppress(KeyboardInterrupt):  # the way to stop it, so not a failure
            server.serve_forever()
        return Viewed(server.url, {served.name: storage.redact_url(served.folder) for served in maps}, len(server.log))
