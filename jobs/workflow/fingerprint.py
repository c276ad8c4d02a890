"""Fingerprints: hashes of everything that the result of a stage depends on."""

from __future__ import annotations

from typing import Any

import mibf.bundle
import mibf.metrics
import mibf.training
import pipeline.maps
import pipeline.store
from jobs.config.config import Config
from jobs.config.resolve import scene_input_urls
from jobs.runtime.version import pinned_versions
from jobs.workflow.errors import naming_scene
from jobs.workflow.found_items import found_files, with_items
from jobs.workflow.manifest import StageName, dependencies, read_manifest
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import MODEL
from mibf.class_priors import CORRECTION_VERSION
from pipeline.io import checksums, model_bundle, storage
from pipeline.io.sidecars import Listings
from pipeline.maps.products import SET_PRODUCTS
from pipeline.store.scene_quantiles import MATCHING_VERSION
from pipeline.stratification.assign import SEEDED_ASSIGNMENT_VERSION

#: The algorithm version of each stage, kept next to the code that computes its values. Two are kept here: that of baselines,
#: whose code is above this folder, and that of the report, which is its layout's.
ALGORITHM_VERSIONS: dict[StageName, int] = {
    "prepare": pipeline.store.ALGORITHM_VERSION,
    "train": mibf.training.ALGORITHM_VERSION,
    "evaluate": mibf.metrics.ALGORITHM_VERSION,
    "baseline": 1,
    "map": pipeline.maps.ALGORITHM_VERSION,
    "report": 2,
}
#: Keys of `map` that do not change the map.
MAP_KEYS_WITHOUT_EFFECT = (
    *("workers", "readers", "attempts", "backoff", "drift", "drift_distance", "page"),
    *("license", "license_url", "providers"),
)
#: Keys of `stac.search` that do not change what is found.
SEARCH_KEYS_WITHOUT_EFFECT = ("max_items",)
#: Keys of `train` that do not change the result.
TRAIN_KEYS_WITHOUT_EFFECT = ("recipe", "max_failures", "checkpoint_steps", "log_steps", "mlflow")


def imported_checkpoint(workspace: Workspace) -> str | None:
    """Return the SHA-256 of the reference checkpoint that a run's model was imported from; None if it was trained."""
    manifest = read_manifest(workspace, "train")
    return None if manifest is None else manifest.figures.get("authors", {}).get("sha256")


def fingerprint(config: Config, stage: StageName, *, checkpoint: str | None = None) -> str:
    """Hash everything that a stage's result depends on: inputs, configuration, algorithm version, earlier results.

    Earlier results are the existing ones, current or not: when one is remade, everything derived from the previous
    one becomes stale. An imported model depends on its checkpoint instead of the training configuration: the
    checkpoint with the SHA-256 `checkpoint`, or the one from which the run's model was imported.

    Raises:
        InputError: an input file is missing, or a source was not searched yet (`NotSearchedError`).
    """
    # Without defaults: a new key that changes nothing unless it is set leaves fingerprints as they are.
    values = config.model_dump(mode="json", exclude_defaults=True)
    workspace = Workspace.of(config)
    parts: dict[str, Any] = {"stage": stage, "algorithm": ALGORITHM_VERSIONS[stage]}
    earlier = [read_manifest(workspace, needed) for needed in dependencies(config, stage)]
    if config.stale_on_upgrade and stage != "report":
        parts["libraries"] = pinned_versions()
    parts["needs"] = [manifest and manifest.identity for manifest in earlier]
    if stage == "prepare":
        parts["configuration"] = [
            _as_stored(values["scenes"]),
            values.get("classes"),
            values.get("split"),
            config.model.patch,
            config.prepare.shard,
        ]
        if config.split.method != "raster" and config.split_block is not None and config.split.seed:
            parts["assignment"] = SEEDED_ASSIGNMENT_VERSION
        if config.prepare.histogram_matching:
            parts["histogram_matching"] = [MATCHING_VERSION, sorted(config.prepare.histogram_matching)]
        found = found_files(config)
        if found:  # by content: a workspace may be copied
            parts["items"] = {"/".join(key): _content(url) for key, url in found.items()}
        parts["inputs"] = _input_fingerprints(with_items(config, found), without=frozenset(found.values()))
    elif stage == "train" and (checkpoint := checkpoint or imported_checkpoint(workspace)):
        parts["algorithm"] = ["import", mibf.bundle.ALGORITHM_VERSION]
        parts["configuration"] = [checkpoint, config.model.patch]
    elif stage == "train":
        branches = [source.branch for source in config.scenes[0].sources.values()]
        wanted = {k: v for k, v in values.get("train", {}).items() if k not in TRAIN_KEYS_WITHOUT_EFFECT}
        parts["configuration"] = [values.get("sampling"), values.get("model"), wanted, branches]
        if config.train.recipe == "auto":
            parts["recipe"] = "auto"  # the other recipes are nothing but the keys that they set
    elif stage == "evaluate":
        parts["configuration"] = values.get("prediction")
    elif stage == "baseline":
        limits = {k: v for k, v in values.get("baselines", {}).items() if k != "enabled"}
        parts["configuration"] = [limits, _without_sets(values.get("prediction")), mibf.metrics.ALGORITHM_VERSION]
    elif stage == "map":
        changing = {k: v for k, v in values.get("map", {}).items() if k not in MAP_KEYS_WITHOUT_EFFECT}
        parts["configuration"] = [changing, _of_map(values, config), [scene.datetime for scene in config.scenes]]
        if config.prediction.priors != "trained":
            parts["correction"] = CORRECTION_VERSION
        if config.map.model is not None:
            model = model_bundle.bundle_file(model_bundle.bundle_folder(config.map.model), MODEL)
            parts["model"] = checksums.input_fingerprint(model)
    elif stage == "report":
        parts["configuration"] = [config.name, config.run]  # one page for all runs; it shows the last run
    return checksums.digest(parts)


def _input_fingerprints(config: Config, *, without: frozenset[str]) -> dict[str, str]:
    """The fingerprint of each input file, without some; an error names the scene if there are several."""
    listings = Listings()
    found: dict[str, str] = {}
    for number, scene in enumerate(config.scenes, 1):
        with naming_scene(scene.name, number, of=len(config.scenes)):
            urls = [url for url in scene_input_urls(scene) if url not in without and url not in found]
            found |= checksums.input_fingerprints(urls, listings)
    if config.split.method == "raster":
        found |= checksums.input_fingerprints([config.split.url], listings)
    return found


def _of_map(values: dict[str, Any], config: Config) -> dict[str, Any] | None:
    """What a map depends on of the section `prediction`: on prediction sets only if they are mapped."""
    prediction = values.get("prediction")
    return prediction if SET_PRODUCTS.intersection(config.map.products) else _without_sets(prediction)


def _without_sets(prediction: dict[str, Any] | None) -> dict[str, Any] | None:
    """Drop the choice of prediction sets, on which few results depend; None if nothing is left, as where it is not given."""
    kept = {key: value for key, value in (prediction or {}).items() if key != "sets"}
    return kept or None


def _content(url: str) -> str:
    with storage.as_input_errors(url):
        return checksums.sha256(url)[1]


def _as_stored(scenes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the keys that do not affect the store: those used only by the network or in the map's metadata.

    Derived bands become a list: their order is that of the store's bands, and a hash of a mapping has none.
    """
    for scene in scenes:
        scene.pop("datetime", None)
        for source in scene["sources"].values():
            source.pop("branch", None)
            for key in SEARCH_KEYS_WITHOUT_EFFECT:
                source.get("stac", {}).get("search", {}).pop(key, None)
            if "derive" in source:
                source["derive"] = list(source["derive"].items())
    return scenes
