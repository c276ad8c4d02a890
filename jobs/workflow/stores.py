"""Open the patch stores of a workspace's scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jobs.workflow.manifest import read_manifest
from jobs.workflow.workspace import Workspace
from pipeline.codes import Subset
from pipeline.sampling.store_catalog import StoreList


def open_stores(
    workspace: Workspace,
    scenes: Iterable[str],
    *,
    without: tuple[Subset, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> StoreList:
    """The stores of some scenes, without the samples of some subsets; each is opened when it is first read.

    The catalog that `prepare` wrote saves their requests, if it is of the prepare that finished last.

    Args:
        workspace: of the stores.
        scenes: their names.
        without: subsets that stay hidden.
        report: called with a line when an object store does not respond.
    """
    manifest = read_manifest(workspace, "prepare")
    return StoreList.read(
        {name: workspace.store(name) for name in scenes},
        catalog=workspace.catalog,
        fingerprint=None if manifest is None else manifest.fingerprint,
        without=without,
        report=report,
    )
