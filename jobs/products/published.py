"""The published maps that a command's argument names: those of a configuration, or the one at a URL."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.loader import load
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.publishing.class_map import ClassMap

#: Suffixes of configurations; anything else is the URL of a map.
CONFIGURATIONS = (".yaml", ".yml")


def is_configuration(target: str) -> bool:
    """Whether an argument names a configuration, by its suffix."""
    return target.partition("?")[0].lower().endswith(CONFIGURATIONS)


def published_maps(target: str, *, scene: str | None = None, overrides: Sequence[str] = ()) -> dict[str, ClassMap]:
    """Open the published maps of a configuration, or the map at a URL, by scene.

    Args:
        target: path or URL of a configuration, or of a map's folder or its item.json.
        scene: only the map of this scene of a configuration.
        overrides: values that replace those of the configuration.

    Raises:
        InputError: no map is published there, the scene is unknown, or an option does not apply to a URL.
    """
    if not is_configuration(target):
        if scene is not None or overrides:
            raise InputError(f"--scene and --set apply to a configuration; {storage.redact_url(target)} is a map.")
        found = ClassMap.open(storage.absolute(target))
        return {found.name: found}
    config = load(target, overrides=overrides)
    workspace, names = Workspace.of(config), [section.name for section in config.scenes]
    if scene is not None and scene not in names:
        raise InputError(f"--scene {scene}: {target} has no such scene; it has {', '.join(names)}.")
    chosen = names if scene is None else [scene]
    return {name: ClassMap.open(workspace.map_folder(name)) for name in chosen}


def one_map(target: str, *, scene: str | None = None) -> ClassMap:
    """Open the one map that an argument names; `scene` chooses one of a configuration, and does not apply to URLs.

    Raises:
        InputError: as for `published_maps`, or the configuration has several scenes.
    """
    if not is_configuration(target):
        scene = None
    elif scene is None:
        names = [section.name for section in load(target).scenes]
        if len(names) > 1:
            raise InputError(f"{target} has several scenes; choose one with --scene: {', '.join(names)}.")
    (found,) = published_maps(target, scene=scene).values()
    return found
