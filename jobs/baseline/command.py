"""`mibf baseline`: fit baselines to the samples of a run and compare them with its trained model.

Metrics are on validation pixels; test pixels are read only on request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.baseline.measure import Budget, NothingToMeasureError, measure
from jobs.baseline.table import Baselines
from jobs.config.config import Config
from jobs.runtime.progress import info
from jobs.workflow.manifest import check_dependencies
from jobs.workflow.runner import stale_dependencies
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.codes import Subset
from pipeline.io import storage
from pipeline.io.lease import acquire

#: Training samples that the baselines are fitted to, and seconds for everything, by default.
SAMPLES, SECONDS = 20_000, 60.0


def baseline(
    config: Config,
    *,
    test: bool,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Baselines:
    """Fit all baselines for which there is time, compare them with the run's model, and store the table in the run's folder.

    Args:
        config: its stores must have been prepared.
        test: also read the test pixels.
        samples: training samples to fit to, at most.
        seconds: see `jobs.baseline.measure.measure`.
        clock: returns a time in seconds.

    Raises:
        InputError: there are no stores, no labels, too few samples or classes, or nothing to report.
        LeaseHeldError: another run holds the workspace lease.
    """
    budget = Budget(seconds, clock)
    if not config.trainable:
        raise NothingToMeasureError(
            "no scene has `labels` for training, so there is nothing to fit to; add labels to at least one."
        )
    check_dependencies(config, "train")
    workspace = Workspace.of(config)
    subsets = _subsets(config, test=test)
    hidden: tuple[Subset, ...] = () if test else ("test",)
    stores = open_stores(workspace, (scene.name for scene in config.scenes), without=hidden)
    if stale_dependencies(config, "train"):
        info("warning: `prepare` is not current (configuration, inputs or algorithm version changed); `mibf run` repeats it")
    storage.check_writable(workspace.url)
    with acquire(workspace.url, what=f"mibf baseline of {config.name}, run {config.run}") as lease:
        found = measure(config, workspace, stores, subsets, samples=samples, budget=budget)
        lease.check()
        storage.write_json(workspace.baseline, found.to_json())
    return found


def _subsets(config: Config, *, test: bool) -> list[Subset]:
    """The subsets to report on."""
    subsets: list[Subset] = ["validation"] if config.validated else []
    subsets += ["test"] if test else []
    if not subsets:
        raise InputError(
            "the split has no validation pixels, and test pixels are read only on request, so there is nothing to report; "
            "add validation pixels (split.validation), or add --test and do not use the table for model selection."
        )
    return subsets
