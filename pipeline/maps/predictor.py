"""Predict one tile: read it with its halo, normalize it, run the model. Independent of where results are written."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.device import Precision, best_device, means_no_memory, to_device
from mibf.ensemble import mixture_log_probabilities
from mibf.errors import InputError
from mibf.inference.dense import MC_SAMPLES, Dense
from mibf.inference.outputs import RANKED, ProductName
from mibf.metrics.prediction_sets import set_members
from mibf.normalization import Allocator, Scaling, empty
from mibf.transfer import Copying, DeviceCopies, pinned, to_host
from pipeline.classifiers.pixel_features import REACH, features_of, read_values
from pipeline.classifiers.reading import Classifier, read_classifiers
from pipeline.codes import UNLABELLED
from pipeline.grid import Tile, Window
from pipeline.maps.mixture import Mixture, needed_of_networks
from pipeline.maps.products import SET_PRODUCTS, Product, products_of_network
from pipeline.stac.periods import without_years
from pipeline.store.patch_store import PatchStore, scaled_window, usable
from pipeline.store.template import StoredSource

#: The products of a tile by name, each as codes (band, rows, columns), encoded as in `pipeline.maps.products`.
TileResult = dict[str, NDArray[Any]]
#: Which pixels are mapped. declared: by the rule of each source in the store; nodata: where all of the model's sources have
#: data; map: where at least one of them has data.
MissingDataPolicy = Literal["declared", "nodata", "map"]


#: Rows of a tile whose features are in memory at a time.
STRIP = 64


@dataclass(frozen=True)
class PlacedSources:
    """The sources of a tile on a device. The copies may not have ended, see `Copying.wait`."""

    sources: tuple[torch.Tensor, ...]
    copying: Copying


@dataclass(frozen=True)
class TileInput:
    """Input of a tile, read ahead in another thread: NumPy arrays only, until its sources are placed on a device."""

    sources: tuple[NDArray[np.float32], ...]  #: each (band, rows, columns) with its halo, normalized to [0, 1]; for networks
    wanted: NDArray[np.bool_]  #: (rows, columns), the pixels to map
    present: NDArray[Any]  #: (rows, columns), bit i where source i has data
    values: tuple[NDArray[np.float32], ...] = ()  #: of `pipeline.classifiers.pixel_features.read_values`, where needed
    placed: PlacedSources | None = None  #: in place of `sources`, which are empty then

    def to_bytes(self) -> bytes:
        """Serialize for transfer between machines."""
        file = io.BytesIO()
        values: dict[str, Any] = {f"value_{i}": array for i, array in enumerate(self.values)}
        np.savez(file, *self.sources, wanted=self.wanted, present=self.present, **values)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> TileInput:
        """Deserialize the result of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            sources, values = (
                tuple(arrays[f"{stem}_{i}"] for i in range(sum(name.startswith(stem) for name in arrays.files)))
                for stem in ("arr", "value")
            )
            return cls(sources, arrays["wanted"], arrays["present"], values)


def check_sources(store: PatchStore, bundle: Bundle) -> None:
    """Check that a store has the sources that a model was trained on.

    Raises:
        InputError: names, order or numbers of bands differ; or the names of bands, where both have them.
    """
    for source in store.sources:
        names = bundle.band_names.get(source.name)
        if (
            source.name in bundle.scaling
            and names
            and source.band_names
            and without_years(names) != without_years(source.band_names)
        ):
            raise InputError(
                f"{store.url}: source {source.name!r} has the bands {_first_names(source.band_names)}; the model was "
                f"trained on {_first_names(names or ())}. Read the same bands in the same order, with `bands`, `keep` or "
                "the order of `stac.assets`, correct `band_names`, or train a new model."
            )
    wanted = [(s.name, s.bands, s.scale) for s in bundle.spec.sources]
    found = [(s.name, s.bands, s.scale) for s in store.sources if s.name in bundle.scaling]
    if wanted != found:
        listed = [", ".join(map(_describe_source, sources)) for sources in (found, wanted)]
        raise InputError(
            f"{store.url}: has the sources {listed[0]}; the model was trained on {listed[1]}. "
            "Provide the scene with the same sources and bands in the same order, or train a new model."
        )


def _first_names(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _describe_source(source: tuple[str, int, int]) -> str:
    name, bands, scale = source
    return f"{name} ({bands} bands{'' if scale == 1 else f', at {scale}x resolution'})"


def mappable_pixels(
    store: PatchStore, window: Window, *, sources: Collection[str], missing: MissingDataPolicy
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which pixels (height, width) of a window a model of given sources maps, and the mask of their data.

    Bit i of the mask is set where the i-th of these sources, in the store's order, has data.
    """
    there = store.present(window, keep=True)
    taken = [source for source in store.sources if source.name in sources]
    if missing == "declared":  # as for samples: by the rules of all sources, whether the model uses them or not
        wanted = usable(store.sources, there)
    else:
        wanted = usable(taken, there, required=sources if missing == "nodata" else ())
    return wanted, _mask(taken, there)


def _mask(sources: Sequence[StoredSource], there: Mapping[str, NDArray[np.bool_]]) -> NDArray[Any]:
    dtype = np.min_scalar_type((1 << len(sources)) - 1)
    mask = np.zeros(there[sources[0].name].shape, dtype)
    for bit, source in enumerate(sources):
        mask |= there[source.name].astype(dtype) << dtype.type(bit)
    return mask


@dataclass(frozen=True)
class TileReader:
    """Reads the input of tiles: all that a model needs of a scene, without the model. Thread-safe; sent to reader actors."""

    sources: tuple[str, ...]  #: names of the model's sources, in the order of its inputs
    scaling: Scaling
    halo: int
    missing: MissingDataPolicy
    has_networks: bool
    has_classifiers: bool  #: of pixel features

    @classmethod
    def of(cls, bundle: Bundle, missing: MissingDataPolicy) -> TileReader:
        """What a model reads."""
        names = tuple(source.name for source in bundle.spec.sources)
        halo = bundle.spec.halo
        return cls(names, bundle.scaling, halo, missing, bool(bundle.networks), bool(bundle.pixelwise))

    def read(self, store: PatchStore, tile: Tile, *, allocate: Allocator = empty) -> TileInput:
        """Read the input of one tile; `allocate` is as for `BandScaling.apply`."""
        wanted, present = mappable_pixels(store, tile.window, sources=self.sources, missing=self.missing)
        sources: list[NDArray[np.float32]] = []
        values: tuple[NDArray[np.float32], ...] = ()
        if self.has_networks:
            sources = scaled_window(store, tile.window, self.scaling, halo=self.halo, allocate=allocate)
        if self.has_classifiers:
            values = read_values(store, tile.window, [store.source(name) for name in self.sources], self.scaling)
        return TileInput(tuple(sources), wanted, present, values)


class RowMemoryError(MemoryError):
    """Not even one row of a cell at a time fits into memory."""

    def __init__(self, device: torch.device, cause: BaseException) -> None:
        shared = "" if device.type == "cpu" else ", fewer workers per GPU (resources.workers_per_gpu), or CPUs"
        lines = str(cause).splitlines() or [type(cause).__name__]
        super().__init__(
            f"one row of pixels at a time does not fit into the memory of {device} ({lines[0]}); use a machine with more "
            f"memory{shared}"
        )


class TilePredictor:
    """A model that maps tiles on a device, by default the best one here; `priors` chooses the class frequencies it assumes.

    The network is loaded with the first tile that is computed, while the next one is read.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        products: Sequence[Product],
        precision: Precision,
        priors: PriorSetting = "trained",
        mc_samples: int = MC_SAMPLES,
        seed: int = 0,
        missing: MissingDataPolicy = "declared",
        device: torch.device | None = None,
        set_thresholds: Sequence[float] = (),
    ) -> None:
        """Prepare the model; `set_thresholds` are the least probabilities of the classes in prediction sets, if any."""
        self.bundle = bundle
        self.products = tuple(products)
        self.reader = TileReader.of(bundle, missing)
        self._set_thresholds = tuple(set_thresholds)
        self._priors: PriorSetting = priors
        self._device = device or best_device()
        self._copies = DeviceCopies(self._device)
        self._make_dense = partial(Dense, precision=precision, mc_samples=mc_samples, seed=seed)
        # The last entry is indexed by class -1, which means no result.
        self._ids = torch.tensor([*(c.id for c in bundle.classes), UNLABELLED], dtype=torch.uint8)

    @cached_property
    def dense(self) -> list[Dense]:
        """The networks on the device; replaced by ones that take fewer rows at a time after an out-of-memory error."""
        return [
            self._make_dense(
                to_device(self.bundle.network(self._priors, position=position), self._device), temperature=member.temperature
            )
            for position, member in enumerate(self.bundle.networks)
        ]

    @cached_property
    def classifiers(self) -> list[Classifier]:
        """The members that classify pixel features, which are computed on the CPU."""
        return read_classifiers(self.bundle)

    @property
    def rows(self) -> int:
        """Rows of a cell computed at a time; reduced after an out-of-memory error. 1 without a network."""
        return self.dense[0].rows if self.dense else 1

    def predict(self, store: PatchStore, tile: Tile) -> TileResult:
        """Compute the products of one tile; cells without pixels to map are skipped."""
        return self.compute(self.read(store, tile))

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Read the input of one tile, for a GPU into pinned memory. Thread-safe."""
        return self.reader.read(store, tile, allocate=pinned if self._device.type == "cuda" else empty)

    def place(self, tile: TileInput) -> TileInput:
        """Begin to copy a tile's sources to the device. In a thread of its own, this happens while others are computed."""
        if not self.bundle.networks:
            return tile
        with self._copies.made() as copying:
            placed = PlacedSources(tuple(map(copying.copy, tile.sources)), copying)
        return replace(tile, sources=(), placed=placed)

    def compute(self, tile: TileInput) -> TileResult:
        """Compute the products of one tile.

        After an out-of-memory error the tile is retried with half as many rows at a time, and the lower number is kept.
        The last bits of continuous products may then differ, as they may on another machine.

        Raises:
            RowMemoryError: there is not enough memory for a single row.
        """
        while True:
            try:
                return self._compute(tile)
            except (MemoryError, RuntimeError) as error:
                if not means_no_memory(error):
                    raise
                if self.rows == 1:
                    raise RowMemoryError(self._device, error) from error
            # Outside the except block: the exception's frames keep references to the allocated memory.
            self.dense = [dense.with_rows(self.rows // 2) for dense in self.dense]
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _compute(self, tile: TileInput) -> TileResult:
        network_products = products_of_network(self.products)
        found: dict[ProductName, torch.Tensor] = {}
        if network_products:
            sources = self._sources(tile)
            wanted = torch.from_numpy(tile.wanted)
            if self.bundle.single is not None:
                found = self.dense[0](sources, products=network_products, wanted=wanted)
            else:
                found = self._mixture(tile, sources, network_products, wanted)
        encoded = {p.name: self._codes(p, found) for p in self.products if p.name != "sources"}
        codes = dict(zip(encoded, to_host(list(encoded.values())), strict=True))
        return {p.name: p.stored(codes[p.name]) if p.name in codes else tile.present[None] for p in self.products}

    def _sources(self, tile: TileInput) -> list[torch.Tensor]:
        if tile.placed is None:
            return [torch.from_numpy(values) for values in tile.sources]
        tile.placed.copying.wait()
        return list(tile.placed.sources)

    def _codes(self, product: Product, found: Mapping[ProductName, torch.Tensor]) -> torch.Tensor:
        """The codes (band, rows, columns) of a product, computed on the device that has what the model computed."""
        if product.name in SET_PRODUCTS:
            return self._sets(product, found["probabilities"])
        values = found[cast(ProductName, product.name)]
        codes = self._ids.to(values.device)[values] if product.name in RANKED else product.codes(values)
        return codes if codes.dim() == 3 else codes[None]

    def _sets(self, product: Product, probabilities: torch.Tensor) -> torch.Tensor:
        """The sizes of the prediction sets, or the sets as masks with a bit for each class, (1, rows, columns)."""
        mapped = ~torch.isnan(probabilities[0])
        members = set_members(probabilities, self._set_thresholds, dim=0) & mapped
        if product.name == "set_size":
            return product.bits(members.sum(dim=0, keepdim=True))
        codes = torch.zeros((1, *mapped.shape), dtype=torch.int64, device=members.device)
        for bit, is_member in enumerate(members):
            codes[0] |= is_member.long() << bit
        return product.bits(codes)

    def _mixture(
        self, tile: TileInput, sources: list[torch.Tensor], products: tuple[ProductName, ...], wanted: torch.Tensor
    ) -> dict[ProductName, torch.Tensor]:
        """Compute the products of a model of several members, or without networks."""
        mixture = Mixture(products)
        needed = needed_of_networks(products)
        for member, dense in zip(self.bundle.networks, self.dense, strict=True):
            found = dense(sources, products=needed, wanted=wanted)
            mixture.add(found.pop("probabilities"), member.share, found)
        for other, probabilities in zip(self.bundle.pixelwise, self._of_classifiers(tile), strict=True):
            mixture.add(probabilities.to(self._device) if self.dense else probabilities, other.share)
        return mixture.results()

    def _of_classifiers(self, tile: TileInput) -> list[torch.Tensor]:
        """Compute each classifier's probabilities (classes, rows, columns), NaN where no pixel is wanted."""
        if not self.classifiers:
            return []
        correction = self.bundle.correction(self._priors)
        rows, columns = tile.wanted.shape
        found = [torch.full((self.bundle.spec.classes, rows, columns), torch.nan) for _ in self.classifiers]
        for y in range(0, rows, STRIP):  # features take three times the memory of the values, in as many bands
            wanted = tile.wanted[y : y + STRIP]
            if not wanted.any():
                continue
            strip = tuple(values[:, y : y + len(wanted) + 2 * REACH] for values in tile.values)
            features = features_of(strip)[:, wanted].T  # (pixels, features)
            for member, classifier, result in zip(self.bundle.pixelwise, self.classifiers, found, strict=True):
                logits = torch.from_numpy(classifier.scores(features))
                likely = mixture_log_probabilities([logits], [member.temperature], [1.0], correction).exp()
                result[:, y : y + len(wanted)][:, torch.from_numpy(wanted)] = likely.T.float()
        return found
