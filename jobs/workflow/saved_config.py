"""Save the configuration of a run with its results, so reruns work from any machine or folder."""

from __future__ import annotations

from typing import Any

import yaml

from jobs.config.config import Config
from jobs.config.yaml_loader import MAX_BYTES, MAX_VALUES, SAVED
from jobs.runtime.progress import pluralize
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage

#: Keys whose string values are paths or URLs; sections under these keys are traversed as usual.
PATH_KEYS = frozenset({"workspace", "url", "urls", "tiles", "scales", "model"})


def as_run(config: Config) -> str:
    """Dump a configuration as YAML, with absolute local paths and with URL query strings (signatures) removed."""
    return storage.without_queries(yaml.safe_dump(_absolute(config.model_dump(mode="json")), sort_keys=False))


def save_training_config(config: Config, workspace: Workspace) -> None:
    """Save the configuration with which the run's training was started.

    Raises:
        InputError: it is too large to be read again.
    """
    storage.write_bytes(workspace.configuration, _readable(config))


def save_map_config(config: Config, workspace: Workspace) -> None:
    """Save the configuration with which the run's map was last started.

    Raises:
        InputError: it is too large to be read again.
    """
    storage.write_bytes(workspace.map_configuration, _readable(config))


def _readable(config: Config) -> bytes:
    content = as_run(config).encode()
    lines = content.count(b"\n")  # a line has a key and a value, or an item
    if len(content) > SAVED * MAX_BYTES or 2 * lines > SAVED * MAX_VALUES:
        raise InputError(
            f"the configuration of {pluralize(len(config.scenes), 'scenes')} has {lines:,} values with all defaults, too "
            "many to be read again by a rerun; split its scenes over several configurations."
        )
    return content


def relative_paths(config: Config) -> list[str]:
    """Return the relative local paths in a configuration; they point elsewhere on another machine."""
    return [p for p in _paths(config.model_dump(mode="json")) if storage.is_local(p) and not _is_absolute(p)]


def _is_absolute(path: str) -> bool:
    return path.removeprefix("file://").startswith(("/", "~"))


def _absolute(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _absolute(below, name) for name, below in value.items()}
    if isinstance(value, list):
        return [_absolute(below, key) for below in value]
    return storage.absolute(value) if key in PATH_KEYS and isinstance(value, str) else value


def _paths(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [path for name, below in value.items() for path in _paths(below, name)]
    if isinstance(value, list):
        return [path for below in value for path in _paths(below, key)]
    return [value] if key in PATH_KEYS and isinstance(value, str) else []
