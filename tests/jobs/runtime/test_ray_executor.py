"""Ray tasks follow the rules of every executor, and survive lost processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from jobs.runtime import ray_cluster
from jobs.runtime.ray_executor import IN_FLIGHT, RETRIES, RayExecutor
from mibf.errors import InputError
from pipeline.io import checksums
from pipeline.parallel.executor import MERGED_AT_ONCE, ClusterLostError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RayExecutor]:
    """A local Ray with two CPUs, as mibf starts it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray_cluster.ensure(workers=2)
        yield RayExecutor()
        ray.shutdown()


def test_every_result_is_taken_once(on_ray: RayExecutor) -> None:
    taken: list[int] = []
    on_ray.each(lambda shared, item: shared * item, 3, range(IN_FLIGHT + 10), taken.append)
    assert sorted(taken) == [3 * i for i in range(IN_FLIGHT + 10)]


@pytest.mark.parametrize("items", [0, 1, MERGED_AT_ONCE, MERGED_AT_ONCE**2 + 3])
def test_parts_are_merged_to_one_total_of_all_items(on_ray: RayExecutor, items: int) -> None:
    taken: list[int] = []

    def add(total: dict[int, int], part: dict[int, int]) -> dict[int, int]:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
        return total

    total = on_ray.reduce(lambda _, item: (item, {item % 3: 1, 9: item}), None, range(items), taken.append, add)
    assert sorted(taken) == list(range(items))
    expected = {key: len(range(key, items, 3)) for key in range(3)} | {9: sum(range(items))}
    assert (total or {}) == ({key: count for key, count in expected.items() if count or key == 9} if items else {})


def test_failure_is_the_original_exception_and_nothing_runs_afterwards(on_ray: RayExecutor, tmp_path: Path) -> None:
    def work(folder: Path, item: int) -> None:
        if item == 3:
            raise FileNotFoundError(2, "no such file", f"item {item}")
        (folder / f"{item}").touch()

    with pytest.raises(FileNotFoundError, match="item 3") as failure:
        on_ray.each(work, tmp_path, range(500), lambda _: None)
    assert failure.value.errno == 2
    written = len(list(tmp_path.iterdir()))
    assert written < 500
    on_ray.each(lambda _, item: item, None, range(4), lambda _: None)
    assert len(list(tmp_path.iterdir())) == written


def test_refused_input_is_raised_as_such(on_ray: RayExecutor) -> None:
    def refuse(_: None, item: int) -> tuple[int, int]:
        raise InputError(f"item {item}: is wrong")

    with pytest.raises(InputError, match=r"item \d: is wrong"):
        on_ray.each(refuse, None, range(3), lambda _: None)
    with pytest.raises(InputError, match=r"item \d: is wrong"):
        on_ray.reduce(refuse, None, range(3), lambda _: None, lambda total, _: total)


def test_call_whose_process_was_killed_is_repeated(on_ray: RayExecutor, tmp_path: Path) -> None:
    def die_once(folder: Path, item: int) -> int:
        if item == 2 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    taken: list[int] = []
    on_ray.each(die_once, tmp_path, range(6), taken.append)
    assert sorted(taken) == list(range(6))


def test_call_that_always_kills_its_process_ends_the_stage_not_the_command(on_ray: RayExecutor) -> None:
    def die(_: None, __: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ClusterLostError, match=f"lost the process of a task {RETRIES + 1} times"):
        on_ray.each(die, None, [0], lambda _: None)


@pytest.mark.usefixtures("on_ray")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.write_bytes(b"other pixels"), "is another file there"),
        (Path.unlink, r"cannot be read there \(FileNot"),
    ],
    ids=["other", "missing"],
)
def test_node_without_an_input_is_named_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], problem: str
) -> None:
    """On one machine all nodes find the same files: here the file changes after the driver's look."""
    file = tmp_path / "sentinel.tif"
    file.write_bytes(b"pixels")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    ray_cluster.check_shared([str(file)])
    look = checksums.input_fingerprint

    def look_and_change(url: str) -> str:
        found = look(url)
        change(file)
        return found

    monkeypatch.setattr(checksums, "input_fingerprint", look_and_change)
    with pytest.raises(InputError, match=rf"Ray node .*sentinel\.tif {problem}.*Put inputs and workspace where all nodes"):
        ray_cluster.check_shared([str(file)])


@pytest.mark.usefixtures("on_ray")
def test_node_that_has_just_ended_is_not_a_node_without_mibf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lists a node for some seconds after its end; what is asked of it cannot be scheduled."""
    (tmp_path / "sentinel.tif").touch()
    ended = {"NodeID": "0a" * 28, "NodeManagerAddress": "192.0.2.9", "Alive": True, "Resources": {"CPU": 1.0}}
    nodes = ray.nodes
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes(), ended])
    ray_cluster.check_shared([str(tmp_path / "sentinel.tif")])
    assert ray_cluster._ask_nodes(lambda: None)[1] == ["192.0.2.9"]
