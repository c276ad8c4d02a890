"""Items of searched sources: files in the workspace, which stand in the place of the searches once they are there."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.config.config import Config
from jobs.config.stac import SearchSection
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage

#: The names of a scene and of one of its sources.
SourceKey = tuple[str, str]


class NotSearchedError(InputError):
    """A source is to be searched, and has not been yet."""


def searches(config: Config) -> dict[SourceKey, SearchSection]:
    """Return the searches of a configuration by scene and source."""
    return {
        (scene.name, name): source.stac.search
        for scene in config.scenes
        for name, source in scene.sources.items()
        if source.stac is not None and source.stac.search is not None
    }


def found_files(config: Config) -> dict[SourceKey, str]:
    """Return the URL of what each search of a configuration found.

    Raises:
        NotSearchedError: a file does not exist.
    """
    workspace = Workspace.of(config)
    urls = {key: workspace.found_items(*key) for key in searches(config)}
    for (scene, source), url in urls.items():
        with storage.as_input_errors(url):
            there = storage.exists(url)
        if not there:
            raise NotSearchedError(
                f"{url}: the items of source {source!r} of scene {scene!r} were not searched yet; run `mibf prepare`."
            )
    return urls


def found_items(config: Config) -> Config:
    """Return a configuration with the files of found items in the place of its searches.

    Raises:
        NotSearchedError: as `found_files`.
    """
    return with_items(config, found_files(config))


def with_items(config: Config, urls: Mapping[SourceKey, str]) -> Config:
    """Return a configuration in which files of items, by scene and source, replace searches."""
    if not urls:
        return config
    scenes = []
    for scene in config.scenes:
        sources = dict(scene.sources)
        for name, source in scene.sources.items():
            if source.stac is not None and (scene.name, name) in urls:
                stac = source.stac.model_copy(update={"url": urls[scene.name, name], "search": None})
                sources[name] = source.model_copy(update={"stac": stac})
        scenes.append(scene.model_copy(update={"sources": sources}))
    return config.model_copy(update={"scenes": tuple(scenes)})
