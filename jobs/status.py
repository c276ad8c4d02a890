"""status: what holds of every tile of every scene's map, from the ledgers and what is there now. Writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

from jobs.config import Config
from jobs.progress import counted
from jobs.scene_maps import Recipe, SceneMap, told_causes
from jobs.stages import check_needs
from jobs.workspace import Workspace
from pipeline.ledger import State


@dataclass(frozen=True)
class SceneStatus:
    """How far a scene's map is."""

    scene: str
    folder: str
    published: str | None  #: when the map that is published was made; None where none is
    current: bool  #: whether that is the map of all tiles as they would be now
    tiles: dict[State, int]  #: number of tiles by state
    attempts: int  #: of all tiles under their present fingerprints
    causes: list[tuple[str, list[str]]]  #: why tiles failed or are stale, the most frequent first, with the tiles' keys

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return vars(self) | {"causes": [{"cause": cause, "tiles": keys} for cause, keys in self.causes]}


def status(config: Config) -> list[SceneStatus]:
    """The status of every scene.

    Raises:
        InputError: an earlier stage is not finished, or the model and a scene do not fit.
    """
    workspace = Workspace.of(config)
    check_needs(config, "map")
    recipe = Recipe.of(config, workspace)
    return [status_of(SceneMap(recipe, workspace, scene)) for scene in config.scenes]


def status_of(scene: SceneMap) -> SceneStatus:
    """The status of one scene."""
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


def lines(found: list[SceneStatus]) -> list[str]:
    """The status for a person."""
    told = []
    for scene in found:
        counts = ", ".join(f"{count:,} {state}" for state, count in scene.tiles.items() if count)
        told.append(f"{scene.scene}: {counted(sum(scene.tiles.values()), 'tiles')}: {counts}; {_published(scene)}")
        told += told_causes(scene.causes)
    return told


def _published(scene: SceneStatus) -> str:
    if scene.published is None:
        return "nothing is published"
    when = f"{scene.published[:19]}Z"  # to the second
    if scene.current:
        return f"published {when}"
    if scene.tiles["done"] < sum(scene.tiles.values()):
        return f"the earlier map, of {when}, is still there"
    return f"the map of {when} is not of these tiles, or not in the files asked for; `mibf rerun` publishes it anew"
