"""Stage `baseline` of `mibf run`: baselines beside the trained model, in a small share of the training time.

It informs and never fails a run: what cannot be measured becomes a note. The advice is from validation pixels; test pixels
are measured beside it, once, as `evaluate` does, and decide nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.baseline.table import Baselines
from jobs.config.config import Config
from jobs.runtime.progress import info
from jobs.workflow.manifest import StageResult, read_manifest
from jobs.workflow.runner import invalidate
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from pipeline.codes import Subset
from pipeline.io import storage
from pipeline.io.lease import Lease

if TYPE_CHECKING:
    from jobs.baseline.measure import Budget

#: The share of the training time that baselines may take, and its limits in seconds.
SHARE, SECONDS_LEAST, SECONDS_MOST = 0.1, 10.0, 60.0


def baseline(config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> StageResult:
    """Measure the baselines and the trained model, and store the tables."""
    from jobs.baseline.measure import Budget, NothingToMeasureError  # import scikit-learn only where it is used

    invalidate(workspace, "baseline", lease)
    train = read_manifest(workspace, "train")
    seconds = config.baselines.seconds or default_seconds(0.0 if train is None else train.seconds)
    try:
        found = _measure(config, workspace, Budget(seconds))
    except NothingToMeasureError as error:
        found = Baselines.none(f"no baselines: {error}", seconds=seconds)
    if found.advice is not None:
        info(f"   {found.advice}")
    lease.check()
    storage.write_json(workspace.baseline, found.to_json() | {"fingerprint": fingerprint})
    return StageResult(found.to_json(), found.summary(), [workspace.baseline])


def default_seconds(training: float) -> float:
    """Return the seconds that baselines may take beside a training of so many seconds."""
    return min(max(SHARE * training, SECONDS_LEAST), SECONDS_MOST)


def _measure(config: Config, workspace: Workspace, budget: Budget) -> Baselines:
    """Measure on validation and test pixels, as far as there are some.

    Raises:
        NothingToMeasureError: too few samples or classes.
    """
    from jobs.baseline.measure import NothingToMeasureError, measure, samples_per_class

    if not config.trainable:
        raise NothingToMeasureError("no scene has `labels`.")
    stores = open_stores(workspace, (scene.name for scene in config.scenes))
    both: tuple[Subset, ...] = ("validation", "test")
    subsets = [subset for subset in both if samples_per_class(stores, subset).any()]
    if not subsets:
        raise NothingToMeasureError("there are no validation and no test samples.")
    found = measure(config, workspace, stores, subsets, samples=config.baselines.samples, budget=budget)
    if "validation" not in subsets:
        found.notes.append("no advice: there are no validation samples, and test samples must not select a model")
    return found
