"""The workers of one training on Ray Train (V2): how they are brought together, watched, and brought together again."""

from __future__ import annotations

import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import cluster
from jobs.loop import Listener, Place, Settings, run
from jobs.stages import StageError
from mibf.errors import InputError
from mibf.precision import Precision, best_device, check_precision
from mibf.training import NonFiniteError
from pipeline.batches import ReadError
from pipeline.patience import AwayError

#: Seconds between two looks at the board.
LOOK = 1.0


def train_on_ray(settings: Settings, share: cluster.Share, listener: Listener) -> None:
    """Train on Ray's workers until all is done; `listener` is told as it goes.

    Raises:
        InputError: a worker found an input or a setting that cannot be.
        StageError: the workers failed more often than `train.failures`, or at what would fail again.
    """
    wanted = settings.train
    workers = wanted.workers if wanted.max_workers is None else (wanted.workers, wanted.max_workers)
    with _board(listener) as board, tempfile.TemporaryDirectory(prefix="mibf-ray-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={"settings": settings, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=share.gpus > 0, resources_per_worker=share.resources
            ),
            # Ray keeps its own notes there; no checkpoint is handed to it.
            run_config=ray.train.RunConfig(
                name=f"mibf-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=wanted.failures),
            ),
        )
        failure: BaseException | None = None
        with _interruptible():
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                failure = error
        given_up = ray.get(board.given_up.remote())
        if given_up is not None:
            kind, line = given_up
            raise InputError(line) if kind == "input" else StageError(f"training stopped: {line}")
        if failure is not None:
            raise StageError(
                f"training stopped: {_cause(failure)}. Workers failed more often than `train.failures` ({wanted.failures}); "
                "run the same command again to go on from the newest checkpoint."
            ) from failure


def check_gpu(precision: Precision) -> None:
    """See that the cluster's GPUs compute in a precision, by asking the first that is free.

    Raises:
        InputError: they do not.
    """
    ask = ray.remote(num_cpus=0, num_gpus=1)(_refusal)
    refusal = ray.get(ask.remote(precision))
    if refusal is not None:
        raise InputError(refusal)


def _refusal(precision: Precision) -> str | None:
    try:
        check_precision(best_device(), precision)
    except InputError as error:
        return str(error)
    return None


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs; Ray Train has joined them into one process group."""
    context = ray.train.get_context()
    board, settings = config["board"], config["settings"]
    if ray.get(board.given_up.remote()) is not None:
        return  # brought together once more, though what failed would fail again
    place = Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    if place.rank == 0:
        board.gathered.remote(place.workers)
    try:
        run(settings, place, _Told(board))
    except (InputError, NonFiniteError, ReadError, AwayError) as error:
        ray.get(board.give_up.remote("input" if isinstance(error, InputError) else "stage", str(error)))
        raise


class _Told:
    """A worker's listener: it writes on the board."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def seen(self, samples: int, waiting: float) -> None:
        self.board.seen.remote(samples, waiting)

    def loss(self, value: float) -> None:
        self.board.loss.remote(value)

    def epoch(self, line: str) -> None:
        self.board.tell.remote("epoch", line)

    def warn(self, line: str) -> None:
        self.board.tell.remote("warn", line)


@ray.remote(num_cpus=0)
class _Board:
    """What workers tell the driver: how far they are, lines for people, and why they gave up."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] = (0, 0.0)
        self._loss: float | None = None
        self._lines: list[tuple[str, str]] = []
        self._given_up: tuple[str, str] | None = None
        self._gathered = 0

    def gathered(self, workers: int) -> None:
        """Workers have come together; the person is told where it was not for the first time."""
        self._gathered += 1
        if self._gathered > 1:
            self.tell(
                "warn",
                "workers died, or others may be had: training goes on from the newest checkpoint with "
                f"{workers} worker{'s' if workers > 1 else ''}",
            )

    def seen(self, samples: int, waiting: float) -> None:
        self._seen = samples, waiting

    def loss(self, value: float) -> None:
        self._loss = value

    def tell(self, kind: str, line: str) -> None:
        if (kind, line) not in self._lines:  # all workers may warn of the same at once
            self._lines.append((kind, line))

    def give_up(self, kind: str, line: str) -> None:
        if self._given_up is None:
            self._given_up = kind, line

    def given_up(self) -> tuple[str, str] | None:
        return self._given_up

    def read(self) -> tuple[tuple[int, float], float | None, list[tuple[str, str]]]:
        """How far they are, the loss and the lines since the last call."""
        lines, self._lines = self._lines, []
        loss, self._loss = self._loss, None
        return self._seen, loss, lines


@contextmanager
def _board(listener: Listener) -> Iterator[Any]:
    """A board on the driver's own node, which a dying worker's node does not take with it; a thread reads it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # added by ray.remote
    stop = threading.Event()

    def read() -> None:
        (samples, waiting), loss, lines = ray.get(board.read.remote())
        if samples:
            listener.seen(samples, waiting)
        if loss is not None:
            listener.loss(loss)
        for kind, line in lines:
            (listener.warn if kind == "warn" else listener.epoch)(line)

    def watch() -> None:
        while not stop.wait(LOOK):
            with suppress(ray.exceptions.RayError):  # a look that fails is made up for by the next one
                read()

    thread = threading.Thread(target=watch, name="board", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        read()
        ray.kill(board)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Keep Ctrl-C what it is elsewhere: Ray Train puts its own handler in place, which exits, and leaves it there."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised, without the trace of Ray's own layers."""
    failures = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else repr(cause)
