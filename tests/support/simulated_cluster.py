"""Simulated Ray cluster for tests: all nodes run on this machine, started by Ray's own test utilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster


@contextmanager
def cluster_of(nodes: int, *, gpus: int = 0) -> Iterator[tuple[Cluster, list[Any]]]:
    """Start a Ray cluster: a head without CPUs, and nodes with one CPU and `gpus` logical GPUs each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1, num_gpus=gpus) for _ in range(nodes)]
    finally:
        cluster.shutdown()
