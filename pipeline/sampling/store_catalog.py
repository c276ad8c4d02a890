"""The patch stores of many scenes: opened when they are read, a bounded number at a time, from one catalog.

Opening ten thousand stores takes as many times seven requests, and every worker of a training would make them before its
first step. `prepare` therefore writes a **catalog** once all stores are complete: one file with each store's metadata and
its windows with samples. With it a worker reads that file, and of a store only the pixels that it needs.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import overload

import pyarrow as pa
import pyarrow.parquet as pq

from mibf.errors import InputError
from pipeline.codes import CODES, SUBSETS, Subset
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.sampling.sample_table import SampleTable, StoreSamples
from pipeline.store.patch_store import PatchStore, SubsetHiddenError
from pipeline.store.template import CHUNK

#: Version of the catalog's columns. A catalog of another version is not used.
FORMAT = 1
#: Stores that are open at once, besides those that somebody reads.
OPEN_STORES = 64
#: Stores that are read at once where there is no catalog.
PARALLEL_READS = 16
_FINGERPRINT = b"mibf:prepare"


@dataclass(frozen=True)
class CatalogEntry:
    """What the catalog holds of one store."""

    metadata: bytes  #: its metadata objects by key, as compressed JSON
    samples: dict[Subset, bytes]  #: windows with samples, packed (`StoreSamples.pack`)

    @classmethod
    def of(cls, store: PatchStore) -> CatalogEntry:
        """Read the entry of a store that hides no subset."""
        keys = ["zarr.json", *(f"{name}/zarr.json" for name in store.array_names())]
        metadata = {key: storage.read_bytes(storage.join(store.url, key)).decode() for key in keys}
        counts = store.sample_counts()
        packed = {s: StoreSamples.of_grid(store.shape, CHUNK, counts[CODES[s] - 1]).pack() for s in SUBSETS}
        return cls(zlib.compress(json.dumps(metadata).encode()), packed)


def write_catalog(url: str, stores: Mapping[str, str], *, fingerprint: str, report: Callable[[str], None]) -> None:
    """Write the catalog of complete stores, given by the URL of each scene's.

    Args:
        url: of the catalog.
        stores: URL of each scene's store.
        fingerprint: of what the stores were prepared from.
        report: called with a line when an object store does not respond.
    """

    def entry(store: str) -> CatalogEntry:
        return call_with_retry(store, lambda: CatalogEntry.of(PatchStore(store)), report=report)

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        entries = list(pool.map(entry, stores.values()))
    columns: dict[str, list[str] | list[bytes]] = {"scene": list(stores), "metadata": [e.metadata for e in entries]}
    columns |= {subset: [e.samples[subset] for e in entries] for subset in SUBSETS}
    table = pa.table(columns).replace_schema_metadata({_FINGERPRINT: f"{FORMAT} {fingerprint}"})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True)
    storage.write_bytes(url, sink.getvalue().to_pybytes())


class StoreList(Sequence[PatchStore]):
    """Stores that are opened when they are needed; the last `OPEN_STORES` stay open.

    Like `PatchStore`, without the samples of some subsets. Threads may use it at the same time.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        without: tuple[Subset, ...] = (),
        entries: Sequence[CatalogEntry] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.urls, self.without, self._report = tuple(urls), without, report
        self._entries = entries
        self._open: OrderedDict[int, PatchStore] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def read(
        cls,
        urls: Mapping[str, str],
        *,
        catalog: str,
        fingerprint: str | None,
        without: tuple[Subset, ...] = (),
        report: Callable[[str], None] = lambda line: None,
    ) -> StoreList:
        """The stores of some scenes, with the catalog at a URL if it describes the stores of this fingerprint.

        Workspaces of an earlier version have no catalog: their stores are opened one by one, in parallel.
        """
        shown = [subset for subset in SUBSETS if subset not in without]
        found = call_with_retry(catalog, partial(_read_entries, catalog, fingerprint, shown), report=report)
        entries = [found[name] for name in urls] if urls.keys() <= found.keys() else None
        return cls(tuple(urls.values()), without=without, entries=entries, report=report)

    def __reduce__(self) -> tuple[Callable[..., StoreList], tuple[tuple[str, ...]]]:
        """Send the stores to another process, which opens them itself."""
        return partial(StoreList, without=self.without, entries=self._entries), (self.urls,)

    def __len__(self) -> int:
        return len(self.urls)

    @overload
    def __getitem__(self, position: int) -> PatchStore: ...
    @overload
    def __getitem__(self, position: slice) -> StoreList: ...
    def __getitem__(self, position: int | slice) -> PatchStore | StoreList:
        if isinstance(position, slice):
            entries = None if self._entries is None else self._entries[position]
            return StoreList(self.urls[position], without=self.without, entries=entries, report=self._report)
        number = range(len(self))[position]
        with self._lock:
            store = self._open.get(number)
            if store is None:
                store = self._opened(number)
                self._open[number] = store
            self._open.move_to_end(number)
            if len(self._open) > OPEN_STORES:
                self._open.popitem(last=False)
        return store

    def __iter__(self) -> Iterator[PatchStore]:
        return (self[position] for position in range(len(self)))

    def packed(self, subset: Subset) -> list[bytes] | None:
        """Each store's windows with samples of a subset, as the catalog holds them; None without a catalog.

        Raises:
            SubsetHiddenError: the stores were opened without that subset.
        """
        if subset in self.without:
            raise SubsetHiddenError(f"{self.urls[0]}: was opened without the {subset} subset")
        return None if self._entries is None else [entry.samples[subset] for entry in self._entries]

    def _opened(self, number: int) -> PatchStore:
        metadata = None
        if self._entries is not None:
            texts: dict[str, str] = json.loads(zlib.decompress(self._entries[number].metadata))
            metadata = {key: text.encode() for key, text in texts.items()}
        url = self.urls[number]
        return call_with_retry(url, lambda: PatchStore(url, without=self.without, metadata=metadata), report=self._report)


def sample_table(
    stores: Sequence[PatchStore], subset: Subset, *, report: Callable[[str], None] = lambda line: None
) -> SampleTable:
    """The windows of stores that hold samples of a subset: from their catalog, else read from the stores in parallel.

    Raises:
        SubsetHiddenError: the stores were opened without that subset.
    """
    classes = len(stores[0].classes)
    packed = stores.packed(subset) if isinstance(stores, StoreList) else None
    if packed is not None:
        return SampleTable(packed, classes=classes)

    def read(position: int) -> bytes:
        store = stores[position]
        found = call_with_retry(store.url, partial(store.windows_with_samples, subset), report=report)
        return StoreSamples.of_windows(store.shape, CHUNK, found, classes=classes).pack()

    with ThreadPoolExecutor(min(PARALLEL_READS, len(stores))) as pool:
        return SampleTable(pool.map(read, range(len(stores))), classes=classes)


def _read_entries(url: str, fingerprint: str | None, subsets: Sequence[Subset]) -> dict[str, CatalogEntry]:
    """The catalog's entries by scene, without those of other subsets; none if it is missing, damaged or of other stores."""
    try:
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(url)), page_checksum_verification=True)
        if (file.schema_arrow.metadata or {}).get(_FINGERPRINT) != f"{FORMAT} {fingerprint}".encode():
            return {}
        table = file.read(columns=["scene", "metadata", *subsets], use_threads=False)
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        return {}
    except OSError as error:
        if isinstance(error, ConnectionError | TimeoutError | InputError):
            raise
        return {}
    columns = [table[name].to_pylist() for name in subsets]
    entries = (
        CatalogEntry(metadata, dict(zip(subsets, packed, strict=True)))
        for metadata, *packed in zip(table["metadata"].to_pylist(), *columns, strict=True)
    )
    return dict(zip(table["scene"].to_pylist(), entries, strict=True))
