"""Map tiles in one process: read the next tile, compute the current one and write the previous one in parallel.

A failed tile is reported with its cause like any other, and the rest continue. The caller decides what is retried.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from mibf.class_priors import PriorSetting
from mibf.device import Precision, best_device, means_device_failed
from mibf.errors import InputError
from pipeline.grid import Tile
from pipeline.io import model_bundle
from pipeline.io.retry import call_with_retry
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.predictor import MissingDataPolicy, RowMemoryError, TileInput, TilePredictor, TileReader, TileResult
from pipeline.maps.products import Product
from pipeline.parallel.prefetch import PrefetchThreads
from pipeline.store.patch_store import PatchStore

#: Tiles that are read ahead of the one being computed.
PREFETCH_DEPTH = 1
#: Scenes whose stores stay open. Tiles come scene by scene, so few are in use at a time.
OPEN_SCENES = 16


class Reader(Protocol):
    """Reads the input of tiles."""

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Read the input of a tile; called in a separate thread."""


class Predictor(Reader, Protocol):
    """Computes a tile's products from its input."""

    @property
    def rows(self) -> int:
        """Rows of a cell computed at a time."""

    def compute(self, tile: TileInput) -> TileResult:
        """Compute a tile's products."""


@dataclass(frozen=True)
class MapJob:
    """What every worker of a map needs to know; serialized and sent to the workers."""

    model: str  #: URL of the bundle
    digest: str  #: digest of the bundle
    stores: Mapping[str, str]  #: URLs of the patch stores, by scene
    map_stores: Mapping[str, str]  #: URLs of the map stores, by scene
    products: tuple[Product, ...]
    precision: Precision
    priors: PriorSetting
    mc_samples: int
    seed: int
    missing: MissingDataPolicy
    set_thresholds: tuple[float, ...] = ()  #: least probability of each class in a prediction set, if sets are mapped
    reader: TileReader | None = None  #: what the model reads; by default the predictor's
    predictor: Callable[[MapJob], Predictor] | None = None  #: replaces the network, to measure everything else

    def make_reader(self) -> Reader:
        """Create what reads tiles for a worker: without the model's weights, unless the predictor was replaced.

        Raises:
            InputError: as for `make_predictor`.
        """
        if self.predictor is None and self.reader is not None:
            return self.reader
        return self.make_predictor(torch.device("cpu"))

    def make_predictor(self, device: torch.device | None = None) -> Predictor:
        """Create the predictor, on a device (default: the best one here).

        Raises:
            InputError: the model is not the one that the map was started with.
        """
        if self.predictor is not None:
            return self.predictor(self)
        bundle = call_with_retry(self.model, lambda: model_bundle.read_bundle(self.model))
        if bundle.digest != self.digest:
            raise InputError(f"{self.model}: was changed while the map was being made; run the same command again.")
        return TilePredictor(
            bundle,
            products=self.products,
            precision=self.precision,
            priors=self.priors,
            mc_samples=self.mc_samples,
            seed=self.seed,
            missing=self.missing,
            device=device,
            set_thresholds=self.set_thresholds,
        )


@dataclass(frozen=True)
class LoadedTile:
    """A tile that was read; on failure `content` is None and `cause` is set."""

    tile: Tile
    started: float
    seconds: float
    content: TileInput | None = None
    cause: str = ""


class TileLoader:
    """Reads tiles from the patch stores of a map's scenes, which stay open."""

    def __init__(self, job: MapJob, reader: Reader) -> None:
        self._urls, self._reader = job.stores, reader
        self._stores: dict[str, PatchStore] = {}

    def load(self, tile: Tile) -> LoadedTile:
        """Read a tile; called by one thread at a time. Failures are part of the result."""
        started, clock = time.time(), time.monotonic()
        content, cause = None, ""
        try:
            store = self._store(tile.scene)
            content = call_with_retry(store.url, lambda: self._reader.read(store, tile))
        except Exception as error:  # a failed tile is a row in the ledger, whatever the cause
            cause = _describe_error(error)
        return LoadedTile(tile, started, time.monotonic() - clock, content, cause)

    def _store(self, scene: str) -> PatchStore:
        return _opened(self._stores, scene, lambda: PatchStore(self._urls[scene]))


class TileMapper:
    """A model in memory, with the open patch stores and map stores of the scenes.

    `map` maps tiles in turn. Where tiles come from several threads, each takes the three steps of its own: of `load`,
    `compute` and `write`, every one is called by one thread at a time, and different ones in parallel.
    """

    def __init__(self, job: MapJob, *, threads: int | None = None, device: torch.device | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.job = job
        device = device or best_device()
        self.predictor = job.make_predictor(device)
        self.worker = f"{socket.gethostname()}/{os.getpid()}/{device.type}"
        self._loader = TileLoader(job, self.predictor)
        self._map_stores: dict[str, MapStore] = {}

    def map(self, tiles: Iterable[Tile]) -> Iterator[TileOutcome]:
        """Map tiles in order, reading each one while the previous one is computed; yield each once it is written.

        Raises:
            DeviceFailedError: the device failed; the tile at which it did and all later ones are not yielded.
        """
        reading = (self.load(tile) for tile in tiles)
        with (
            closing(PrefetchThreads().prefetch(reading, depth=PREFETCH_DEPTH, name="mibf-read")) as reads,
            ThreadPoolExecutor(1, "mibf-write") as writer,
        ):
            before: Future[TileOutcome] | None = None
            for read in reads:
                try:
                    done = self.compute(read)
                except DeviceFailedError:
                    if before is not None:
                        yield before.result()
                    raise
                if before is not None:
                    yield before.result()
                before = writer.submit(self.write, *done)
                del done
            if before is not None:
                yield before.result()

    def load(self, tile: Tile) -> LoadedTile:
        """Read a tile, as `TileLoader.load`."""
        return self._loader.load(tile)

    def compute(self, read: LoadedTile) -> tuple[TileOutcome, TileResult | None]:
        """Compute a tile's products; None if it failed, which its outcome says.

        Raises:
            DeviceFailedError: the device failed.
        """
        done = TileOutcome(
            tile=read.tile,
            cause=read.cause,
            worker=self.worker,
            started=read.started,
            finished=time.time(),
            read_seconds=read.seconds,
        )
        if read.content is None:
            return done, None
        clock = time.monotonic()
        try:
            result = self.predictor.compute(read.content)
        except Exception as error:  # as above
            if means_device_failed(error):
                raise DeviceFailedError(read.tile, _describe_error(error)) from error
            return replace(done, cause=_describe_error(error), finished=time.time()), None
        seconds, pixels = time.monotonic() - clock, int(read.content.wanted.sum())
        return replace(done, compute_seconds=seconds, pixels=pixels, rows=self.predictor.rows), result

    def write(self, done: TileOutcome, result: TileResult | None) -> TileOutcome:
        """Write a tile's products to the map store and return its outcome, with their checksum."""
        if result is None:
            return done
        clock = time.monotonic()
        try:
            work = self._work(done.tile.scene)
            call_with_retry(work.url, lambda: work.write(done.tile, result))
            checksum = result_digest(result)
        except Exception as error:  # as above
            return replace(done, cause=_describe_error(error), finished=time.time())
        return replace(done, checksum=checksum, write_seconds=time.monotonic() - clock, finished=time.time())

    def _work(self, scene: str) -> MapStore:
        return _opened(self._map_stores, scene, lambda: MapStore(self.job.map_stores[scene]))


Store = TypeVar("Store")


def _opened(stores: dict[str, Store], scene: str, opener: Callable[[], Store]) -> Store:
    """The open store of a scene; of many scenes, those used last stay open."""
    stores[scene] = stores.pop(scene) if scene in stores else opener()
    if len(stores) > OPEN_SCENES:
        del stores[next(iter(stores))]
    return stores[scene]


def _describe_error(error: BaseException) -> str:
    """Format a cause for people: our own messages as they are, those of libraries preceded by the error type."""
    text: Any = str(error)
    return text if isinstance(error, InputError | RowMemoryError) else f"{type(error).__name__}: {text}"
