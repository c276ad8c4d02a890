"""Stage `report`: one self-contained HTML page with inputs, outputs, accuracy, run time and memory.

Rendered with Jinja2, plotted with matplotlib; images are embedded, so the file can be sent as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import zarr
from numpy.typing import NDArray

from jobs.config.config import Config
from jobs.report.pictures import colored, display_bands, png, shades, stretched
from jobs.report.plots import SUBSET_COLORS, class_reliability_plot, reliability_plot, training_curve
from jobs.trials.table import HEADINGS as TRIAL_METRICS
from jobs.workflow.fingerprint import fingerprint as compute_fingerprint
from jobs.workflow.manifest import Manifest, StageResult, dependencies, read_manifest
from jobs.workflow.runner import invalidate
from jobs.workflow.seed_summary import REPORTED, mean_and_deviation
from jobs.workflow.split_caveat import is_apart, split_caveat
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.bundle.classes import ClassName
from mibf.bundle.members import KIND_NAMES
from mibf.network.spec import ONE_SOURCE
from mibf.normalization import scaling_from_json
from pipeline.codes import SUBSETS, UNLABELLED
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.products import CLASS_PRODUCTS, MASKS, Product, product
from pipeline.publishing.published_map import PublishedMap
from pipeline.publishing.stac_item import InvalidItemError
from pipeline.publishing.stac_item_reader import class_digest, read_item
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import CHUNK

#: Maximum side of a picture in pixels; larger scenes are subsampled to it.
PICTURE = 640
#: Maximum chunks of a store to read along an axis for a picture. Every pixel of a subsample costs a complete chunk, so the
#: pictures of a store of more chunks are coarser, and drawn in larger squares.
PICTURE_CHUNKS = 160


def report(config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> StageResult:
    """Write the page."""
    invalidate(workspace, "report", lease)
    bundle = workspace.read_bundle()
    evaluation = storage.read_json(workspace.evaluation)
    split = storage.read_json(workspace.split)
    authors = bundle.provenance.get("authors")
    has_history = bundle.networks and not authors
    history = [json.loads(line) for line in storage.read_bytes(workspace.metrics).splitlines()] if has_history else []
    history = [line for line in history if line["seed"] == bundle.provenance.get("seed")]
    manifests = [m for stage in dependencies(config, "report") if (m := read_manifest(workspace, stage)) is not None]
    # The map may have been made separately, with other class priors than the evaluation.
    mapped = next(
        (m.figures["priors"] for m in manifests if m.stage == "map" and "priors" in m.figures), evaluation["priors"]
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"share": _share, "amount": _amount, "thousands": lambda n: f"{n:,}"}
    template = environment.from_string(files("jobs.report").joinpath("report.html.jinja").read_text("utf-8"))
    page = template.render(
        name=config.name,
        run=config.run,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        fingerprint=fingerprint,
        evaluation=evaluation,
        mapped=mapped,
        other_model=None if config.map.model is None else storage.redact_url(config.map.model),
        classes=bundle.classes,
        shaded=_shaded(evaluation["confusion"]),
        split=split,
        leak=split_caveat(split),
        apart=is_apart(split),
        subsets=SUBSETS,
        subset_colors=SUBSET_COLORS,
        scenes=[_pictures(config, workspace, bundle, scene.name) for scene in config.scenes],
        curve=training_curve(history) if history else None,
        reliability=reliability_plot(evaluation["bins"]),
        class_reliability=class_reliability_plot(bundle.classes, evaluation.get("class_bins")),
        intervals=evaluation.get("intervals"),
        estimates=_estimates(workspace),
        accuracies=REPORTED,
        spread=mean_and_deviation(evaluation["seeds"]) if len(evaluation["seeds"]) > 1 else None,
        selected=bundle.provenance.get("hyperparameters", {}).get("select"),
        chosen=bundle.provenance.get("chosen"),
        seed=bundle.provenance.get("seed"),
        one_source=ONE_SOURCE if bundle.networks and len(bundle.spec.sources) == 1 else None,
        trees=len(bundle.trees),
        kind_names=KIND_NAMES,
        members=[] if bundle.single is not None else evaluation["members"],
        trials=_trials(workspace, bundle),
        trial_metrics=TRIAL_METRICS,
        calibrated="temperature" in bundle.provenance.get("chosen", {}),
        authors=authors,
        baselines=_baselines(config, manifests),
        stages=manifests,
        versions=bundle.provenance["versions"],
    )
    lease.check()
    storage.write_bytes(workspace.report, page.encode())
    return StageResult({"bytes": len(page)}, [f"{len(page) / 1e6:.1f} MB, self-contained"], [workspace.report])


def _baselines(config: Config, manifests: Sequence[Manifest]) -> dict[str, Any] | None:
    """The tables of the baselines; None without any, or if they were measured beside another model."""
    found = next((m for m in manifests if m.stage == "baseline"), None)
    if found is None or found.fingerprint != compute_fingerprint(config, "baseline"):
        return None
    return found.figures


def _estimates(workspace: Workspace) -> dict[str, Any] | None:
    """Accuracy and areas that were estimated from a sample of the map; None without, or if the map has changed since."""
    try:
        found: dict[str, Any] = storage.read_json(workspace.estimates)
        items = {name: read_item(workspace.map_folder(name)) for name in found["scenes"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, InvalidItemError):
        return None
    published = {name: item for name, item in items.items() if item is not None}
    return found if len(published) == len(items) and class_digest(published) == found.get("map_digest") else None


def _trials(workspace: Workspace, bundle: Bundle) -> dict[str, Any] | None:
    """The record of the trials from which the model was chosen; None if it was trained without, or elsewhere."""
    try:
        found: dict[str, Any] = storage.read_json(workspace.trials)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if found.get("fingerprint") == bundle.provenance.get("fingerprint") else None


def _share(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _amount(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _shaded(counts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Each count with its share of the row total, for shading."""
    return [[(n, n / sum(row) if sum(row) else 0.0) for n in row] for row in counts]


def _pictures(config: Config, workspace: Workspace, bundle: Bundle, scene: str) -> dict[str, Any]:
    """Render a scene's quicklooks as captions and data URLs."""
    store = PatchStore(workspace.store(scene))
    scaling = scaling_from_json(storage.read_json(workspace.scaling))  # of all sources: the model may use fewer
    step, enlarged = subsampling(store.shape)
    thin = (slice(None, None, step), slice(None, None, step))
    pictures = []
    for source in store.sources:
        bands = display_bands(source.bands)
        own = (slice(None, None, step * source.scale),) * 2
        values = read_bands(store.array(f"sources/{source.name}"), bands, step * source.scale)
        valid = np.asarray(store.array(f"valid/{source.name}")[own]).astype(bool)
        if source.is_filled:
            own_periods = [band * source.periods // source.bands for band in bands]
            valid &= (read_bands(store.array(f"counts/{source.name}"), own_periods, step * source.scale) > 0).all(axis=0)
        listed = ", ".join(source.band_names[b] if source.periods and source.band_names else str(b + 1) for b in bands)
        caption = f"{source.name}: band {listed} as red, green, blue" if len(bands) == 3 else f"{source.name}: band {listed}"
        pictures.append((caption, png(stretched(values, valid, scaling[source.name], bands), enlarged)))
    labels = np.asarray(store.array("labels")[thin])
    pictures.append(("labels", png(colored(labels, bundle.classes), enlarged)))
    split = np.asarray(store.array("split")[thin])
    subset_codes = np.where(labels == UNLABELLED, 0, split)
    subsets = tuple(ClassName(i + 1, s, SUBSET_COLORS[s]) for i, s in enumerate(SUBSETS))
    pictures.append((f"split: {', '.join(SUBSETS)} (labelled pixels)", png(colored(subset_codes, subsets), enlarged)))
    published = PublishedMap(workspace.map_folder(scene))
    for name in config.map.products:
        map_product = product(name, config.map.dtype, sources=len(bundle.spec.sources), classes=bundle.spec.classes)
        pictures.append(_product_picture(published, map_product, store, bundle.classes, step // enlarged))
    return {"name": scene, "pictures": pictures, "rows": store.shape[0], "columns": store.shape[1]}


def read_bands(array: zarr.Array[Any], bands: Sequence[int], step: int) -> NDArray[Any]:
    """Read every `step`-th pixel of some bands of an array (band, y, x); the others take no memory beyond their chunks."""
    every = slice(None, None, step)
    return np.asarray(array.oindex[np.array(bands), every, every])


def subsampling(shape_yx: tuple[int, int]) -> tuple[int, int]:
    """Return the step between the pixels of a store's picture, and the side of a picture's square per pixel, 1 or more."""
    longest = max(shape_yx)
    step = max(1, math.ceil(longest / PICTURE))
    if longest <= PICTURE_CHUNKS * CHUNK:
        return step, 1
    enlarged = PICTURE // PICTURE_CHUNKS
    return step * enlarged, enlarged


def _product_picture(
    published: PublishedMap, map_product: Product, store: PatchStore, classes: tuple[ClassName, ...], step: int
) -> tuple[str, str]:
    """Render a quicklook of a product's first band, subsampled to every `step`-th pixel: caption and data URL."""
    rows, columns = store.shape
    codes = published.read(map_product, Window(0, 0, rows, columns), shape_yx=(-(-rows // step), -(-columns // step)))[0]
    if map_product.name in CLASS_PRODUCTS:
        return "map" if map_product.name == "class" else "second class", png(colored(codes, classes))
    if map_product.name in MASKS or map_product.name == "set_size":
        found = np.bitwise_count(codes) if map_product.name in MASKS else codes
        counts = np.where(map_product.present(codes), found, np.nan)
        most = max(int(np.nanmax(counts, initial=0)), 1)
        what = "sources with data" if map_product.name == "sources" else "classes in the prediction set"
        return f"{what}: 0 (dark) to {most} (bright)", png(shades(counts, 0.0, most))
    values = map_product.decode(codes)
    if map_product.name == "confidence":
        low = 1 / len(classes)
        return f"confidence: {low:.2f} (dark) to 1 (bright)", png(shades(values, low, 1.0))
    high = float(np.nanmax(values, initial=0))
    name = {"kl": "KL term"}.get(map_product.name, map_product.name.replace("_", " "))
    band = "" if map_product.bands == "one" else ", band 1"
    caption = f"{name}{band}: 0 (dark) to {high:.2f} {map_product.unit}".rstrip() + " (bright)"
    return caption, png(shades(values, 0.0, high or 1.0))
