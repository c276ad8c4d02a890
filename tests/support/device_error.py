"""Map a scene whose second tile causes an error on the device; print what the map reports. Run in a process of its own."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace

import torch

from jobs.bench.map import MapsElsewhere
from jobs.config.loader import load
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.stage import map_scenes
from jobs.workflow.errors import exit_status
from jobs.workflow.workspace import Workspace
from mibf.device import best_device
from pipeline.grid import Tile
from pipeline.io.lease import Lease
from pipeline.maps.predictor import TileInput, TileResult
from pipeline.maps.tile_mapper import MapJob, Predictor
from pipeline.store.patch_store import PatchStore

#: The tile with the error, counted from 0.
BROKEN = 1


class Breaking:
    """Predictor that reads beyond the end of an array on the device, once."""

    def __init__(self, job: MapJob) -> None:
        self.predictor: Predictor = replace(job, predictor=None).make_predictor()
        self.computed = 0

    @property
    def rows(self) -> int:
        """See `Predictor.rows`."""
        return self.predictor.rows

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """See `Predictor.read`."""
        return self.predictor.read(store, tile)

    def compute(self, tile: TileInput) -> TileResult:
        """See `Predictor.compute`; a GPU reports an error on it at the next operation, and at all later ones."""
        self.computed += 1
        if self.computed == BROKEN + 1:
            device = best_device()
            print(torch.zeros(1, device=device)[torch.tensor([7], device=device)], file=sys.stderr)
        return self.predictor.compute(tile)


def main(path: str, folder: str) -> None:
    """Map the scene of a configuration file."""
    config = load(path)
    changed = {"workers": 0, "tile_size": 64, "attempts": 2, "backoff": 0, "drift": "ignore"}
    config = config.model_copy(update={"map": config.map.model_copy(update=changed)})
    found = Workspace.of(config)
    workspace = MapsElsewhere(found.url, found.run, folder)
    status: int | None = 0
    message = ""
    try:
        map_scenes(config, workspace, "", Lease(), predictor=Breaking)
    except Exception as error:
        status, message = exit_status(error), f"{type(error).__name__}: {error}"
    scene = SceneMap(MapSpec.of(config, workspace), workspace, config.scenes[0])
    states = Counter(scene.states().values())
    causes = [{"cause": cause[:300], "tiles": len(tiles)} for cause, tiles in scene.causes()]
    print(json.dumps({"status": status, "message": message[:2000], "states": states, "causes": causes}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
