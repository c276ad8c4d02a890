"""rerun: the map stage for schedules: what is missing, failed or stale is mapped, and where nothing is, nothing is said."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.config import Config
from jobs.map import Request, check_tiles, map_scenes
from jobs.stages import Manifest, TilesFailedError, run_stage
from jobs.status import SceneStatus, status


@dataclass(frozen=True)
class Rerun:
    """What a rerun came to."""

    manifest: Manifest | None  #: of the map; None where tiles are left
    done: bool  #: whether anything was to do
    scenes: list[SceneStatus]
    failure: TilesFailedError | None

    @property
    def lines(self) -> list[str]:
        """What it did, for a person; nothing where nothing was to do."""
        return list(self.manifest.lines) if self.manifest is not None and self.done else []

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        figures = {} if self.manifest is None or not self.done else self.manifest.figures
        return {"nothing_to_do": not self.done, "complete": self.failure is None, **figures} | {
            "scenes": [scene.to_json() for scene in self.scenes]
        }


def rerun(config: Config, request: Request) -> Rerun:
    """Map what is due, and tell what holds afterwards.

    Raises:
        InputError, LeaseHeldError: as for the map stage.
    """
    manifest, done, failure = None, True, None
    if request.tiles is not None:
        check_tiles(config, request.tiles)  # also where the map is current
    try:
        manifest, done = run_stage(config, "map", partial(map_scenes, request=request), keep_current=True)
        done = done and bool(manifest.figures["tiles_mapped"] or manifest.figures["scenes_published"])
    except TilesFailedError as error:
        failure = error
    return Rerun(manifest, done, status(config), failure)
