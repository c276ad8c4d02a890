"""Work items on several threads: each once, torch's number of threads restored, failures raised."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from mibf.inference.thread_pool import parallel_for


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_item_is_processed_once_on_one_torch_thread(threads: int, count: int) -> None:
    seen: list[tuple[int, int]] = []
    parallel_for(lambda item: seen.append((item, torch.get_num_threads())), range(count))
    assert sorted(item for item, _ in seen) == list(range(count))
    assert {number for _, number in seen} <= {1}
    assert torch.get_num_threads() == threads


def test_failure_of_an_item_is_raised_and_items_not_started_are_cancelled(threads: int) -> None:
    started: list[int] = []

    def fail(item: int) -> None:
        started.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        parallel_for(fail, range(10_000))
    assert len(started) < 10_000
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_items_run_at_the_same_time(threads: int) -> None:
    together = threading.Barrier(threads, timeout=30)
    parallel_for(lambda _: together.wait(), range(threads))
