"""Threads of a map's worker: their number follows from its device and its own CPUs."""

from __future__ import annotations

import pytest

from pipeline.maps.tile_threads import AHEAD, TileThreads


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_worker_on_cpus_reads_one_tile_ahead_and_writes_one(cpus: int) -> None:
    threads = TileThreads.of("cpu", cpus)
    assert (threads.readers, threads.writers) == (1, 1)
    assert (threads.inputs, threads.results, threads.tiles) == (2, 2, 3)


@pytest.mark.parametrize(("cpus", "readers", "writers"), [(1, 1, 1), (2, 1, 1), (4, 2, 1), (8, 4, 2), (16, 8, 4)])
def test_half_of_the_cores_beside_a_gpu_read_and_a_quarter_write(cpus: int, readers: int, writers: int) -> None:
    threads = TileThreads.of("cuda", cpus)
    assert (threads.readers, threads.writers, threads.ahead) == (readers, writers, AHEAD)
    assert threads.tiles == readers + AHEAD + 1 + writers
    assert AHEAD >= 2
