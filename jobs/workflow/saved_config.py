"""Save the configuration of a run with its results, so reruns work from any machine or folder.

Only what was set is saved. The scenes of a large configuration become a table, a JSON file beside it that it names with its
SHA-256, whether they were listed or came from a table.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.config.config import Config
from jobs.config.table.read import MAX_BYTES as MAX_TABLE_BYTES
from jobs.config.yaml_loader import MAX_BYTES, MAX_VALUES, SAVED
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage

#: Most scenes that the YAML itself holds: reading YAML takes a hundred times as long as JSON.
INLINE_SCENES = 100
#: Keys whose string values are paths or URLs; sections under these keys are traversed as usual.
PATH_KEYS = frozenset({"workspace", "url", "urls", "tiles", "scales", "model"})


@dataclass(frozen=True)
class SavedConfig:
    """A configuration as it is saved: YAML, and for many scenes a table of them, which the YAML names."""

    yaml: str
    table: tuple[str, bytes] | None = None  #: name and content

    @classmethod
    def of(cls, config: Config, folder: str = "") -> SavedConfig:
        """Dump what was set in a configuration, with absolute local paths and without the URLs' queries (signatures).

        Args:
            config: the configuration.
            folder: URL of the folder in which the files will be; by default the working directory.
        """
        values = _values(config)
        if len(config.scenes) <= INLINE_SCENES:
            return cls(_without_queries(values))
        scenes = json.dumps([_each_text(scene, storage.without_queries) for scene in values["scenes"]], indent=0).encode()
        digest = hashlib.sha256(scenes).hexdigest()
        name = f"scenes-{digest[:12]}.json"
        table = {"table": storage.join(folder, name) if folder else name, "sha256": digest}
        return cls(_without_queries(values | {"scenes": table}), (name, scenes))

    def write(self, url: str) -> None:
        """Write the YAML to a URL, after the table beside it.

        Raises:
            InputError: it is too large to be read again; nothing is written.
        """
        content = self.yaml.encode()
        lines = content.count(b"\n")  # a line has a key and a value, or an item
        too_large = len(content) > SAVED * MAX_BYTES or 2 * lines > SAVED * MAX_VALUES
        if too_large or (self.table is not None and len(self.table[1]) > MAX_TABLE_BYTES):
            raise InputError(
                f"the configuration has {lines:,} lines, or so many scenes that their table is too large, to be read again "
                "by a rerun; split its scenes over several configurations."
            )
        if self.table is not None:
            storage.write_bytes(storage.join(posixpath.dirname(url), self.table[0]), self.table[1])
        storage.write_bytes(url, content)


def as_run(config: Config) -> str:
    """Dump a configuration as YAML, as `SavedConfig` does, but with all scenes."""
    return _without_queries(_values(config))


def set_values(config: Config) -> dict[str, Any]:
    """What was set in a configuration, as JSON values: no defaults, which are those of whichever version reads it."""
    return config.model_dump(mode="json", exclude_unset=True)


def _values(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = _absolute(set_values(config))
    return values


def _without_queries(values: dict[str, Any]) -> str:
    return storage.without_queries(yaml.safe_dump(values, sort_keys=False))


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _each_text(below, change) for key, below in value.items()}
    if isinstance(value, list):
        return [_each_text(below, change) for below in value]
    return change(value) if isinstance(value, str) else value


def save_training_config(config: Config, workspace: Workspace) -> None:
    """Save the configuration with which the run's training was started.

    Raises:
        InputError: it is too large to be read again.
    """
    SavedConfig.of(config, workspace.run_folder).write(workspace.configuration)


def save_map_config(config: Config, workspace: Workspace) -> None:
    """Save the configuration with which the run's map was last started.

    Raises:
        InputError: it is too large to be read again.
    """
    SavedConfig.of(config, workspace.run_folder).write(workspace.map_configuration)


def relative_paths(config: Config) -> list[str]:
    """Return the relative local paths in a configuration; they point elsewhere on another machine."""
    return [p for p in _paths(set_values(config)) if storage.is_local(p) and not _is_absolute(p)]


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
