"""Write whole shards of a patch store. A write that is not shard-aligned is refused."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.io import zarr_store


class ShardWriter:
    """Writes whole shards of a created store; safe to use from several threads."""

    def __init__(self, target: zarr_store.ChecksumStore) -> None:
        self.target = target
        self.group = zarr.open_group(store=target, mode="r+")
        self.side = int(cast(int, self.group.attrs["mibf:shard"]))
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def write(self, window: Window, arrays: dict[str, NDArray[Any]]) -> dict[str, tuple[int, str]]:
        """Write one shard of every named array, from (..., height * scale, width * scale) each.

        Returns:
            The size and SHA-256 of every object that was written, by its key.

        Raises:
            ValueError: the window is not a whole shard. Two writers in one shard would silently overwrite
                each other's pixels.
        """
        written = {}
        for name, values in arrays.items():
            array, side = self._array(name), self.side
            assert array.shards is not None
            scale = array.shards[-1] // side
            rows, columns = array.shape[-2] // scale, array.shape[-1] // scale
            expected = (min(side, rows - window.y), min(side, columns - window.x))
            if window.y % side or window.x % side or (window.height, window.width) != expected:
                raise ValueError(
                    f"{name}: {window} is not a whole shard of {side} x {side} pixels; writing it could lose pixels"
                )
            y, x = (slice(part.start * scale, part.stop * scale) for part in window.slices)
            array[..., y, x] = values
            above = "0/" * (array.ndim - 2)
            key = f"{name}/c/{above}{window.y // side}/{window.x // side}"
            written[key] = self.target.written.pop(key)
        return written

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            array = cast("zarr.Array[Any]", self.group[name])
            # Write empty chunks too: an absent shard is then one that was not written.
            self._arrays[name] = array.with_config({"write_empty_chunks": True})
        return self._arrays[name]


def write_samples(target: zarr_store.ChecksumStore, samples: NDArray[np.int32]) -> None:
    """Write the number of samples per (subset, class, window y, window x)."""
    array = cast("zarr.Array[Any]", zarr.open_group(store=target, mode="r+")["samples"])
    array.with_config({"write_empty_chunks": True})[...] = samples
