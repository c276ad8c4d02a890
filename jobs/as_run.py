"""A run's configuration as it was run, kept beside its results, so that reruns can be done from anywhere."""

from __future__ import annotations

from typing import Any

import yaml

from jobs.config import Config
from jobs.workspace import Workspace
from pipeline import storage

#: The keys that hold a place, or several; a key of the same name that holds a section is none.
PLACES = frozenset({"workspace", "url", "urls", "tiles", "model"})


def as_run(config: Config) -> str:
    """A configuration as YAML: places on disks by their absolute paths, URLs without what may sign them."""
    return storage.without_queries(yaml.safe_dump(_absolute(config.model_dump(mode="json")), sort_keys=False))


def keep_training(config: Config, workspace: Workspace) -> None:
    """Write the configuration that the run's training was begun with."""
    storage.write_bytes(workspace.configuration, as_run(config).encode())


def keep_map(config: Config, workspace: Workspace) -> None:
    """Write the configuration that the run's map was begun with last."""
    storage.write_bytes(workspace.map_configuration, as_run(config).encode())


def relative_places(config: Config) -> list[str]:
    """The places on disks that a configuration names by relative paths: they mean another place on another machine."""
    return [p for p in _places(config.model_dump(mode="json")) if storage.is_local(p) and not _is_absolute(p)]


def _is_absolute(place: str) -> bool:
    return place.removeprefix("file://").startswith(("/", "~"))


def _absolute(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _absolute(below, name) for name, below in value.items()}
    if isinstance(value, list):
        return [_absolute(below, key) for below in value]
    return storage.absolute(value) if key in PLACES and isinstance(value, str) else value


def _places(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [place for name, below in value.items() for place in _places(below, name)]
    if isinstance(value, list):
        return [place for below in value for place in _places(below, key)]
    return [value] if key in PLACES and isinstance(value, str) else []
