"""Count the requests that reading patch stores makes, as an object store would receive them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from pipeline.io import zarr_store


@dataclass
class Requests:
    """GET requests for shards, by array, and the bytes that they returned. Metadata is not counted."""

    gets: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Start to count again."""
        self.gets.clear()
        self.bytes.clear()


class CountingStore(WrapperStore[Store]):
    """A Zarr store that counts what is read from it."""

    def __init__(self, store: Store, requests: Requests) -> None:
        super().__init__(store)
        self.requests = requests

    def _with_store(self, store: Store) -> CountingStore:
        return CountingStore(store, self.requests)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        array, is_pixels, _ = key.partition("/c/")
        if is_pixels:
            self.requests.gets[array] += 1
            self.requests.bytes[array] += 0 if found is None else len(found)
        return found


@contextmanager
def counted_requests() -> Iterator[Requests]:
    """Count the requests of stores that are opened in the block."""
    requests, plain = Requests(), zarr_store._zarr_store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_store, "_zarr_store", lambda url: CountingStore(plain(url), requests))
        yield requests
