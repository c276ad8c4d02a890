"""Map tiles in one process: read the next tiles, compute the current one and write the previous ones in parallel.

How many threads read and write, and how many tiles are in memory, says `pipeline.maps.tile_threads`. Where a GPU computes,
one more thread has the next tile copied to it.

A failed tile is reported with its cause like any other, and the rest continue. The caller decides what is retried.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock, Semaphore
from typing import Any, Protocol, TypeVar, runtime_checkable

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
from pipeline.maps.tile_threads import TileThreads
from pipeline.parallel.cpu_count import cpu_count
from pipeline.parallel.prefetch import PrefetchThreads
from pipeline.parallel.read_ahead import read_ahead
from pipeline.store.patch_store import PatchStore

#: Scenes whose stores stay open. Tiles come scene by scene, so few are in use at a time.
OPEN_SCENES = 16


class Reader(Protocol):
    """Reads the input of tiles."""

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Read the input of a tile; called in separate threads, several at a time."""


class Predictor(Reader, Protocol):
    """Computes a tile's products from its input."""

    @property
    def rows(self) -> int:
        """Rows of a cell computed at a time."""

    def compute(self, tile: TileInput) -> TileResult:
        """Compute a tile's products; called by one thread at a time."""


@runtime_checkable
class Placer(Protocol):
    """A predictor whose input can be copied to its device beforehand."""

    def place(self, tile: TileInput) -> TileInput:
        """Begin to copy a tile's input to the device; called in a separate thread."""


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
    device_failed: bool = False  #: the device failed, into whose memory the tile was to be read


class TileLoader:
    """Reads tiles from the patch stores of a map's scenes, which stay open."""

    def __init__(self, job: MapJob, reader: Reader) -> None:
        self._urls, self._reader = job.stores, reader
        self._stores: dict[str, PatchStore] = {}
        self._opening = Lock()

    def load(self, tile: Tile) -> LoadedTile:
        """Read a tile; thread-safe. Failures are part of the result."""
        started, clock = time.time(), time.monotonic()
        content, cause, device_failed = None, "", False
        try:
            store = self._store(tile.scene)
            content = call_with_retry(store.url, lambda: self._reader.read(store, tile))
        except Exception as error:  # a failed tile is a row in the ledger, whatever the cause
            cause, device_failed = _describe_error(error), means_device_failed(error)
        return LoadedTile(tile, started, time.monotonic() - clock, content, cause, device_failed)

    def _store(self, scene: str) -> PatchStore:
        with self._opening:
            return _opened(self._stores, scene, lambda: PatchStore(self._urls[scene]))


class TileMapper:
    """A model in memory, with the open patch stores and map stores of the scenes.

    Several threads may map tiles at a time: together they have the mapper's threads, and hold its number of tiles.
    """

    def __init__(
        self,
        job: MapJob,
        *,
        threads: int | None = None,
        device: torch.device | None = None,
        tile_threads: TileThreads | None = None,
    ) -> None:
        """Create.

        Args:
            job: the map.
            threads: CPUs of this process, which torch's operations use; by default torch's setting stays.
            device: to compute on; by default the best one here.
            tile_threads: threads that read and write; by default those for the device and the CPUs.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.job = job
        device = device or best_device()
        self.threads = tile_threads or TileThreads.of(device.type, threads or cpu_count())
        self.predictor = job.make_predictor(device)
        self.worker = f"{socket.gethostname()}/{os.getpid()}/{device.type}"
        self.device_failed = False
        self._loader = TileLoader(job, self.predictor)
        self._map_stores: dict[str, MapStore] = {}
        self._opening, self._computing = Lock(), Lock()
        self._reading, self._writing = Semaphore(self.threads.readers), Semaphore(self.threads.writers)
        self._tiles = Semaphore(self.threads.tiles)

    def map(self, tiles: Iterable[Tile]) -> Iterator[TileOutcome]:
        """Map tiles in order, reading the next ones while one is computed; yield each once it is written.

        Raises:
            DeviceFailedError: the device failed; the tile at which it did and all later ones are not yielded.
        """
        return self.map_loaded(partial(self.load, tile) for tile in tiles)

    def map_loaded(self, loads: Iterable[Callable[[], LoadedTile]]) -> Iterator[TileOutcome]:
        """Map tiles as `map` does, each read by a function.

        If the device fails in another thread's call, tiles that were not computed before are not yielded, without an error.
        """
        failure: DeviceFailedError | None = None
        with (
            closing(_Room(self._tiles)) as room,
            ThreadPoolExecutor(self.threads.writers, "mibf-write") as writers,
            closing(self._loaded(loads, room)) as reads,
        ):
            writing: deque[Future[TileOutcome]] = deque()
            for read in reads:
                try:
                    computed = self._compute_alone(read)
                except DeviceFailedError as error:
                    computed, failure = None, error
                if computed is None:
                    room.release()
                    break
                writing.append(writers.submit(self._write_result, room, *computed))
                del read, computed
                while writing and (len(writing) > self.threads.writers or writing[0].done()):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()
        if failure is not None:
            raise failure

    def _loaded(self, loads: Iterable[Callable[[], LoadedTile]], room: _Room) -> Generator[LoadedTile, None, None]:
        """Read tiles ahead, in order. Where a GPU computes, the next one is also copied to it."""
        placer = self.predictor if isinstance(self.predictor, Placer) and self.threads.ahead else None
        depth = self.threads.readers + self.threads.ahead - (placer is not None)
        name = "mibf-read"
        reads = read_ahead(self._load, loads, threads=self.threads.readers, depth=depth, room=room, name=name)
        return reads if placer is None else PrefetchThreads().prefetch(_placed(reads, placer), depth=1, name="mibf-place")

    def load(self, tile: Tile) -> LoadedTile:
        """Read a tile, as `TileLoader.load`."""
        return self._loader.load(tile)

    def _load(self, load: Callable[[], LoadedTile]) -> LoadedTile:
        with self._reading:
            return load()

    def _compute_alone(self, read: LoadedTile) -> tuple[TileOutcome, TileResult | None] | None:
        """Compute a tile while no other thread does; None if the device has failed before."""
        with self._computing:
            if self.device_failed:
                return None
            try:
                return self.compute(read)
            except DeviceFailedError:
                self.device_failed = True
                raise

    def _write_result(self, room: _Room, done: TileOutcome, result: TileResult | None) -> TileOutcome:
        with self._writing:
            written = self.write(done, result)
        room.release()
        return written

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
        if read.device_failed:
            raise DeviceFailedError(read.tile, read.cause)
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
        with self._opening:
            return _opened(self._map_stores, scene, lambda: MapStore(self.job.map_stores[scene]))


class _Room:
    """Room for tiles that a call holds, of the mapper's room for all its calls; what is left is released at the end."""

    def __init__(self, tiles: Semaphore) -> None:
        self._tiles, self._held, self._lock = tiles, 0, Lock()

    def acquire(self, *, blocking: bool) -> bool:
        """Take room for a tile; without `blocking` return False if there is none."""
        taken = self._tiles.acquire(blocking=blocking)
        with self._lock:
            self._held += taken
        return taken

    def release(self) -> None:
        """Give back the room of a tile."""
        with self._lock:
            self._held -= 1
        self._tiles.release()

    def close(self) -> None:
        """Give back the room of tiles that were read but not computed, once no thread of the call is left."""
        while self._held:
            self.release()


def _placed(reads: Generator[LoadedTile, None, None], placer: Placer) -> Generator[LoadedTile, None, None]:
    """Have each tile copied to the device."""
    with closing(reads):
        for read in reads:
            yield _place(read, placer)
            del read


def _place(read: LoadedTile, placer: Placer) -> LoadedTile:
    """Have a tile copied to the device. If that fails, it is computed from memory, which fails for the same cause."""
    if read.content is not None:
        with suppress(Exception):
            return replace(read, content=placer.place(read.content))
    return read


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
