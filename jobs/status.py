"""status: what holds of every tile of every scene's map, from the ledgers and what is there now. Writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

from jobs.config import Config
from jobs.scene_maps import Recipe, SceneMap
from jobs.stages import needs, read_manifest
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline.ledger import State
from pipeline.tileprints import difference
from pipeline.tiles import Tile

#: Causes that are shown, and tiles of each.
CAUSES, TILES = 5, 3


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
    for needed in needs(config, "map"):
        if read_manifest(workspace, needed) is None:
            raise InputError(f"{workspace.url}: `{needed}` is not finished; run `mibf {needed}` or `mibf run` first.")
    recipe = Recipe.of(config, workspace)
    return [status_of(SceneMap(recipe, workspace, scene)) for scene in config.scenes]


def status_of(scene: SceneMap) -> SceneStatus:
    """The status of one scene."""
    last, states = scene.ledger.last(), scene.states()
    item = scene.item()
    causes: dict[str, list[str]] = {}
    for window, state in states.items():
        cause = ""
        if state == "failed":
            cause = last[window].cause
        elif state == "stale":
            before = last[window]
            changed = before.fingerprint != scene.planned[window]
            cause = f"{difference(before.fingerprint, scene.planned[window])} changed" if changed else before.cause
        if cause:
            causes.setdefault(cause, []).append(Tile(scene.name, window).key)
    counts = Counter(states.values())
    current = counts["done"] == len(states) and scene.is_published()
    return SceneStatus(
        scene.name,
        scene.folder,
        None if item is None else item["properties"].get("created"),
        current,
        {state: counts[state] for state in get_args(State)},
        sum(last[window].attempts for window in states if window in last),
        sorted(causes.items(), key=lambda pair: -len(pair[1])),
    )


def lines(found: list[SceneStatus]) -> list[str]:
    """The status for a person."""
    told = []
    for scene in found:
        counts = ", ".join(f"{count:,} {state}" for state, count in scene.tiles.items() if count)
        if scene.published is None:
            shown = "nothing is published"
        else:
            shown = f"published {scene.published}" + ("" if scene.current else ", not of these tiles")
        told.append(f"{scene.scene}: {sum(scene.tiles.values()):,} tiles: {counts}; {shown}")
        for cause, keys in scene.causes[:CAUSES]:
            more = f" and {len(keys) - TILES:,} more" if len(keys) > TILES else ""
            told.append(f"  {', '.join(keys[:TILES])}{more}: {cause}")
        if len(scene.causes) > CAUSES:
            told.append(f"  and {len(scene.causes) - CAUSES:,} other causes; --json tells all")
    return told
