"""Inputs of the maps of a configuration: model, products, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config.config import Config
from jobs.config.resolve import class_names
from jobs.runtime.version import pinned_versions
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.class_priors import CORRECTION_VERSION
from mibf.errors import InputError
from mibf.inference.outputs import check_products
from pipeline.grid import grid_to_json
from pipeline.io import checksums, model_bundle, storage
from pipeline.maps import ALGORITHM_VERSION
from pipeline.maps.mixture import NEED_NETWORKS
from pipeline.maps.products import SET_PRODUCTS, Product, product, products_of_network
from pipeline.maps.tile_mapper import MapJob, Predictor
from pipeline.store.patch_store import PatchStore
from pipeline.store.scene_quantiles import MATCHING_VERSION


@dataclass(frozen=True)
class MapSpec:
    """What the maps of all scenes of a configuration are made with."""

    config: Config
    model: str  #: URL of the bundle
    bundle: Bundle
    digest: str  #: digest of the bundle
    products: tuple[Product, ...]
    predictor: Callable[[MapJob], Predictor] | None = None  #: replaces the network, as for `MapJob`

    @classmethod
    def of(cls, config: Config, workspace: Workspace, *, predictor: Callable[[MapJob], Predictor] | None = None) -> MapSpec:
        """Load the model and products of a configuration; `predictor` is as for `MapJob`.

        Raises:
            InputError: the model is missing or damaged, or cannot do what the configuration asks for.
        """
        if config.map.model is None:
            model, bundle = workspace.bundle, workspace.read_bundle()
        else:
            model = storage.absolute(config.map.model)
            bundle = model_bundle.read_bundle(model)
        bundle.correction(config.prediction.priors)
        sources = len(bundle.spec.sources)
        classes = bundle.spec.classes
        products = tuple(product(name, config.map.dtype, sources=sources, classes=classes) for name in config.map.products)
        check_products(products_of_network(products), without=bundle.spec.without)
        _check_has_networks(products, bundle, model)
        _check_has_sources(config, bundle, model)
        _check_has_sets(config, bundle, model)
        _check_classes(config, bundle, model)
        # Where a model's only source has no data, nothing is mapped, so it needs no source dropout.
        if config.map.missing == "map" and not bundle.source_dropout and sources > 1:
            raise InputError(
                f"map.missing is `map`, but {storage.redact_url(model)} was trained without source dropout; its predictions "
                "where a source is missing are unreliable. Train with `train.source_dropout`, or use `nodata` or "
                "`declared`."
            )
        return cls(config, model, bundle, bundle.digest, products, predictor)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the model's sources."""
        return tuple(source.name for source in self.bundle.spec.sources)

    @property
    def set_thresholds(self) -> tuple[float, ...]:
        """Least probability of each class in a prediction set; empty if no prediction sets are mapped."""
        sets = self.bundle.prediction_sets
        if sets is None or not SET_PRODUCTS.intersection(p.name for p in self.products):
            return ()
        return sets.thresholds(self.config.prediction.priors, self.config.prediction.set_choice)

    def settings(self, store: PatchStore) -> str:
        """Digest of everything that a tile's pixels depend on except model and input; includes the tile layout."""
        section = self.config.map
        grid = grid_to_json(store.grid)
        rules = [[s.name, s.missing] for s in store.sources]
        options: list[Any] = [
            section.precision,
            section.mc_samples,
            section.seed,
            section.missing,
            section.tile_size,
            self.config.prediction.priors,
        ]
        if self.config.prediction.priors != "trained":
            options.append(CORRECTION_VERSION)
        if self.set_thresholds:
            options.append(["prediction sets", *self.config.prediction.set_choice, *self.set_thresholds])
        if any(bands.reference is not None for bands in self.bundle.scaling.values()):
            found = {name: None if q is None else q.tolist() for name, q in store.quantiles.items()}
            options.append([MATCHING_VERSION, found])
        libraries = [pinned_versions()] if self.config.stale_on_upgrade else []
        return checksums.digest([ALGORITHM_VERSION, grid, rules, options, [asdict(p) for p in self.products], *libraries])


def _check_has_networks(products: Sequence[Product], bundle: Bundle, model: str) -> None:
    """Check that no product that only networks have is requested of a model without networks."""
    lacking = [p.name for p in products if p.name in NEED_NETWORKS]
    if lacking and not bundle.networks:
        raise InputError(
            f"map.products contains {', '.join(lacking)}, but {storage.redact_url(model)} has no network, without which "
            "there is none. Remove it, or train a model with a network: set model.kind to `mibf`; where the recipe `auto` "
            "chose no network, run `mibf train --restart`, which then keeps one for these products."
        )


def _check_has_sources(config: Config, bundle: Bundle, model: str) -> None:
    """Check that no weights of sources against each other are requested of a given model that has one source.

    If the recipe `auto` chose one of several sources for a run's own model, its weight is mapped as it is: 1.
    """
    if config.map.model is not None and "gate" in config.map.products and len(bundle.spec.sources) == 1:
        raise InputError(
            f"map.products contains gate, the weights of the sources against each other, but {storage.redact_url(model)} "
            f"has only one source ({bundle.spec.sources[0].name}); remove gate."
        )


def _check_has_sets(config: Config, bundle: Bundle, model: str) -> None:
    """Check that the model has the thresholds of requested prediction sets."""
    lacking = [name for name in config.map.products if name in SET_PRODUCTS]
    if lacking and bundle.prediction_sets is None:
        where = "with the configuration that it was trained with, " if config.map.model is not None else ""
        raise InputError(
            f"map.products contains {', '.join(lacking)}, but {storage.redact_url(model)} has no thresholds of prediction "
            "sets: it is of an earlier version, or its split had no validation pixels. Fit them to validation pixels, "
            f"without training again: {where}run `mibf calibrate CONFIG`."
        )


def _check_classes(config: Config, bundle: Bundle, model: str) -> None:
    """Check that the configuration declares the model's classes."""
    declared, known = ([(c.id, c.name) for c in classes] for classes in (class_names(config), bundle.classes))
    if declared != known:
        listed = [", ".join(f"{i} {name}" for i, name in classes) for classes in (declared, known)]
        raise InputError(
            f"{storage.redact_url(model)}: predicts the classes {listed[1]}; the configuration declares {listed[0]}. "
            "Declare the "
            "model's classes in the same order, or map with another model (map.model)."
        )
