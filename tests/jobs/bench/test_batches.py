"""`mibf bench batches`: complete tables and pinning to one core. No measured value is asserted."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest
import torch
from typer.testing import CliRunner

from jobs.bench import batches
from jobs.cli.common import app
from tests.support.scenes import SmallScene


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can pin a process to cores")
def test_one_core_pins_all_threads_and_restores_affinity() -> None:
    before, threads, seen = os.sched_getaffinity(0), torch.get_num_threads(), []
    go, end = threading.Event(), threading.Event()

    def record_affinity() -> None:
        go.wait()
        seen.append(os.sched_getaffinity(0))
        end.wait()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=record_affinity)
    thread.start()
    with batches.on_cores(1) as held:
        assert held
        assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
        go.set()
        while not seen:
            pass
    end.set()
    thread.join()
    assert os.sched_getaffinity(0) == seen[1] == before
    assert len(seen[0]) == 1
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_bench_batches_table_has_all_cases_with_ratio_and_wait_share() -> None:
    result = batches.bench_batches(None, bands=[3, 1], rounds=1, steps=3, side=256)
    assert result.samples == 240 * 256
    assert [row.what for row in result.rows] == [
        "loader",
        "batches",
        "with threads",
        "balanced, augmented",
        "training, with threads",
        "training, without threads",
    ]
    assert result.rows[0].ratio == result.rows[-1].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert [row.waits is None for row in result.rows] == [True] * 4 + [False] * 2
    assert all(0 < row.waits < 1 for row in result.rows if row.waits is not None)
    text = "\n".join(result.lines())
    assert all(row.what in text for row in result.rows)
    json.dumps(result.to_json())


def test_bench_batches_without_prepared_stores_exits_2(scene: SmallScene) -> None:
    result = CliRunner().invoke(app, ["bench", "batches", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare` first" in result.output
