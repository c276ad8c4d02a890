"""The published map of a run, as a sampling frame and as what a sample is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.config.config import Config
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.assessment.selection import SceneFrame
from pipeline.codes import Subset
from pipeline.io import storage
from pipeline.publishing.published_map import ITEM, PublishedMap
from pipeline.publishing.stac_item import matches_grid
from pipeline.publishing.stac_item_reader import PublishedItem, class_digest, is_class_raster, require_item
from pipeline.store.patch_store import PatchStore


@dataclass(frozen=True)
class MapClass:
    """A class of a published map."""

    id: int
    name: str
    color: str


@dataclass(frozen=True)
class SceneOfMap:
    """The published map of one scene, and the patch store that it was made from."""

    name: str
    folder: str
    item: PublishedItem
    store: PatchStore

    @property
    def item_url(self) -> str:
        """URL of its STAC item."""
        return storage.join(self.folder, ITEM)


@dataclass(frozen=True)
class RunMap:
    """The published maps of some scenes of a run."""

    scenes: tuple[SceneOfMap, ...]
    classes: tuple[MapClass, ...]

    @classmethod
    def open(cls, config: Config, workspace: Workspace, names: Sequence[str]) -> RunMap:
        """Open the maps of scenes.

        Raises:
            InputError: a scene does not exist, has no published map, or was prepared again with another grid.
        """
        known = [scene.name for scene in config.scenes]
        for name in names:
            if name not in known:
                raise InputError(f"--scene {name}: there is no scene {name!r}; the scenes are {', '.join(known)}.")
        scenes = tuple(_open(workspace, name) for name in known if name in names)
        classes = {_classes(scene) for scene in scenes}
        if len(classes) > 1:
            raise InputError(
                f"the maps of {', '.join(scene.name for scene in scenes)} have different classes, so that they are no one "
                "map; run `mibf map`, or give --scene."
            )
        return cls(scenes, classes.pop())

    @property
    def digest(self) -> str:
        """Digest of the class rasters: maps with the same one have the same class at every pixel."""
        return class_digest({scene.name: scene.item for scene in self.scenes})

    @property
    def item_ids(self) -> dict[str, str]:
        """The STAC item's id of each scene."""
        return {scene.name: str(scene.item.item["id"]) for scene in self.scenes}

    def frame(self, excluded: Sequence[Subset] = ()) -> list[SceneFrame]:
        """The pixels of the maps that may be drawn: without the samples of some subsets."""
        ids = tuple(each.id for each in self.classes)
        found = []
        for scene in self.scenes:
            own = tuple(subset for subset in excluded if scene.store.windows_with_samples(subset))
            published = PublishedMap(scene.folder)
            found.append(SceneFrame(scene.name, scene.store.grid, published, ids, scene.store, own))
        return found


def _open(workspace: Workspace, name: str) -> SceneOfMap:
    folder = workspace.map_folder(name)
    item = require_item(folder)
    store = PatchStore(workspace.store(name))
    if not matches_grid(item.item, store.grid):
        raise InputError(
            f"{storage.redact_url(folder)}: the map has another grid than {store.url}, which was prepared again since; run "
            "`mibf map` first."
        )
    return SceneOfMap(name, folder, item, store)


def _classes(scene: SceneOfMap) -> tuple[MapClass, ...]:
    """The classes of a map, from its item."""
    for asset in scene.item.item["assets"].values():
        if is_class_raster(asset) and "classification:classes" in asset:
            values = [value for value in asset["classification:classes"] if not value.get("nodata")]
            return tuple(MapClass(v["value"], v["title"], f"#{v['color_hint'].lower()}") for v in values)
    raise InputError(
        f"{storage.redact_url(scene.folder)}: the map has no class raster; add `class` to `map.products` and run `mibf map`."
    )
