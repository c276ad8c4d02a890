"""Maps tiles in one process: reads one ahead, computes, writes the one before, and tells of each how it went.

A tile that fails is told of like any other, with its cause: the rest goes on. Whoever calls decides what is done again.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from mibf.errors import InputError
from mibf.precision import Precision, best_device
from mibf.priors import Choice
from pipeline import bundles
from pipeline.ahead import Background
from pipeline.maps import MapInWork, digest
from pipeline.patience import patiently
from pipeline.predict import MissingChoice, TileInput, TilePredictor, TileResult
from pipeline.products import Product
from pipeline.store import PatchStore
from pipeline.tiles import Tile

#: Tiles that are read ahead of the one in work.
AHEAD = 1


class Predictor(Protocol):
    """What makes a tile's products of what was read of it."""

    @property
    def rows(self) -> int:
        """Rows of a cell that are in work at a time."""

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """What the tile is computed from; in a thread of its own."""

    def compute(self, tile: TileInput) -> TileResult:
        """Its products."""


@dataclass(frozen=True)
class Job:
    """What every worker of a map needs to know; it travels to them."""

    model: str  #: URL of the bundle
    digest: str  #: of the bundle
    stores: Mapping[str, str]  #: URLs of patch stores, by scene
    works: Mapping[str, str]  #: URLs of maps in work, by scene
    products: tuple[Product, ...]
    precision: Precision
    priors: Choice
    draws: int
    seed: int
    missing: MissingChoice
    predictor: Callable[[Job], Predictor] | None = None  #: in the network's place, to measure what is around it

    def make_predictor(self) -> Predictor:
        """What predicts.

        Raises:
            InputError: the model is not the one that the map was begun with.
        """
        if self.predictor is not None:
            return self.predictor(self)
        bundle = patiently(self.model, lambda: bundles.read_bundle(self.model))
        if bundle.digest != self.digest:
            raise InputError(f"{self.model}: was changed while the map was being made; run the same command again.")
        return TilePredictor(
            bundle,
            products=self.products,
            precision=self.precision,
            priors=self.priors,
            draws=self.draws,
            seed=self.seed,
            missing=self.missing,
        )


@dataclass(frozen=True)
class Done:
    """How a tile went. Times are in seconds, `started` and `finished` since 1970 UTC."""

    tile: Tile
    cause: str = ""  #: why it failed; empty where it did not
    worker: str = ""
    started: float = 0.0
    finished: float = 0.0
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    pixels: int = 0
    rows: int = 0
    checksum: str = ""


@dataclass(frozen=True)
class Read:
    """A tile that was read, or could not be: then without content, with the cause."""

    tile: Tile
    started: float
    seconds: float
    content: TileInput | None = None
    cause: str = ""


class Mapper:
    """A model in memory, and the stores and maps of the scenes that it meets."""

    def __init__(self, job: Job, *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.job = job
        self.predictor = job.make_predictor()
        self.worker = f"{socket.gethostname()}/{os.getpid()}/{best_device().type}"
        self._stores: dict[str, PatchStore] = {}
        self._works: dict[str, MapInWork] = {}

    def map(self, tiles: Iterable[Tile]) -> Iterator[Done]:
        """Map tiles, each read while the one before is computed; told of once written, in their order."""
        with closing(Background().ahead(self.read(tiles), depth=AHEAD, name="mibf-read")) as reads:
            yield from self.finish(reads)

    def finish(self, reads: Iterable[Read]) -> Iterator[Done]:
        """Compute and write tiles that were read, each written while the next one is computed; told of in their order."""
        with ThreadPoolExecutor(1, "mibf-write") as writer:
            before: Future[Done] | None = None
            for read in reads:
                done = self._computed(read)
                if before is not None:
                    yield before.result()
                before = writer.submit(self._written, *done)
                del done
            if before is not None:
                yield before.result()

    def read(self, tiles: Iterable[Tile]) -> Generator[Read, None, None]:
        """Read tiles, one at a time."""
        for tile in tiles:
            started, clock = time.time(), time.monotonic()
            content, cause = None, ""
            try:
                store = self._store(tile.scene)
                content = patiently(store.url, lambda store=store, tile=tile: self.predictor.read(store, tile))  # type: ignore[misc]  # bound now
            except Exception as error:  # a failed tile is a row, whatever the cause
                cause = _told(error)
            yield Read(tile, started, time.monotonic() - clock, content, cause)

    def _computed(self, read: Read) -> tuple[Done, TileResult | None]:
        done = Done(
            read.tile,
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
            return replace(done, cause=_told(error), finished=time.time()), None
        seconds, pixels = time.monotonic() - clock, int(read.content.wanted.sum())
        return replace(done, compute_seconds=seconds, pixels=pixels, rows=self.predictor.rows), result

    def _written(self, done: Done, result: TileResult | None) -> Done:
        if result is None:
            return done
        clock = time.monotonic()
        try:
            work = self._work(done.tile.scene)
            patiently(work.url, lambda: work.write(done.tile, result))
            checksum = digest(result)
        except Exception as error:  # as above
            return replace(done, cause=_told(error), finished=time.time())
        return replace(done, checksum=checksum, write_seconds=time.monotonic() - clock, finished=time.time())

    def _store(self, scene: str) -> PatchStore:
        if scene not in self._stores:
            self._stores[scene] = PatchStore(self.job.stores[scene])
        return self._stores[scene]

    def _work(self, scene: str) -> MapInWork:
        if scene not in self._works:
            self._works[scene] = MapInWork(self.job.works[scene])
        return self._works[scene]


def _told(error: BaseException) -> str:
    """A cause as people read it: our own messages are whole, those of libraries want their kind beside them."""
    text: Any = str(error)
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
