"""Many scenes at a time: open them in parallel, and publish those that are done while others are mapped."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

from jobs.map.scene_map import SceneMap
from jobs.runtime.progress import info
from jobs.runtime.signals import interrupt_thread
from pipeline.io.lease import LeaseLostError
from pipeline.maps.map_store import MapStore

#: Scenes that are opened, planned and checked at a time; this is mostly waiting for storage.
OPENED_AT_A_TIME = 16
#: Scenes that are published at a time, beside mapping.
PUBLISHED_AT_A_TIME = 2
#: Seconds between looks for an interruption, and in which publishing ends after one.
POLL_SECONDS, INTERRUPT_SECONDS = 0.2, 20.0

Given = TypeVar("Given")
Found = TypeVar("Found")


def each_scene(work: Callable[[Given], Found], scenes: Mapping[str, Given]) -> dict[str, Found]:
    """Call a function for every scene, several at a time; return the results by name, or raise the first scene's error."""
    if len(scenes) < 2:
        return {name: work(scene) for name, scene in scenes.items()}
    with ThreadPoolExecutor(OPENED_AT_A_TIME, "mibf-scenes") as pool:
        pending = {name: _submit(pool, work, scene) for name, scene in scenes.items()}
        try:
            return {name: each.result() for name, each in pending.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _submit(pool: ThreadPoolExecutor, work: Callable[..., Found], *arguments: object) -> Future[Found]:
    """Submit a call that has the caller's context: the fields of its log lines and its warnings."""
    return pool.submit(contextvars.copy_context().run, work, *arguments)


class Publisher:
    """Publishes scenes in the background. An error in one scene is reported and raised at the end, after the others.

    From `submit` to `finish` a scene and its ledger belong to the publisher.
    """

    def __init__(self, publish: Callable[[SceneMap, MapStore | None], bool]) -> None:
        """Create; `publish` returns whether the scene is complete."""
        self._publish = publish
        self._pool = ThreadPoolExecutor(PUBLISHED_AT_A_TIME, "mibf-publish")
        self._pending: dict[str, Future[bool]] = {}
        self._running: set[int] = set()  #: threads

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        started = [each for each in self._pending.values() if not each.cancelled()]
        if kind is None or issubclass(kind, Exception):
            wait(started)
            return
        for thread in list(self._running):
            interrupt_thread(thread)
        wait(started, timeout=INTERRUPT_SECONDS)

    def submit(self, scene: SceneMap, work: MapStore | None) -> None:
        """Publish a scene whose tiles are done; `work` is its map store, None if its map is published."""
        self._pending[scene.name] = _submit(self._pool, self._run, scene, work)

    def _run(self, scene: SceneMap, work: MapStore | None) -> bool:
        thread = threading.get_ident()
        self._running.add(thread)
        try:
            return self._publish(scene, work)
        except LeaseLostError:
            raise
        except Exception as error:
            info(f"{scene.name}: could not be published ({error}); the other scenes continue")
            raise
        finally:
            self._running.discard(thread)

    def finish(self) -> list[str]:
        """Wait for all scenes; return the names of those that are complete.

        Raises:
            Exception: the first error of a scene, once all scenes were tried.
        """
        while wait(self._pending.values(), timeout=POLL_SECONDS).not_done:
            pass
        errors = [each.exception() for each in self._pending.values()]
        lost = next((error for error in errors if isinstance(error, LeaseLostError)), None)
        first = lost or next((error for error in errors if error is not None), None)
        if first is not None:
            raise first
        return [name for name, each in self._pending.items() if each.result()]
