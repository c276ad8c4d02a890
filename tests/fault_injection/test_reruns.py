"""Random sequences of work and faults on one workspace in an object store lose nothing and publish nothing false.

Runs prepare shards, map tiles, fail, are killed or suspended, lose the lease to others, publish and rerun; inputs change;
requests are refused or lose their answers. The lease, the ledger, the selection of tiles, the publication and the access to
the store are mibf's own; in place of networks and rasters there are strings, so that a step takes milliseconds. What a run
does between them follows `jobs.map.stage` step by step.

`MIBF_SOAK=1` tries more and longer sequences, and prints what they have met (`make soak`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.io import lease as lease_module
from pipeline.io import retry, storage
from pipeline.io.lease import EXPIRY, LeaseHeldError, LeaseLostError
from pipeline.io.retry import StorageUnavailableError
from pipeline.maps.ledger import Ledger, LedgerEvent, LedgerTakenError
from pipeline.maps.products import product
from pipeline.maps.tile_checksums import event_count, tile_checksums, tiles_done_since
from pipeline.maps.tile_selection import classify, select_tiles
from pipeline.publishing import publish as publication
from tests.support.faulty_bucket import Bucket, BucketFiles, Fault, FaultyBucket
from tests.support.ledgers import COLUMNS, earlier_segment

ROOT = "s3://bucket/work"
MAP = f"{ROOT}/maps/scene/main"
LEDGER, WORK = f"{MAP}/ledger", f"{MAP}/map.zarr"
TILES = [Window(64 * row, 64 * column, 64, 64) for row in range(2) for column in range(2)]
PRODUCTS = (product("class"), product("confidence"))
#: What ends a command with a message; anything else is a bug.
ENDS = (LeaseHeldError, LeaseLostError, LedgerTakenError, StorageUnavailableError, OSError, publication.PublishError)
FAULTS = st.sampled_from(["refused", "unanswered", "repeated", "suspended"])
#: Longest pause of a process, in seconds: longer than any lease.
PAUSE = 3 * EXPIRY
SOAK = bool(os.environ.get("MIBF_SOAK"))
#: What all sequences of this session have met.
RECORD: Counter[str] = Counter()


def digest(content: bytes) -> str:
    """The checksum of an object."""
    return hashlib.sha256(content).hexdigest()[:16]


def key_of(window: Window) -> str:
    """The name of a tile and its shard."""
    return f"y{window.y}_x{window.x}"


class Run:
    """One command on the workspace: its lease and, for a map, its view of the ledger and of the tiles to map."""

    number = 0

    def __init__(self, model: int = 0) -> None:
        """Acquire the workspace for maps with a model.

        Raises:
            Exception: one of `ENDS`.
        """
        Run.number += 1
        self.name, self.model = f"run-{Run.number}", f"model {model}"
        self.lease = lease_module._StoreLease(ROOT, self.name)
        self.lease.take()
        self.open = ExitStack()
        self.appended: list[str] = []  #: ids of events, in order
        self.events = 0

    def start_map(self) -> None:
        """Complete an interrupted publication, plan the tiles, read the ledger, and open or create the map store."""
        publication.finish_interrupted(MAP, self.lease)
        digests = {window: json.loads(read(f"{ROOT}/store/{key_of(window)}.json"))["digest"] for window in TILES}
        self.planned = {window: f"{self.model}, {found}" for window, found in digests.items()}
        self.ledger = Ledger.open(LEDGER)
        self.open.enter_context(self.ledger.writing(self.lease))
        item = published_item()
        self.events_published = None if item is None else item.get("events")
        self.published = {} if item is None else tile_checksums(self.ledger, self.events_published)
        if self.events_published is None:  # an earlier version: known only if nothing was mapped since
            pixels = published_pixels()
            same = {window: digest(pixels.get(key_of(window), "").encode()) for window in TILES}
            self.published = self.published if self.published == same else {}
        if storage.exists(f"{WORK}/zarr.json"):
            return
        for window, state in classify(self.planned, self.ledger.last()).items():
            if state == "done" and self.published.get(window) != self.ledger.last()[window].checksum:
                self.record(window, "pending", cause="pixels lost")
        self.lease.check()
        storage.write_json(f"{WORK}/zarr.json", {})

    def record(self, window: Window, state: Any, *, cause: str = "", checksum: str = "") -> None:
        """Append an event to the ledger."""
        self.events += 1
        event = LedgerEvent(
            tile=Tile("scene", window),
            state=state,
            fingerprint=self.planned[window],
            run=self.name,
            cause=cause,
            checksum=checksum,
            worker=f"{self.name}/{self.events}",
        )
        self.appended.append(event.worker)
        self.ledger.append([event])

    def to_map(self) -> list[Window]:
        """The tiles that are not done."""
        return select_tiles(self.planned, self.ledger.last(), now=0.0).tiles

    def map(self, window: Window) -> None:
        """Map a tile, as a worker and then the driver do."""
        pixels = f"{self.model}, {digest(read(f'{ROOT}/store/{key_of(window)}'))}".encode()
        self.lease.for_workers().check()
        storage.write_bytes(f"{WORK}/{key_of(window)}", pixels)
        self.record(window, "done", checksum=digest(pixels))

    def publish(self) -> bool:
        """Publish a complete map and remove the map store; False, with tiles queued, if pixels differ from the ledger."""
        self.ledger.flush()
        last, before = self.ledger.last(), published_pixels()
        events = self.events_published
        newer = frozenset() if events is None else tiles_done_since(self.ledger, events)
        pixels = {}
        for window in TILES:
            if window not in newer and self.published.get(window) == last[window].checksum:
                pixels[key_of(window)] = before.get(key_of(window), "")
                continue
            try:
                pixels[key_of(window)] = read(f"{WORK}/{key_of(window)}").decode()
            except FileNotFoundError:
                pixels[key_of(window)] = ""
        wrong = [window for window in TILES if digest(pixels[key_of(window)].encode()) != last[window].checksum]
        for window in wrong:
            self.record(window, "pending", cause="pixels differ")
        if wrong:
            return False
        content = json.dumps(pixels).encode()
        names = [f"{each.name}.tif" for each in PRODUCTS]
        files = dict.fromkeys(names, hashlib.sha256(content).hexdigest())
        with publication.staging_folder(MAP, self.name, self.lease) as staging:
            for name in names:
                storage.write_bytes(f"{staging}/{name}", content)
            item = {"files": files, "tiles": self.planned_of(), "events": event_count(self.ledger)}
            publication.replace_published(MAP, staging, item, new=names, kept=[], lease=self.lease)
        self.lease.check()
        storage.remove(f"{WORK}/zarr.json")
        self.lease.check()
        storage.remove(WORK)
        return True

    def planned_of(self) -> dict[str, str]:
        """The fingerprints by tile name."""
        return {key_of(window): fingerprint for window, fingerprint in self.planned.items()}

    def kill(self) -> None:
        """End as a killed process does: what it has buffered is gone, its lease stays."""
        if hasattr(self, "ledger"):
            self.ledger._buffer.clear()

    def end(self) -> None:
        """End as a command does: write what is buffered, release the workspace."""
        try:
            self.open.close()
        except ENDS:
            RECORD["ends that could not write the ledger"] += 1
        self.lease.release()


def read(url: str) -> bytes:
    """Read an object, with retries as everywhere."""
    return retry.call_with_retry(url, lambda: storage.read_bytes(url))


def published_item() -> Any:
    """The item of the published map; None without one."""
    try:
        return json.loads(read(f"{MAP}/item.json"))
    except FileNotFoundError:
        return None


def published_pixels() -> dict[str, str]:
    """The pixels of the published map by tile; empty without one."""
    item = published_item()
    if item is None:
        return {}
    found: dict[str, str] = json.loads(read(f"{MAP}/{next(iter(item['files']))}"))
    return found


class Reruns(RuleBasedStateMachine):
    """Runs and faults on one workspace."""

    def __init__(self) -> None:
        super().__init__()
        RECORD["examples"] += 1
        self.bucket = Bucket()
        self.faulty = FaultyBucket(self.bucket, self.suspended)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(storage, "open_url", lambda url: (BucketFiles(self.faulty), url))
        self.patch.setattr(lease_module, "_monotonic_seconds", lambda: self.bucket.clock)
        self.patch.setattr(lease_module._StoreLease, "_beat", lambda _: None)  # renewed by a rule
        self.patch.setattr(retry, "FIRST_WAIT", 0.0)
        self.runs: list[Run] = []
        self.written: list[str] = []  #: ids of events whose `flush` has returned
        self.versions = dict.fromkeys(TILES, 0)
        self.model = 0
        self.taken: bytes | None = None  #: the item that a run has published while another was suspended

    def teardown(self) -> None:
        """Without further faults, one rerun makes the whole map, and a second has nothing to do."""
        try:
            self.faulty.planned.clear()
            self.bucket.clock += PAUSE
            for run in self.runs:
                run.kill()
            self.complete()
            inputs = {key_of(w): digest(self.bucket.get(f"{ROOT}/store/{key_of(w)}")) for w in TILES}
            assert published_pixels() == {key: f"model {self.model}, {found}" for key, found in inputs.items()}
            again = Run(self.model)
            again.start_map()
            assert not again.to_map()
            again.end()
            self.events_are_kept()
        finally:
            RECORD.update(self.faulty.met)
            RECORD["requests"] += self.faulty.requests
            self.patch.undo()

    def complete(self) -> None:
        """Prepare, map and publish everything that is not, in one run, as a scheduled rerun does."""
        self.prepare_all(changed=None)
        run = Run(self.model)
        try:
            run.start_map()
            for _ in range(2):  # pixels that differ are mapped again
                for window in run.to_map():
                    run.map(window)
                if run.publish():
                    RECORD["publications"] += 1
                    break
        except Exception:
            run.end()
            raise
        run.end()

    def prepare_all(self, *, changed: Window | None) -> None:
        """Write the shards that are missing or whose input has changed, each with its record last."""
        run = Run()
        try:
            versions = self.versions | ({} if changed is None else {changed: self.versions[changed] + 1})
            for window in TILES:
                content = f"input {versions[window]} of {key_of(window)}".encode()
                record = f"{ROOT}/store/{key_of(window)}.json"
                known = json.loads(read(record)) if storage.exists(record) else {}
                if known.get("digest") == digest(content) == digest(read(f"{ROOT}/store/{key_of(window)}")):
                    continue
                run.lease.check()
                storage.remove(record)
                run.lease.check()
                storage.write_bytes(f"{ROOT}/store/{key_of(window)}", content)
                run.lease.check()
                storage.write_json(record, {"digest": digest(content)})
                self.versions[window] = versions[window]
        finally:
            run.lease.release()

    def suspended(self) -> None:
        """A process is suspended for longer than its lease; meanwhile another run takes over and finishes everything."""
        faults, self.faulty.planned = self.faulty.planned, []
        self.bucket.clock += PAUSE
        self.complete()
        self.taken = self.bucket.get(f"{MAP}/item.json")
        self.faulty.planned = faults
        RECORD["takeovers"] += 1

    def attempt(self, work: Callable[[], object], run: Run | None = None) -> None:
        """Do a step; an error that ends a command ends its run."""
        RECORD["steps"] += 1
        self.taken = None
        try:
            work()
        except (*ENDS, InputError) as error:
            RECORD[f"ended by {type(error).__name__}"] += 1
            if isinstance(error, LedgerTakenError):
                pytest.fail("a run that has lost its lease has written to the ledger")
            if run is not None:
                self.runs.remove(run)
                run.end()
        if self.taken is not None:
            kept = self.bucket.objects.get(f"{MAP}/item.json", (b"", 0.0))[0]
            assert kept == self.taken, "a run that has lost its lease has changed the map"
        if run is not None and run in self.runs and not run.ledger._buffer:
            self.written += run.appended
            run.appended.clear()

    @initialize()
    def prepare(self) -> None:
        """The scene was prepared once."""
        self.prepare_all(changed=None)

    @precondition(lambda self: len(self.runs) < 2)
    @rule()
    def start(self) -> None:
        """Start a run; it is refused while another holds the workspace."""

        def work() -> None:
            run = Run(self.model)
            self.runs.append(run)
            run.start_map()

        before = list(self.runs)
        self.attempt(work, None)
        for run in self.runs:
            if run not in before and not hasattr(run, "ledger"):  # acquired, but could not read what it needs
                self.runs.remove(run)
                run.end()

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1), tile=st.integers(0, 3))
    def map_tile(self, which: int, tile: int) -> None:
        """Map one of the tiles that are not done."""
        run = self.runs[which % len(self.runs)]
        left = run.to_map()
        if left:
            self.attempt(lambda: run.map(left[tile % len(left)]), run)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1), tile=st.integers(0, 3))
    def fail_tile(self, which: int, tile: int) -> None:
        """A tile fails."""
        run = self.runs[which % len(self.runs)]
        left = run.to_map()
        if left:
            self.attempt(lambda: run.record(left[tile % len(left)], "failed", cause="out of memory"), run)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1))
    def flush(self, which: int) -> None:
        """Write the ledger."""
        run = self.runs[which % len(self.runs)]
        self.attempt(run.ledger.flush, run)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1))
    def publish(self, which: int) -> None:
        """Publish, if all tiles are done."""
        run = self.runs[which % len(self.runs)]
        if not run.to_map():
            done: list[bool] = []
            self.attempt(lambda: done.append(run.publish()), run)
            if done == [True]:
                RECORD["publications"] += 1
                self.runs.remove(run)
                self.attempt(run.end)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1))
    def end(self, which: int) -> None:
        """End a run."""
        run = self.runs.pop(which % len(self.runs))
        self.attempt(run.end)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1))
    def kill(self, which: int) -> None:
        """Kill a run: what it has buffered is gone, its lease stays."""
        self.runs.pop(which % len(self.runs)).kill()
        RECORD["kills"] += 1

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 1))
    def renew(self, which: int) -> None:
        """Renew a lease."""
        lease = self.runs[which % len(self.runs)].lease
        if lease._lost is None:
            lease._renew()

    @rule(seconds=st.sampled_from([1.0, EXPIRY / 2, EXPIRY + 1, PAUSE]))
    def wait(self, seconds: float) -> None:
        """Time passes without a renewal."""
        self.bucket.clock += seconds

    @rule(tile=st.integers(0, 3))
    def change_input(self, tile: int) -> None:
        """An input changes, and is prepared again."""
        self.attempt(lambda: self.prepare_all(changed=TILES[tile]))

    @rule()
    def upgrade(self) -> None:
        """Another model is trained: every tile is stale."""
        self.model += 1

    @rule(requests=st.integers(0, 12), fault=FAULTS)
    def plan_fault(self, requests: int, fault: Fault) -> None:
        """One of the next requests meets a fault."""
        self.faulty.planned.append((requests, fault))

    @rule(requests=st.integers(0, 150), fault=FAULTS, changed=st.integers(0, 3))
    def command_with_fault(self, requests: int, fault: Fault, changed: int) -> None:
        """A complete command meets a fault at any of its requests; the leases of earlier runs have expired."""
        self.bucket.clock += PAUSE
        for run in self.runs:
            run.kill()
        self.runs.clear()
        self.attempt(lambda: self.prepare_all(changed=TILES[changed]))
        self.bucket.clock += PAUSE
        self.faulty.planned = [(requests, fault)]
        if fault == "repeated":
            self.complete()  # a client that repeats a request by itself disturbs nothing
        else:
            self.attempt(self.complete)
        self.faulty.planned.clear()

    @invariant()
    def published_map_is_complete(self) -> None:
        """A published map has all files of one map, and pixels of the inputs whose fingerprints its item names."""
        objects: Mapping[str, tuple[bytes, float]] = self.bucket.objects
        if f"{MAP}/item.json" not in objects:
            return
        item = json.loads(objects[f"{MAP}/item.json"][0])
        files = {name: objects[f"{MAP}/{name}"][0] for name in item["files"]}
        assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == item["files"]
        contents = [json.loads(content) for content in files.values()]
        assert all(content == contents[0] for content in contents), "a mixture of two maps"
        assert contents[0] == item["tiles"], "pixels of other inputs or another model than the item says"

    @rule()
    def events_are_kept(self) -> None:
        """The ledger is readable and has every event whose write was confirmed, once."""
        faults, self.faulty.planned = self.faulty.planned, []
        try:
            workers = Ledger.open(LEDGER).table()["worker"].to_pylist()
        finally:
            self.faulty.planned = faults
        assert set(self.written) <= set(workers)
        assert len(workers) == len(set(workers)), "an event was written twice"


#: An event of an earlier version: its state, whether under today's fingerprint, and its attempt, 0 where it is not known.
EARLIER = st.tuples(st.sampled_from(["pending", "done", "failed", "stale"]), st.booleans(), st.integers(0, 2))


class EarlierReruns(Reruns):
    """The same on a workspace that an earlier version has left, with its ledger and, in part, its pixels."""

    @initialize(
        histories=st.tuples(*[st.lists(EARLIER, max_size=3)] * len(TILES)),
        finished=st.sets(st.sampled_from(TILES)) | st.just(set(TILES)),
        kept=st.sampled_from(["map store", "published map", "nothing"]),
        damaged=st.sampled_from([None, *TILES]),
    )
    def leave(
        self,
        histories: tuple[list[tuple[str, bool, int]], ...],
        finished: set[Window],
        kept: str,
        damaged: Window | None,
    ) -> None:
        """Leave a ledger of several segments, and the pixels of the tiles that are done; today's code takes over."""
        self.prepare_all(changed=None)
        today = {w: f"model {self.model}, {digest(self.bucket.get(f'{ROOT}/store/{key_of(w)}'))}" for w in TILES}
        rows = [
            self.earlier_event(window, f"earlier/{number}/{key_of(window)}", today[window], *event)
            for window, history in zip(TILES, histories, strict=True)
            for number, event in enumerate([*history, *([("done", True, 0)] if window in finished else [])])
        ]
        for number, part in enumerate(filter(None, (rows[::2], rows[1::2])), 1):
            self.bucket.put(f"{LEDGER}/{number:06d}.parquet", earlier_segment(part))
        self.written += [str(row["worker"]) for row in rows]
        last = {(row["y"], row["x"]): row for part in (rows[::2], rows[1::2]) for row in part}
        of_tiles = {window: last.get((window.y, window.x)) for window in TILES}
        done = {w for w, row in of_tiles.items() if row is not None and row["state"] == "done"}
        current = {w for w in done if (of_tiles[w] or {})["fingerprint"] == today[w]}
        pixels = {w: today[w] if w in current else "pixels of before" for w in done}
        if damaged in pixels and kept != "published map":
            pixels[damaged] = "damaged"
        if kept == "published map" and current == set(TILES):
            self.publish_earlier(today)
        elif kept == "map store":
            for window, content in pixels.items():
                self.bucket.put(f"{WORK}/{key_of(window)}", content.encode())
            self.bucket.put(f"{WORK}/zarr.json", b"{}")
        restored = current if kept == "map store" or f"{MAP}/item.json" in self.bucket.objects else set()
        self.check_takeover(restored, today)

    def earlier_event(
        self, window: Window, worker: str, today: str, state: str, is_current: bool, attempt: int
    ) -> dict[str, object]:
        """A row of the ledger as an earlier version wrote it."""
        fingerprint = today if is_current else "hash of the source code"
        pixels = today if is_current else "pixels of before"
        return dict.fromkeys(COLUMNS, "") | {
            **dict.fromkeys(["attempt", "pixels", "rows"], 0),
            **dict.fromkeys(["read_seconds", "compute_seconds", "write_seconds"], 0.0),
            **dict.fromkeys(["started", "finished"]),
            **{name: getattr(window, name) for name in ("y", "x", "height", "width")},
            **{"scene": "scene", "state": state, "fingerprint": fingerprint, "worker": worker, "attempt": attempt},
            "checksum": digest(pixels.encode()) if state == "done" else "",
        }

    def publish_earlier(self, today: Mapping[Window, str]) -> None:
        """Leave a published map without a map store."""
        content = json.dumps({key_of(window): pixels for window, pixels in today.items()}).encode()
        for made in PRODUCTS:
            self.bucket.put(f"{MAP}/{made.name}.tif", content)
        files = {f"{made.name}.tif": hashlib.sha256(content).hexdigest() for made in PRODUCTS}
        item = {"files": files, "tiles": {key_of(window): pixels for window, pixels in today.items()}}
        self.bucket.put(f"{MAP}/item.json", json.dumps(item).encode())

    def check_takeover(self, kept: set[Window], today: Mapping[Window, str]) -> None:
        """A run of today keeps the tiles that are done under today's fingerprint and have their pixels, and no others."""
        run = Run(self.model)
        run.start_map()
        assert run.planned == today
        assert set(run.to_map()) == set(TILES) - kept
        run.end()
        self.written += run.appended
        RECORD["takeovers of earlier workspaces"] += 1
        RECORD["tiles of earlier versions kept"] += len(kept)
        self.events_are_kept()


def teardown_module() -> None:
    """Print what the sequences have met."""
    if SOAK:
        print(json.dumps(dict(sorted(RECORD.items())), indent=1))


MARKS = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(0 if SOAK else 1800)]
SETTINGS = settings(
    max_examples=1000 if SOAK else 200,
    stateful_step_count=500 if SOAK else 75,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
)
TestReruns, TestEarlierReruns = Reruns.TestCase, EarlierReruns.TestCase
for case, share in ((TestReruns, 1), (TestEarlierReruns, 2)):
    case.pytestmark = MARKS
    case.settings = settings(SETTINGS, max_examples=SETTINGS.max_examples // share)
