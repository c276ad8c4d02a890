"""train: MIBF-Net data-parallel over 1..n workers of Ray Train, gloo on CPUs, NCCL on GPUs; or in this process, with none.

The loop is that of `jobs.loop`. Ray Train brings the workers together, restarts them when one dies, with more or fewer of
them if it may, and each goes on from the newest checkpoint. Checkpoints are not handed to Ray: written by our own door to
storage they are checked when read, an object store that is away for a while is waited for, and trainings with and without
Ray go on from each other's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from dask.system import CPU_COUNT

from jobs import cluster
from jobs.as_run import keep_training
from jobs.config import Config, Select
from jobs.environment import environment, versions
from jobs.loop import Place, Settings, run, steps_of
from jobs.meters import TrainMeters, train_meters
from jobs.progress import TrainingBar, counted, say, training_bar, warn
from jobs.seeds import spread, told
from jobs.stages import Outcome, StageError, begin, imported, read_manifest
from jobs.tracking import check_mlflow
from jobs.workspace import Workspace
from mibf.bundle import Bundle
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.objective import class_weights
from mibf.precision import best_device, check_precision
from mibf.priors import Priors
from mibf.scaling import Scaling, scaling_from_json
from mibf.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from mibf.training import NonFiniteError
from pipeline import storage
from pipeline.batches import Position, ReadError, Sampler
from pipeline.checkpoints import Checkpoints
from pipeline.lease import Lease
from pipeline.order import expected_draws
from pipeline.patience import AwayError, patiently
from pipeline.store import PatchStore

#: What of `train` may change between an interruption and going on: where and with how much help, not what is computed.
FREE = (
    "workers",
    "max_workers",
    "threads",
    "failures",
    "checkpoint_steps",
    "log_steps",
    "mlflow",
    "seed",
    "seeds",
    "compile",
)


def train(config: Config, workspace: Workspace, fingerprint: str, lease: Lease, *, anew: bool = False) -> Outcome:
    """Train and write the bundle; `anew` throws the checkpoints of a training away that was not finished.

    Raises:
        InputError: there is nothing to train on, or not with this configuration.
        StageError: training stopped; what it left can be gone on with.
    """
    if not config.labelled:
        raise InputError(
            "no scene has `labels`, so that there is nothing to train on; give one scene some, or map with a model from "
            "elsewhere (map.model)."
        )
    _check_not_imported(workspace)
    stores = [PatchStore(workspace.store(scene.name), without=("test",)) for scene in config.scenes]
    spec = network_spec(config, stores[0])
    split = storage.read_json(workspace.split)
    _check_apart(workspace, split, spec.patch)
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    training = Sampler(stores, scaling, spec.patch, "train")
    _check_shared_out(config, training)
    identity = _identity(config, workspace, spec)
    _check_resumable(workspace, identity, anew=anew)
    mlflow = None if config.train.mlflow is None else check_mlflow(config.train.mlflow)
    share = _share(config)
    resumed = _begin_run(config, workspace, fingerprint, lease, identity, anew=anew)
    settings = settings_of(
        config,
        workspace,
        spec,
        training,
        threads=config.train.threads or share.cpus,
        identity=identity,
        fingerprint=fingerprint,
        mlflow=mlflow,
    )
    say(f"training on {share}, {config.train.precision}")
    steps = config.train.epochs * steps_of(config.train, config.sampling.rate, training.samples())
    total = len(config.train.every_seed) * steps * config.train.batch
    meters = train_meters(config)
    if config.train.workers == 0:
        _alone(settings, total, meters)
    else:
        _on_ray(settings, share, total, meters)
    waited = partial(patiently, tell=warn)  # an object store may be away at the end too
    results = {}
    for seed in config.train.every_seed:
        results[seed] = waited(workspace.result(seed), partial(storage.read_json, workspace.result(seed)))
    best = _best(config, results)
    origin = _origin(config, split, fingerprint, list(results))
    for seed, result in results.items():
        bundle = _bundle(settings, stores[0], scaling, seed, result, origin)
        if len(results) > 1:
            waited(workspace.seed_bundle(seed), partial(workspace.write_bundle, bundle, seed=seed))
        if seed == best:
            waited(workspace.bundle, partial(workspace.write_bundle, bundle))
    waited(workspace.bundle, partial(workspace.keep_seed_bundles, results if len(results) > 1 else ()))
    parameters = sum(p.numel() for p in MIBFNet(spec).parameters())
    figures = {"chosen": results[best]["chosen"], "parameters": parameters, "seeds": [*results.values()]}
    return Outcome(
        figures,
        [
            f"{parameters:,} parameters, {counted(len(spec.sources), 'sources')}, "
            f"{counted(results[best]['epochs'], 'epochs')}{' (resumed)' if resumed else ''}",
            *_lines(results, best, config.train.select),
        ],
        [workspace.bundle, workspace.metrics],
    )


def _check_not_imported(workspace: Workspace) -> None:
    """See that no model gives way that training could not bring back."""
    if imported(workspace):
        raise InputError(
            f"{workspace.bundle}: was read from a checkpoint of the authors, which training would overwrite. Train under "
            "another name, `--set run=NAME`; or if it is to go with the stores and configuration as they are now, run "
            "`mibf authors-to-bundle` again."
        )


def _check_apart(workspace: Workspace, split: Mapping[str, Any], patch: int) -> None:
    """See that the split as it was made keeps patches of this size in two subsets apart."""
    if split["method"] == "blocks" and split["buffer"] < patch - 1:
        raise InputError(
            f"{workspace.split}: the subsets lie {split['buffer']} pixels apart, and patches of {patch} pixels want "
            f"{patch - 1}, so that training sees no ground of the others; run `mibf prepare`, or set model.patch back."
        )


def _check_shared_out(config: Config, training: Sampler) -> None:
    """See that there is a whole batch, and a window for every worker to read."""
    samples, windows = training.samples(), training.windows()
    if config.train.batch > samples:
        raise InputError(
            f"train.batch is {config.train.batch}, more than the {samples} training samples there are; take a smaller one."
        )
    drawn = int(config.sampling.rate * samples)
    if config.train.batch > drawn:
        raise InputError(
            f"train.batch is {config.train.batch}, more than the {drawn} samples that an epoch draws: sampling.rate is "
            f"{config.sampling.rate:g}, and there are {samples} training samples. Take a smaller batch or a larger rate."
        )
    if config.train.most_workers > windows:
        raise InputError(
            f"train.workers is {config.train.most_workers}, yet the training samples lie in {windows} windows of the "
            f"stores, which workers read whole; take {windows} at the most."
        )


def network_spec(config: Config, store: PatchStore) -> NetworkSpec:
    """The network for a store's sources: the first source gets the paper's wide branch, the others narrow ones."""
    sources = []
    for position, source in enumerate(store.sources):
        if config.model.sources is not None and source.name not in config.model.sources:
            continue
        declared = config.scenes[0].sources[source.name].branch
        wide = position == 0 if declared is None else declared == "wide"
        sources.append(SourceSpec(source.name, source.bands, WIDE if wide else NARROW, source.scale))
    return NetworkSpec(tuple(sources), classes=len(store.classes), patch=config.model.patch, without=config.model.without)


def settings_of(
    config: Config,
    workspace: Workspace,
    spec: NetworkSpec,
    training: Sampler,
    *,
    threads: int,
    identity: dict[str, Any],
    fingerprint: str,
    mlflow: str | None = None,
) -> Settings:
    """What the loop is told of a configuration whose training samples are `training`."""
    counts, drawn = _shares(config, training)
    weights = _weights(config, drawn)
    return Settings(
        workspace=workspace,
        scenes=tuple(scene.name for scene in config.scenes),
        spec=spec,
        beta=config.model.beta,
        frequencies=config.sampling.frequencies,
        rate=config.sampling.rate,
        class_weights=None if config.train.class_weights is None else weights,
        priors=Priors.of(counts, (share * weight for share, weight in zip(drawn, weights, strict=True))),
        train=config.train,
        threads=threads,
        identity=identity,
        name=f"{config.name} {config.run}",
        parameters={"fingerprint": fingerprint, **config.model_dump(mode="json")},
        mlflow=mlflow,
    )


def _shares(config: Config, training: Sampler) -> tuple[list[int], list[float]]:
    """The training samples of each class, and its share of those that are drawn."""
    counts = training.counts()
    drawn = counts * expected_draws(counts, config.sampling.frequencies)
    return counts.tolist(), (drawn / drawn.sum()).tolist()


def _weights(config: Config, drawn: list[float]) -> tuple[float, ...]:
    """The weight of each class in the objective."""
    how = config.train.class_weights
    if isinstance(how, dict):
        positions = {c.name: position for position, c in enumerate(config.classes)}
        return class_weights(drawn, {positions[name]: weight for name, weight in how.items()})
    return class_weights(drawn, how)


def _identity(config: Config, workspace: Workspace, spec: NetworkSpec) -> dict[str, Any]:
    """What a training computes: where any of it differs, its checkpoints are another's."""
    prepared = read_manifest(workspace, "prepare")
    wanted = config.train.model_dump(mode="json")
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "data": None if prepared is None else prepared.fingerprint,
                "split": config.split.model_dump(mode="json"),
                "network": spec.to_json(),
                "model": {"beta": config.model.beta},
                "sampling": config.sampling.model_dump(mode="json"),
                "train": {key: value for key, value in wanted.items() if key not in FREE},
            }
        )
    )
    return found


def _check_resumable(workspace: Workspace, identity: dict[str, Any], *, anew: bool) -> None:
    """See that checkpoints of a training that was not finished are of this one.

    Raises:
        InputError: they are not; the message names what differs.
    """
    begun, _ = _begun(workspace)
    if anew or begun is None or begun == identity or storage.exists(workspace.manifest("train")):
        return
    folders = [storage.join(workspace.all_checkpoints, name) for name in storage.names(workspace.all_checkpoints)]
    if not any(Checkpoints(folder).positions() for folder in folders):
        return
    then, now = _flat(begun), _flat(identity)
    listed = "; ".join(
        f"{key} was {_shown(then.get(key))} and is {_shown(now.get(key))}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    )
    raise InputError(
        f"{workspace.run_folder}: holds checkpoints of a training that was not finished, and not of this one: {listed}. "
        "Set it back to go on with that one, train under another name (`--set run=NAME`), or throw its checkpoints away "
        "(`--anew`)."
    )


def _begun(workspace: Workspace) -> tuple[dict[str, Any] | None, list[int]]:
    """The identity of the training that was begun in a run's folder, and its seeds."""
    try:
        started = storage.read_json(workspace.started)
        return dict(started["identity"]), list(started["seeds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, []


def _flat(value: Any, above: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    if not isinstance(value, Mapping):
        return {above: value}
    return {k: v for key, below in value.items() for k, v in _flat(below, f"{above}.{key}" if above else str(key)).items()}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _share(config: Config) -> cluster.Share:
    """What a worker may take; a precision that it lacks is refused before anything is written."""
    if config.train.workers == 0:
        device = best_device()
        check_precision(device, config.train.precision)
        return cluster.Share(0, config.train.threads or CPU_COUNT, int(device.type == "cuda"))
    cluster.ensure(workers=config.train.workers)
    share = cluster.share(config.train.most_workers, fewest=config.train.workers)
    if share.gpus:
        from jobs.gang import check_gpu

        check_gpu(config.train.precision)
    else:
        check_precision(torch.device("cpu"), config.train.precision)
    return share


def _begin_run(
    config: Config, workspace: Workspace, fingerprint: str, lease: Lease, identity: dict[str, Any], *, anew: bool
) -> bool:
    """Make the run's folder; whether it holds checkpoints of this very training to go on from.

    That is one that was not finished, or one of other seeds: those that are done need not be done again.
    """
    begun, seeds = _begun(workspace)
    wanted = list(config.train.every_seed)
    finished = storage.exists(workspace.manifest("train")) and sorted(seeds) == sorted(wanted)
    begin(workspace, "train", lease)
    resumable = begun == identity and not finished and not anew
    if not resumable:
        storage.remove(workspace.all_checkpoints)
        storage.remove(workspace.metrics)
        storage.remove(workspace.step_metrics)
    storage.write_json(workspace.started, {"fingerprint": fingerprint, "identity": identity, "seeds": wanted})
    keep_training(config, workspace)
    storage.write_json(workspace.environment, environment(config, workspace))
    return resumable and storage.exists(workspace.all_checkpoints)


@dataclass(frozen=True)
class _Here:
    """The listener in this process."""

    bar: TrainingBar
    meters: TrainMeters

    def seen(self, samples: int, waiting: float) -> None:
        self.bar.seen(samples, waiting=waiting)
        self.meters.seen(samples, waiting)

    def loss(self, value: float) -> None:
        self.meters.loss(value)

    def epoch(self, line: str) -> None:
        self.bar.epoch(line)

    def warn(self, line: str) -> None:
        warn(line)


def _alone(settings: Settings, total: int, meters: TrainMeters) -> None:
    """Train in this process."""
    with training_bar("train", total) as shown:
        try:
            run(settings, Place(0, 1, best_device()), _Here(shown, meters))
        except (NonFiniteError, ReadError, AwayError) as error:
            raise StageError(f"training stopped: {error}") from error


def _on_ray(settings: Settings, share: cluster.Share, total: int, meters: TrainMeters) -> None:
    """Train on Ray Train, which is imported only here."""
    from jobs.gang import train_on_ray

    with training_bar("train", total) as shown:
        train_on_ray(settings, share, _Here(shown, meters))


def _best(config: Config, results: Mapping[int, dict[str, Any]]) -> int:
    """The seed whose model is taken: the best on validation; the first one where nothing was validated."""
    select = config.train.select
    figure = f"validation_{'overall_accuracy' if select == 'last' else select}"
    sign = -1.0 if select == "loss" else 1.0
    judged = {seed: result["chosen"].get(figure) for seed, result in results.items()}
    known = {seed: sign * value for seed, value in judged.items() if value is not None}
    return max(known, key=lambda seed: known[seed]) if known else next(iter(results))


def _bundle(
    settings: Settings, store: PatchStore, scaling: Scaling, seed: int, result: dict[str, Any], origin: dict[str, Any]
) -> Bundle:
    """The model of one seed's chosen epoch."""
    chosen = dict(result["chosen"])
    if "calibrated" in result:
        chosen["calibration"] = {key: result["calibrated"]["trained"][key] for key in ("ece", "brier", "log_loss")}
    checkpoints = Checkpoints(settings.workspace.checkpoints(seed))
    checkpoint = patiently(checkpoints.url, partial(checkpoints.read, Position(chosen["epoch"], 0)), tell=warn)
    return Bundle(
        spec=settings.spec,
        weights=checkpoint.judged,
        scaling={source.name: scaling[source.name] for source in settings.spec.sources},
        classes=store.classes,
        temperature=chosen.get("temperature", 1.0),
        priors=settings.priors,
        provenance={**origin, "seed": seed, "chosen": chosen},
    )


def _origin(config: Config, split: Mapping[str, Any], fingerprint: str, seeds: list[int]) -> dict[str, Any]:
    """What a bundle says of where it comes from, the same for all seeds."""
    return {
        "fingerprint": fingerprint,
        "run": config.run,
        "seeds": seeds,
        "scenes": [scene.name for scene in config.scenes],
        "split": {key: split[key] for key in ("method", "buffer")},
        "hyperparameters": {
            "beta": config.model.beta,
            **config.sampling.model_dump(mode="json"),
            **{key: value for key, value in config.train.model_dump(mode="json").items() if key not in FREE},
        },
        "versions": versions(),
    }


def _lines(results: Mapping[int, dict[str, Any]], best: int, select: Select) -> list[str]:
    """What came of the seeds, for people."""
    chosen = results[best]["chosen"]
    of_seed = f"seed {best}, " if len(results) > 1 else ""
    if "validation_overall_accuracy" not in chosen:
        return [
            f"{of_seed}epoch {chosen['epoch']}, the last; there was nothing to validate on: confidences are not calibrated"
        ]
    figures = results[best]["calibrated"]["trained"]
    number = chosen["epoch"]
    epoch = f"epoch {number}, the last, on validation" if select == "last" else f"best epoch {number} by validation"
    lines = [
        f"{of_seed}{epoch}: {told(figures)}",
        f"temperature {chosen['temperature']:.2f}: expected calibration error {figures['ece']:.3f} "
        f"(without it {results[best]['uncalibrated']['ece']:.3f}), Brier score {figures['brier']:.3f}",
    ]
    if len(results) > 1:
        lines.append(f"{len(results)} seeds on validation: {spread([r['calibrated']['trained'] for r in results.values()])}")
    return lines
