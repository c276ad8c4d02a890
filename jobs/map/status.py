"""`mibf status`: the state of every tile of every scene's map, from the ledgers and current fingerprints. Writes nothing."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

from jobs.config.config import Config
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.summary import format_causes
from jobs.runtime.progress import pluralize
from jobs.workflow.manifest import check_dependencies
from jobs.workflow.workspace import Workspace
from pipeline.maps.ledger import State

#: Scenes that are read at once.
PARALLEL_READS = 8


@dataclass(frozen=True)
class SceneStatus:
    """State of a scene's map."""

    scene: str
    folder: str
    published: str | None  #: creation time of the published map; None if no map is published
    current: bool  #: whether all tiles are done and the published map consists of them
    tiles: dict[State, int]  #: number of tiles by state
    attempts: int  #: total attempts at the tiles under their current fingerprints
    causes: list[tuple[str, list[str]]]  #: why tiles failed or are stale, most frequent first, with the tile keys

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self) | {"causes": [{"cause": cause, "tiles": keys} for cause, keys in self.causes]}


@dataclass(frozen=True)
class Status:
    """State of the maps of all scenes."""

    scenes: list[SceneStatus]

    def lines(self) -> list[str]:
        """Format the status as lines of text."""
        lines = []
        for scene in self.scenes:
            counts = ", ".join(f"{count:,} {state}" for state, count in scene.tiles.items() if count)
            lines.append(f"{scene.scene}: {pluralize(sum(scene.tiles.values()), 'tiles')}: {counts}; {_published(scene)}")
            lines += format_causes(scene.causes)
        return lines

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values."""
        return [scene.to_json() for scene in self.scenes]


def status(config: Config) -> Status:
    """Return the status of every scene.

    Raises:
        InputError: an earlier stage is not finished, or the model and a scene do not match.
    """
    workspace = Workspace.of(config)
    check_dependencies(config, "map")
    spec = MapSpec.of(config, workspace)
    # Mostly waiting for storage: a few requests per scene.
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return Status(list(pool.map(lambda scene: scene_status(SceneMap(spec, workspace, scene)), config.scenes)))


def scene_status(scene: SceneMap) -> SceneStatus:
    """Return the status of one scene."""
    last, states = scene.ledger.last(), scene.states()
    item = scene.item()
    counts = Counter(states.values())
    current = counts["done"] == len(states) and scene.is_published()
    return SceneStatus(
        scene.name,
        scene.folder,
        None if item is None else item["properties"].get("created"),
        current,
        {state: counts[state] for state in get_args(State)},
        sum(last[window].attempts for window in states if window in last),
        scene.causes(),
    )


def _published(scene: SceneStatus) -> str:
    if scene.published is None:
        return "nothing is published"
    when = f"{scene.published[:19]}Z"  # to the second
    if scene.current:
        return f"published {when}"
    if scene.tiles["done"] < sum(scene.tiles.values()):
        return f"the earlier map ({when}) is still published"
    return f"the map published {when} does not match the tiles or the configured files; run `mibf rerun` to publish it again"
