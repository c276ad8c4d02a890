"""`mibf rerun`: the map stage for scheduled jobs. Map missing, failed and stale tiles; print nothing if there are none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs.config.config import Config
from jobs.map.attempt import Workers
from jobs.map.request import TileRequest
from jobs.map.stage import check_tiles, map_scenes
from jobs.map.status import SceneStatus, status
from jobs.workflow.errors import TilesFailedError
from jobs.workflow.manifest import Manifest
from jobs.workflow.runner import run_stage


@dataclass(frozen=True)
class Rerun:
    """Result of a rerun."""

    manifest: Manifest | None  #: manifest of the map stage; None if tiles are left
    done: bool  #: whether there was anything to do
    scenes: list[SceneStatus]
    failure: TilesFailedError | None

    def lines(self) -> list[str]:
        """Summary lines; empty if there was nothing to do."""
        return list(self.manifest.lines) if self.manifest is not None and self.done else []

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        figures = {} if self.manifest is None or not self.done else self.manifest.figures
        return {"nothing_to_do": not self.done, "complete": self.failure is None, **figures} | {
            "scenes": [scene.to_json() for scene in self.scenes]
        }


def rerun(config: Config, request: TileRequest, *, workers: Workers | None = None) -> Rerun:
    """Map the selected tiles and return the resulting status; `workers` as for `Attempt`.

    Raises:
        InputError, LeaseHeldError: as for the map stage.
    """
    manifest, done, failure = None, True, None
    if request.tiles is not None:
        check_tiles(config, request.tiles)  # even if the map is current
    try:
        manifest, done = run_stage(config, "map", partial(map_scenes, request=request, workers=workers), keep_current=True)
        done = done and bool(manifest.figures["tiles_mapped"] or manifest.figures["scenes_published"])
    except TilesFailedError as error:
        failure = error
    return Rerun(manifest, done, status(config).scenes, failure)
