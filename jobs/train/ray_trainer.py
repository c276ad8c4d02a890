"""Start, monitor and restart the Ray Train (V2) workers of a run."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runtime import ray_start
from jobs.runtime.progress import info
from jobs.runtime.progress_actor import ProgressActor
from jobs.runtime.ray_cluster import assigned_device
from jobs.runtime.worker_resources import WorkerResources
from jobs.train.learner import no_memory_message
from jobs.train.settings import ProgressCallback, Settings, WorkerContext
from jobs.train.worker_loop import run
from jobs.workflow.errors import StageError
from mibf import __version__
from mibf.device import means_no_memory
from mibf.errors import InputError
from mibf.training.checkpoint import TrainingPosition
from mibf.training.epoch import NonFiniteError
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.lease import LeaseLostError
from pipeline.io.retry import StorageUnavailableError, call_with_retry
from pipeline.sampling.sampler import ReadError

#: Seconds between two polls of the progress actor.
POLL_SECONDS = 1.0
Failure = TypeVar("Failure", bound=BaseException)


def train_on_ray(settings: Settings, share: WorkerResources, callback: ProgressCallback) -> None:
    """Train on Ray workers until all seeds are complete; report progress to `callback`.

    Raises:
        InputError: a worker found an invalid input or setting.
        LeaseLostError: a worker found that the workspace lease was lost.
        StageError: the workers failed more often than `train.max_failures` without a new checkpoint, or with an error that
            would occur again.
    """
    section = settings.train
    with _start_progress_actor(callback) as actor:

        def fit() -> ray.train.TrainingFailedError | None:
            failure = _fit(settings, share, actor)
            fatal_error = ray.get(actor.fatal_error.remote())
            if fatal_error is None:
                return failure
            kind, line = fatal_error
            if kind == "lease":
                raise LeaseLostError(line)
            raise InputError(line) if kind == "input" else StageError(f"training stopped: {line}")

        failure = fit_while_progressing(fit, partial(_newest_checkpoints, settings), max_failures=section.max_failures)
        if failure is not None:
            raise StageError(
                f"training stopped: {_cause(failure)}. Workers failed more often than `train.max_failures` "
                f"({section.max_failures}) without a new checkpoint; "
                "run the same command again to resume from the newest checkpoint."
            ) from failure


def fit_while_progressing(
    fit: Callable[[], Failure | None], position: Callable[[], object], *, max_failures: int
) -> Failure | None:
    """Fit until it succeeds, or fails more than `max_failures` times without progress in between; return the last failure.

    So a training on nodes that are often taken away ends only if it gets no further.

    Args:
        fit: returns None, or why the workers failed; the next call continues at the newest checkpoint.
        position: what has been saved, which differs after progress.
        max_failures: failures that are allowed at one position.
    """
    failures, saved = 0, position()
    while (failure := fit()) is not None:
        before, saved = saved, position()
        failures = 1 if saved != before else failures + 1
        if failures > max_failures:
            break
    return failure


def _newest_checkpoints(settings: Settings) -> list[TrainingPosition | None]:
    """The position of the newest checkpoint of every seed."""

    def newest(url: str) -> TrainingPosition | None:
        return next(reversed(Checkpoints(url).positions()), None)

    urls = [settings.workspace.checkpoints(seed) for seed in settings.train.every_seed]
    return [call_with_retry(url, partial(newest, url)) for url in urls]


def _fit(settings: Settings, share: WorkerResources, actor: Any) -> ray.train.TrainingFailedError | None:
    """Start workers and wait until training is complete, or return why they failed."""
    section = settings.train
    with tempfile.TemporaryDirectory(prefix="mibf-ray-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={"settings": settings, "actor": actor, "version": __version__},
            scaling_config=ray.train.ScalingConfig(
                num_workers=section.workers if section.max_workers is None else (section.workers, section.max_workers),
                use_gpu=share.gpus > 0,
                resources_per_worker=share.resources,
            ),
            # NCCL refuses two workers on one GPU.
            torch_config=ray.train.torch.TorchConfig(backend="gloo") if share.per_gpu > 1 else None,
            # Only Ray's own state goes there; no checkpoint is handed to Ray. Failures are counted here, where progress is
            # known: Ray counts those of a whole training.
            run_config=ray.train.RunConfig(
                name=f"mibf-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=0),
            ),
        )
        with ray_start.watched(info):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                return error
    return None


def _worker(config: dict[str, Any]) -> None:
    """The function that each worker runs; Ray Train has already joined the workers into one process group."""
    context = ray.train.get_context()
    actor, settings = config["actor"], config["settings"]
    if ray.get(actor.fatal_error.remote()) is not None:
        return  # Ray Train restarted the workers, but the same error would occur again
    worker = WorkerContext(context.get_world_rank(), context.get_world_size(), assigned_device().device)
    if worker.rank == 0:
        actor.gathered.remote(worker.workers)
    try:
        _check_version(config["version"])
        run(settings, worker, RemoteProgress(actor))
    except (InputError, LeaseLostError, NonFiniteError, ReadError, StorageUnavailableError) as error:
        kinds = {InputError: "input", LeaseLostError: "lease"}
        kind = next((name for type_, name in kinds.items() if isinstance(error, type_)), "stage")
        ray.get(actor.give_up.remote(kind, str(error)))
        raise
    except RuntimeError as error:
        if worker.device.type == "cuda" and means_no_memory(error):  # it would occur again, unlike that of a busy machine
            ray.get(actor.give_up.remote("stage", no_memory_message(error)))
        raise


def _check_version(driver: str) -> None:
    """Check the version of a worker, whose node may have joined after the others were asked for theirs."""
    if driver != __version__:
        raise InputError(
            f"Ray node {ray.util.get_node_ip_address()} has mibf {__version__}, and the driver has {driver}; install the "
            "same version on all nodes."
        )


class RemoteProgress:
    """Progress callback of a worker; forwards to the progress actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def seen(self, samples: int, waiting: float) -> None:
        """See `ProgressCallback.seen`."""
        self.actor.seen.remote(samples, waiting)

    def loss(self, value: float) -> None:
        """See `ProgressCallback.loss`."""
        self.actor.loss.remote(value)

    def epoch(self, line: str) -> None:
        """See `ProgressCallback.epoch`."""
        self.actor.report.remote("epoch", line)

    def warn(self, line: str) -> None:
        """See `ProgressCallback.warn`."""
        self.actor.report.remote("warn", line)


@contextmanager
def _start_progress_actor(callback: ProgressCallback) -> Iterator[Any]:
    """Create a progress actor and a thread that polls it. The actor is on the driver's node, so it survives worker nodes."""
    own_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ProgressActor.options(scheduling_strategy=own_node).remote()  # type: ignore[attr-defined]  # added by ray.remote
    stop = threading.Event()

    def read() -> None:
        (samples, waiting), loss, lines = ray.get(actor.read.remote())
        if samples:
            callback.seen(samples, waiting)
        if loss is not None:
            callback.loss(loss)
        for kind, line in lines:
            (callback.warn if kind == "warn" else callback.epoch)(line)

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            with suppress(ray.exceptions.RayError):  # the next poll makes up for a failed one
                read()

    thread = threading.Thread(target=watch, name="mibf-progress", daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join()
        read()
        ray.kill(actor)


def _cause(error: BaseException) -> str:
    """The last line of a worker's error, without the traceback through Ray's layers."""
    failures = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else repr(cause)
