"""train: MIBF-Net on Ray Train, data-parallel over 1..n workers; gloo on CPUs, NCCL on GPUs.

Every epoch leaves a checkpoint and a line of metrics; the epoch with the best validation overall accuracy
becomes the bundle. The same run, interrupted, goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import yaml

from jobs import cluster
from jobs.config import Config
from jobs.progress import bar, say
from jobs.stages import Outcome, StageError, begin, imported
from jobs.workspace import Workspace
from mibf.bundle import Bundle
from mibf.calibration import TemperatureFit
from mibf.checkpoint import Checkpoint
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.optim import make_optimiser
from mibf.precision import place
from mibf.scaling import scaling_from_json
from mibf.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from mibf.training import Figures, inner, train_epoch, validate
from pipeline import storage
from pipeline.batches import Position, Sampler
from pipeline.store import PatchStore

CHECKPOINT_FILE = "checkpoint.pt"
SELECTED_BY = "validation_overall_accuracy"


def train(config: Config, workspace: Workspace, fingerprint: str) -> Outcome:
    """Train and write the bundle."""
    if not config.labelled:
        raise InputError("no scene has `labels`, so that there is nothing to train on; give one scene some.")
    _check_not_imported(workspace)
    stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
    spec = network_spec(config, stores[0])
    workers = config.train.workers
    cluster.ensure(workers=workers)
    resumed = _begin_run(config, workspace, fingerprint)
    share = cluster.share(workers)
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    per_epoch = sum(
        Sampler(stores, scaling, config.model.patch, subset, workers=workers).samples() for subset in ("train", "validation")
    )
    say(f"training on {share}, {config.train.precision}")
    with _progress(config.train.epochs * per_epoch) as board:
        settings = {
            "workspace": vars(workspace),
            "scenes": [scene.name for scene in config.scenes],
            "spec": spec.to_json(),
            "beta": config.model.beta,
            "frequencies": config.sampling.frequencies,
            "train": config.train.model_dump(),
            "threads": share.cpus,
            "board": board,
        }
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=share.gpus > 0, resources_per_worker=share.resources
            ),
            run_config=ray.train.RunConfig(
                name="checkpoints",
                storage_path=workspace.run_folder,
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=2, checkpoint_score_attribute=SELECTED_BY, checkpoint_score_order="max"
                ),
            ),
        )
        with _interruptible():
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise StageError(f"training stopped: {_cause(error)}") from error
    best = result.get_best_checkpoint(SELECTED_BY, "max")
    if best is None:
        raise StageError("training ended without a checkpoint; remove the run's checkpoints and train again.")
    with best.as_directory() as folder:
        checkpoint = Checkpoint.from_bytes((Path(folder) / CHECKPOINT_FILE).read_bytes())
    chosen = checkpoint.history[-1]
    parameters = sum(p.numel() for p in MIBFNet(spec).parameters())
    bundle = Bundle(
        spec=spec,
        weights=checkpoint.network,
        scaling=scaling,
        classes=stores[0].classes,
        temperature=chosen["temperature"],
        provenance={"fingerprint": fingerprint, "run": config.run, "chosen": chosen, "versions": _versions()},
    )
    workspace.write_bundle(bundle)
    lines = [
        f"{parameters:,} parameters, "
        f"{len(spec.sources)} sources, {config.train.epochs} epochs{' (resumed)' if resumed else ''}",
        f"best epoch {chosen['epoch']} by validation: overall accuracy {chosen[SELECTED_BY]:.3f}, "
        f"kappa {chosen['validation_kappa']:.3f}; temperature {chosen['temperature']:.2f}",
    ]
    return Outcome({"chosen": chosen, "parameters": parameters}, lines, [workspace.bundle, workspace.metrics])


def _check_not_imported(workspace: Workspace) -> None:
    """See that no model gives way that training could not bring back."""
    if imported(workspace):
        raise InputError(
            f"{workspace.bundle}: was read from a checkpoint of the authors, which training would overwrite. Train under "
            "another name, `--set run=NAME`; or if it is to go with the stores and configuration as they are now, run "
            "`mibf authors-to-bundle` again."
        )


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


def network_spec(config: Config, store: PatchStore) -> NetworkSpec:
    """The network for a store's sources: the first source gets the paper's wide branch, the others narrow ones."""
    sources = []
    for position, source in enumerate(store.sources):
        declared = config.scenes[0].sources[source.name].branch
        wide = position == 0 if declared is None else declared == "wide"
        sources.append(SourceSpec(source.name, source.bands, WIDE if wide else NARROW, source.scale))
    return NetworkSpec(tuple(sources), classes=len(store.classes), patch=config.model.patch)


def _begin_run(config: Config, workspace: Workspace, fingerprint: str) -> bool:
    """Make the run's folder; whether it holds checkpoints of this very training that was not finished."""
    try:
        started = storage.read_json(workspace.started)
    except (FileNotFoundError, ValueError):
        started = None
    finished = storage.exists(workspace.manifest("train"))
    begin(workspace, "train")
    resumable = started == {"fingerprint": fingerprint} and not finished
    if not resumable:
        storage.remove(storage.join(workspace.run_folder, "checkpoints"))
        storage.remove(workspace.metrics)
    storage.write_json(workspace.started, {"fingerprint": fingerprint})
    as_run = storage.without_queries(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    storage.write_bytes(storage.join(workspace.run_folder, "config.yaml"), as_run.encode())
    storage.write_json(
        storage.join(workspace.run_folder, "environment.json"),
        {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "cpus": os.cpu_count(),
            "packages": _versions(),
        },
    )
    return resumable and storage.exists(workspace.metrics)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("mibf", "torch", "ray", "dask", "zarr", "numpy", "rasterio")}


def _worker(settings: dict[str, Any]) -> None:
    """What each worker runs; Ray Train has joined them into one process group."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    wanted = settings["train"]
    torch.set_num_threads(settings["threads"])
    workspace = Workspace(**settings["workspace"])
    spec = NetworkSpec.from_json(settings["spec"])
    stores = [PatchStore(workspace.store(name)) for name in settings["scenes"]]
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    training = Sampler(
        stores,
        scaling,
        spec.patch,
        "train",
        rank=rank,
        workers=workers,
        frequencies=settings["frequencies"],
        augment=wanted["augment"],
    )
    validation = Sampler(stores, scaling, spec.patch, "validation", rank=rank, workers=workers)
    batch = wanted["batch"] // workers

    torch.backends.cudnn.deterministic = True  # one seed, one result
    torch.manual_seed(wanted["seed"])  # the same first weights on every worker
    network = place(MIBFNet(spec), ray.train.torch.get_device())
    if wanted["compile"]:
        network.compile()
    # Batch norm's running statistics are averaged once an epoch, not sent by worker 0 at every step.
    model = ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})
    steps = training.steps(batch)
    optimiser, schedule = make_optimiser(
        model.parameters(),
        rate=wanted["rate"],
        weight_decay=wanted["weight_decay"],
        steps=steps * wanted["epochs"],
        warmup=round(wanted["warmup"] * steps * wanted["epochs"]),
    )
    history: list[dict[str, Any]] = []
    before = ray.train.get_checkpoint()
    if before is not None:
        with before.as_directory() as folder:
            checkpoint = Checkpoint.from_bytes((Path(folder) / CHECKPOINT_FILE).read_bytes())
        checkpoint.restore(inner(model), optimiser, schedule)
        history = list(checkpoint.history)
    begun = Position(epoch=len(history), step=0)  # a checkpoint is of whole epochs

    told, waiting = time.monotonic(), 0

    def advance(samples: int) -> None:
        nonlocal told, waiting
        waiting += samples * workers
        if rank == 0 and time.monotonic() - told > 1:  # the others are as far, near enough
            settings["board"].add.remote(waiting)
            told, waiting = time.monotonic(), 0

    for epoch in range(begun.epoch, wanted["epochs"]):
        # Draws of noise and code depend on seed, epoch and rank alone, so that resuming changes none.
        torch.manual_seed(int(np.random.SeedSequence([wanted["seed"], epoch, rank]).generate_state(1)[0]))
        started = time.monotonic()
        trained = train_epoch(
            model,
            training.shuffled(
                batch=batch, seed=wanted["seed"], epoch=epoch, start=begun.step if epoch == begun.epoch else 0
            ),
            optimiser=optimiser,
            schedule=schedule,
            beta=settings["beta"],
            precision=wanted["precision"],
            after_step=advance,
        )
        between = time.monotonic()
        calibration = TemperatureFit(next(model.parameters()).device)
        checked = validate(
            inner(model),
            validation.in_order(batch=1024),
            beta=settings["beta"],
            precision=wanted["precision"],
            calibration=calibration,
            after_step=advance,
        )
        ended = time.monotonic()
        figures = {
            "epoch": epoch + 1,
            **_named("train", trained),
            **_named("validation", checked),
            "temperature": calibration.temperature(),
            "train_seconds": round(between - started, 2),
            "validation_seconds": round(ended - between, 2),
        }
        history = [*history, figures]
        with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
            saved = None
            if rank == 0:
                content = Checkpoint.of(inner(model), optimiser, schedule, history).to_bytes()
                (Path(folder) / CHECKPOINT_FILE).write_bytes(content)
                saved = ray.train.Checkpoint.from_directory(folder)
                lines = "".join(json.dumps(storage.without_nan(line)) + "\n" for line in history)
                storage.write_bytes(workspace.metrics, lines.encode())
            ray.train.report(figures, checkpoint=saved)


def _named(subset: str, figures: Figures) -> dict[str, float]:
    confusion = figures.confusion
    return {
        f"{subset}_loss": figures.loss,
        f"{subset}_cross_entropy": figures.cross_entropy,
        f"{subset}_rate": figures.rate,
        f"{subset}_overall_accuracy": confusion.overall_accuracy,
        f"{subset}_average_accuracy": confusion.average_accuracy,
        f"{subset}_kappa": confusion.kappa,
    }


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised, without the trace of Ray's own layers."""
    failures = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else repr(cause)


@ray.remote(num_cpus=0)
class _Board:
    """Counts the samples that workers have seen, for the driver's bar."""

    def __init__(self) -> None:
        self.samples = 0

    def add(self, samples: int) -> None:
        self.samples += samples

    def read(self) -> int:
        return self.samples


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A board for the workers, drawn as a bar by a thread while the block runs."""
    board = _Board.remote()  # type: ignore[attr-defined]  # added by ray.remote
    stop = threading.Event()

    def draw() -> None:
        with bar("train and validate", total, unit="samples") as advance:
            drawn = 0
            while not stop.wait(1.0):
                seen = ray.get(board.read.remote())
                advance(seen - drawn)
                drawn = seen
            advance(ray.get(board.read.remote()) - drawn)

    thread = threading.Thread(target=draw, name="progress", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)
