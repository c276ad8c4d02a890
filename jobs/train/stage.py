"""Stage `train`: train networks, classifiers of pixel features or a blend of both, and write the model as a bundle.

Networks are trained on 1..n Ray Train workers (gloo on CPUs, NCCL on GPUs), or in this process with 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jobs.config.config import Config
from jobs.models.auto import plan_training
from jobs.models.members import TrialBlend, combine, describe_members, fit_to_validation, measure, with_figures
from jobs.models.pixelwise import FittedClassifier, fit_classifier, read_pixel_samples, trained_classifiers
from jobs.models.prediction_sets import describe, with_prediction_sets
from jobs.runtime.progress import pluralize, warn
from jobs.runtime.worker_resources import WorkerResources
from jobs.train.networks import TrainedNetworks, share_resources, train_networks
from jobs.train.resume import RESUME_SAFE_KEYS, begin_run, check_resumable, training_identity
from jobs.train.settings import Settings, make_settings, network_spec
from jobs.train.tracking.mlflow import check_mlflow
from jobs.workflow.fingerprint import imported_checkpoint
from jobs.workflow.manifest import StageResult
from jobs.workflow.provenance import versions
from jobs.workflow.seed_summary import format_accuracies
from jobs.workflow.split_caveat import split_caveat
from jobs.workflow.stores import open_stores
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.errors import InputError
from mibf.network.spec import ONE_SOURCE
from mibf.normalization import Scaling, scaling_from_json
from pipeline.classifiers.pixel_features import NEIGHBORHOOD
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.io.retry import call_with_retry
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore


def train(config: Config, workspace: Workspace, fingerprint: str, lease: Lease, *, restart: bool = False) -> StageResult:
    """Train and write the bundle; `restart` discards the checkpoints of an unfinished training run.

    Raises:
        InputError: there is nothing to train on, or this configuration cannot be trained.
        StageError: training stopped; the run can be resumed.
        LeaseLostError: the workspace lease was lost; nothing is overwritten from then on.
    """
    if not config.trainable:
        raise InputError(
            "no scene has `labels`, or the split gives all that have to other subsets, so there is nothing to train on; add "
            "labels to at least one training scene, or map with an existing model (map.model)."
        )
    _check_not_imported(workspace)
    stores = open_stores(workspace, (scene.name for scene in config.scenes), without=("test",), report=warn)
    split = storage.read_json(workspace.split)
    _check_buffer(workspace, split, config.model.patch)
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    plan = None
    if config.train.recipe == "auto" and config.model.kind == "mibf":
        spec = network_spec(config, stores[0])
        plan = plan_training(config, workspace, stores, scaling, spec, fingerprint=fingerprint, restart=restart, lease=lease)
        config = plan.config
    settings, share, resumed = _begin(config, workspace, stores, scaling, fingerprint, lease, restart=restart)
    origin = _origin(config, split, fingerprint) | _band_names(stores)
    networks = None
    if share is not None:
        networks = train_networks(config, settings, share, store=stores[0], scaling=scaling, origin=origin)
    classifiers, first_seed = _fit_classifiers(config, settings, stores, scaling), config.train.every_seed[0]
    model = _model(config, settings, stores, scaling, origin, networks, classifiers, None if plan is None else plan.mixture)
    lines = [ONE_SOURCE] if model.networks and len(model.spec.sources) == 1 else []
    lines += [] if plan is None else plan.lines
    lines += _reach_notes(split) if classifiers else []
    lines += [] if networks is None else networks.lines(config.train.select)
    seeds = [] if networks is None else [*networks.results.values()]
    if model.single is None:
        measured = measure(model, Sampler(stores, model.scaling, model.spec.patch, "validation"), beta=config.model.beta)
        model = with_figures(model, measured)
        lines += _model_lines(model, None if measured is None else measured.calibrated["trained"])
        if networks is None and measured is not None:
            seeds = [{"seed": first_seed, "chosen": model.provenance["chosen"], "calibrated": measured.calibrated}]
    model = with_prediction_sets(config, model, stores)
    if model.prediction_sets is not None:
        lines += [describe(model.prediction_sets)]
    _write_bundles(workspace, model, {} if networks is None or config.train.ensemble else networks.bundles, lease)
    return StageResult(
        {"chosen": model.provenance["chosen"], "parameters": model.parameters, "seeds": seeds},
        [_first_line(model, networks, classifiers, resumed=resumed), *lines],
        [workspace.bundle, *([workspace.metrics] if networks else [])],
    )


def _begin(
    config: Config,
    workspace: Workspace,
    stores: Sequence[PatchStore],
    scaling: Scaling,
    fingerprint: str,
    lease: Lease,
    *,
    restart: bool,
) -> tuple[Settings, WorkerResources | None, bool]:
    """Check the configuration and begin the run: its settings, the resources of its workers, and whether it is resumed.

    Only networks have workers.
    """
    spec = network_spec(config, stores[0])
    training = Sampler(stores, scaling, spec.patch, "train")
    is_network = config.model.kind == "mibf"
    if is_network:
        _check_shared_out(config, training)
    identity = training_identity(config, workspace, spec)
    check_resumable(workspace, identity, restart=restart)
    mlflow = None if config.train.mlflow is None else check_mlflow(config.train.mlflow)
    share = share_resources(config) if is_network else None
    resumed = begin_run(config, workspace, fingerprint, lease, identity, restart=restart)
    settings = make_settings(
        config,
        workspace,
        spec,
        training,
        threads=config.train.threads or (1 if share is None else share.cpus),
        identity=identity,
        lease=lease if config.train.workers == 0 else lease.for_workers(),
        fingerprint=fingerprint,
        mlflow=mlflow,
    )
    return settings, share, resumed


def _fit_classifiers(
    config: Config, settings: Settings, stores: Sequence[PatchStore], scaling: Scaling
) -> list[FittedClassifier]:
    """Fit the classifiers of pixel features that the configuration asks for."""
    kinds, seed = trained_classifiers(config), config.train.every_seed[0]
    if not kinds:
        return []
    samples = read_pixel_samples(stores, settings.spec, scaling, seed=seed)
    return [
        fit_classifier(
            kind,
            samples,
            settings.spec,
            settings.priors,
            seed=seed,
            threads=config.train.threads,
            penalty=config.model.penalty,
        )
        for kind in kinds
    ]


def _model(
    config: Config,
    settings: Settings,
    stores: Sequence[PatchStore],
    scaling: Scaling,
    origin: dict[str, Any],
    networks: TrainedNetworks | None,
    classifiers: list[FittedClassifier],
    mixture: TrialBlend | None,
) -> Bundle:
    """Build the model: the best seed's network, a classifier, or several members whose shares fit validation pixels."""
    seed = config.train.every_seed[0]
    if networks is None:
        only = classifiers[0]
        if len(classifiers) == 1 and mixture is not None:
            only = only.with_temperature_of_trials(mixture.blend.temperatures[-1], weight=mixture.weight)
        best = Bundle(
            spec=settings.spec,
            members=(only.member,),
            scaling={source.name: scaling[source.name] for source in settings.spec.sources},
            classes=stores[0].classes,
            priors=settings.priors,
            provenance={**origin, "seed": seed, "seeds": [seed], "chosen": only.chosen},
        )
        members = []
    else:
        best = networks.bundles[networks.best]
        taken = networks.bundles.values() if config.train.ensemble else [best]
        members = [member for bundle in taken for member in bundle.networks]
    if len(members) + len(classifiers) == 1:
        return best
    combined = combine(best, members, [each.member for each in classifiers])
    combined = fit_to_validation(combined, stores, seed=seed, trials=mixture)
    changed: dict[str, Any] = {}
    if networks is not None and config.train.ensemble:
        changed = {"seeds": [best.provenance["seed"]], "member_seeds": [*networks.bundles]}
    if not combined.networks:  # they got no share
        first = combined.members[0]
        chosen = next(each for each in classifiers if each.member.kind == first.kind).chosen
        changed["chosen"] = chosen | ({"temperature": first.temperature} if "temperature" in chosen else {})
    return replace(combined, provenance={**combined.provenance, **changed})


def _first_line(
    model: Bundle, networks: TrainedNetworks | None, classifiers: list[FittedClassifier], *, resumed: bool
) -> str:
    """Say what was trained."""
    sources = pluralize(len(model.spec.sources), "sources")
    if networks is None or not model.networks:
        dropped = "" if networks is None else "; networks were trained, too, but got no share"
        described = " and ".join(each.description for each in classifiers)
        return (
            f"{described}, {sources}, {classifiers[0].samples:,} of {classifiers[0].available:,} training samples{dropped}"
        )
    epochs = pluralize(networks.results[networks.best]["epochs"], "epochs")
    return f"{model.parameters:,} parameters, {sources}, {epochs}{' (resumed)' if resumed else ''}"


def _model_lines(model: Bundle, figures: Mapping[str, Any] | None) -> list[str]:
    """Summarize a model that is not a single network."""
    lines = [describe_members(model)] if len(model.members) > 1 else []
    if figures is None:
        return [*lines, "there were no validation samples: confidences are not calibrated"]
    return [
        *lines,
        f"the model on validation: {format_accuracies(figures)}, expected calibration error {figures['ece']:.3f}, "
        f"Brier score {figures['brier']:.3f}",
    ]


def _reach_notes(split: Mapping[str, Any]) -> list[str]:
    """Say if pixel features reach farther than the split's buffer keeps subsets apart."""
    needed = NEIGHBORHOOD - 1
    buffer = split["buffer"]  # None where the user's raster is the split
    if split["method"] == "random" or buffer is None or buffer >= needed:
        return []
    return [
        f"note: features are of {NEIGHBORHOOD} x {NEIGHBORHOOD} pixels, so with a buffer of {buffer} pixels some "
        f"pixels are seen in training and in testing; set split.buffer to {needed}"
    ]


def _write_bundles(workspace: Workspace, model: Bundle, by_seed: Mapping[int, Bundle], lease: Lease) -> None:
    """Write the model and, if there are several seeds, the network of each; remove those of other seeds."""
    kept: Iterable[int] = by_seed if len(by_seed) > 1 else ()
    for seed in kept:
        write = partial(workspace.write_bundle, by_seed[seed], lease, seed=seed)
        call_with_retry(workspace.seed_bundle(seed), write, report=warn)
    call_with_retry(workspace.bundle, partial(workspace.write_bundle, model, lease), report=warn)
    call_with_retry(workspace.bundle, partial(workspace.keep_seed_bundles, kept, lease), report=warn)


def _check_not_imported(workspace: Workspace) -> None:
    """Check that training does not overwrite an imported model, which it could not reproduce."""
    if imported_checkpoint(workspace):
        raise InputError(
            f"{workspace.bundle}: was imported from a reference checkpoint, and training would overwrite it. Train under "
            "another run name (`--set run=NAME`), or run `mibf import-checkpoint` again to import the checkpoint for the "
            "current stores and configuration."
        )


def _check_buffer(workspace: Workspace, split: Mapping[str, Any], patch: int) -> None:
    """Check that the buffer of the stored split is wide enough for this patch size."""
    if split["method"] in ("blocks", "scenes") and split["buffer"] < patch - 1:
        raise InputError(
            f"{workspace.split}: the buffer between subsets is {split['buffer']} pixels, but patches of {patch} pixels need "
            f"{patch - 1} to keep training off the ground of other subsets; run `mibf prepare`, or reset model.patch."
        )


def _check_shared_out(config: Config, training: Sampler) -> None:
    """Check that there is at least one full batch, and one window to read for every worker."""
    samples, windows = training.samples(), training.windows()
    if config.train.batch_size > samples:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, but there are only {samples} training samples; choose a "
            "smaller batch."
        )
    drawn = int(config.sampling.epoch_fraction * samples)
    if config.train.batch_size > drawn:
        raise InputError(
            f"train.batch_size is {config.train.batch_size}, but an epoch has only {drawn} samples: "
            "sampling.epoch_fraction is "
            f"{config.sampling.epoch_fraction:g}, and there are {samples} training samples. Lower train.batch_size or "
            "raise sampling.epoch_fraction."
        )
    if config.train.most_workers > windows:
        raise InputError(
            f"train.workers is {config.train.most_workers}, but the training samples are in {windows} windows of the "
            f"stores, and each window is read by one worker; use at most {windows} workers."
        )


def _band_names(stores: Sequence[PatchStore]) -> dict[str, Any]:
    """The names of the bands of the sources that have names, for the provenance; nothing if none has."""
    named = {s.name: list(s.band_names) for store in stores for s in store.sources if s.band_names}
    return {"band_names": named} if named else {}


def _origin(config: Config, split: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """The provenance that the bundles of all seeds share."""
    return {
        "fingerprint": fingerprint,
        "run": config.run,
        "seeds": [*config.train.every_seed],
        "scenes": [scene.name for scene in config.scenes],
        "split": {"method": split["method"], "buffer": split["buffer"]}
        | ({"caveat": split_caveat(split)} if "source_overlap" in split else {}),
        "hyperparameters": {
            "beta": config.model.beta,
            **config.sampling.model_dump(mode="json"),
            **{key: value for key, value in config.train.model_dump(mode="json").items() if key not in RESUME_SAFE_KEYS},
        },
        "versions": versions(),
    }
