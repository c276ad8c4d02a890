"""Choose what runs the tasks of `prepare`: threads of this process, a Ray cluster, or a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from jobs.config.config import RAY, THREADS, Config, PrepareSection
from jobs.config.resolve import input_urls
from jobs.runtime.progress import info, pluralize
from jobs.workflow.workspace import Workspace
from pipeline.io import storage
from pipeline.io.lease import LEASE_FILE
from pipeline.parallel.executor import Executor, ThreadExecutor, connect_dask


@contextmanager
def make_executor(section: PrepareSection, *, files: Collection[str] = ()) -> Iterator[Executor]:
    """Yield the executor of `prepare.engine`; `files` are those that its tasks read.

    Raises:
        InputError: the cluster cannot be reached, or its nodes lack mibf or the files.
    """
    engine = section.engine or default_engine()
    if engine == THREADS:
        yield ThreadExecutor()
    elif engine == RAY:
        from jobs.runtime import ray_cluster  # import Ray only where it is used
        from jobs.runtime.ray_executor import RayExecutor

        ray_cluster.ensure(workers=1)
        ray_cluster.check_shared(files)
        executor = RayExecutor()
        info(f"using Ray tasks on {pluralize(executor.workers, 'CPUs')}")
        yield executor
    else:
        with connect_dask(engine) as cluster:
            yield cluster


def files_needed(config: Config, workspace: Workspace) -> list[str]:
    """The files that tasks of `prepare` must find, those of the inputs and, on a disk, the lease that this run holds."""
    held = storage.join(workspace.url, LEASE_FILE)
    return [*input_urls(config), *([held] if storage.is_local(workspace.url) and storage.exists(held) else [])]


def default_engine() -> str:
    """`ray` where RAY_ADDRESS names a cluster, as in submitted jobs; otherwise `threads`."""
    return THREADS if os.environ.get("RAY_ADDRESS", "local") == "local" else RAY
