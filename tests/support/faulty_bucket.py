"""An object store in memory with a clock of its own, whose requests fail, lose their answer, or outlast a suspension.

`BucketFiles` has the methods of an fsspec file system that `pipeline.io.storage` calls, so everything above is real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

#: What happens to a request: it has no effect; it has an effect and fails; its answer is lost, and the client itself sends
#: it again, as those of S3 do; it has an effect, then its process is suspended.
Fault = Literal["refused", "unanswered", "repeated", "suspended"]
#: The requests that change something. Processes are suspended after these alone: between a check of the lease and the
#: change that follows, nothing can protect a store that knows no leases.
CHANGES = ("put", "create", "delete", "copy")


class Verbs(Protocol):
    """The requests of an object store. Each is atomic."""

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""

    def create(self, key: str, content: bytes) -> None:
        """Write an object that does not exist; raises `FileExistsError`."""

    def get(self, key: str) -> bytes:
        """Read an object; raises `FileNotFoundError`."""

    def head(self, key: str) -> float:
        """When an object was written; raises `FileNotFoundError`."""

    def list(self, prefix: str) -> list[str]:
        """The keys that start with a prefix."""

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

    def copy(self, key: str, target: str) -> None:
        """Copy an object; raises `FileNotFoundError`."""


class Bucket:
    """A store without faults."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.clock = 1_000_000.0  #: seconds; everything that shares the store shares it

    def put(self, key: str, content: bytes) -> None:
        """See `Verbs.put`."""
        self.objects[key] = bytes(content), self.clock

    def create(self, key: str, content: bytes) -> None:
        """See `Verbs.create`."""
        if key in self.objects:
            raise FileExistsError(key)
        self.put(key, content)

    def get(self, key: str) -> bytes:
        """See `Verbs.get`."""
        return self._object(key)[0]

    def head(self, key: str) -> float:
        """See `Verbs.head`."""
        return self._object(key)[1]

    def list(self, prefix: str) -> list[str]:
        """See `Verbs.list`."""
        return sorted(key for key in self.objects if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See `Verbs.delete`."""
        self.objects.pop(key, None)

    def copy(self, key: str, target: str) -> None:
        """See `Verbs.copy`."""
        self.put(target, self.get(key))

    def _object(self, key: str) -> tuple[bytes, float]:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]


class FaultyBucket:
    """A store of whose requests the next ones meet planned faults."""

    def __init__(self, bucket: Bucket, suspend: Callable[[], None]) -> None:
        self.bucket, self._suspend = bucket, suspend
        self.planned: list[tuple[int, Fault]] = []  #: requests until the fault, from the one before it
        self.met: Counter[str] = Counter()  #: faults that happened, by kind
        self.requests = 0

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        work = getattr(self.bucket, verb)

        def request(*arguments: Any) -> Any:
            self.requests += 1
            fault = self._next(verb)
            if fault == "refused":
                raise OSError(f"503 Slow Down: {verb} {arguments[0]}")
            found = work(*arguments)
            if fault == "repeated":
                found = work(*arguments)
            if fault == "unanswered":
                raise OSError(f"connection reset after {verb} {arguments[0]}")
            if fault == "suspended":
                self._suspend()
            return found

        return request

    def _next(self, verb: str) -> Fault | None:
        if not self.planned:
            return None
        left, fault = self.planned[0]
        if left or (fault == "suspended" and verb not in CHANGES):
            self.planned[0] = max(0, left - 1), fault
            return None
        del self.planned[0]
        self.met[fault] += 1
        return fault


class BucketFiles:
    """The methods of an fsspec file system that `pipeline.io.storage` calls, on the verbs of a store."""

    def __init__(self, store: Verbs) -> None:
        self.store = store

    def invalidate_cache(self, path: str = "") -> None:
        """Nothing is cached."""

    def cat_file(self, path: str) -> bytes:
        """Read a file."""
        return self.store.get(path)

    def pipe_file(self, path: str, content: bytes, mode: str = "overwrite") -> None:
        """Write a file; with mode `create`, only if it does not exist."""
        (self.store.create if mode == "create" else self.store.put)(path, content)

    def put_file(self, local: str, path: str) -> None:
        """Upload a file."""
        self.store.put(path, Path(local).read_bytes())

    def cp_file(self, path: str, target: str) -> None:
        """Copy a file."""
        self.store.copy(path, target)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self.store.delete(path)

    def rm(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or with `recursive` a folder: one request per object, and any of them may fail."""
        for key in [path, *(self.store.list(f"{path}/") if recursive else [])]:
            self.store.delete(key)

    def exists(self, path: str) -> bool:
        """Whether a file or folder exists."""
        return any(key == path or key.startswith(f"{path}/") for key in self.store.list(path))

    def ls(self, path: str, detail: bool = True) -> list[str]:
        """The files and folders in a folder."""
        assert not detail
        start = f"{path.rstrip('/')}/"
        return sorted({start + key[len(start) :].partition("/")[0] for key in self.store.list(start)})

    def modified(self, path: str) -> datetime:
        """When a file was last written; stores report whole seconds."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=int(self.store.head(path)))
