"""Workers wait for the GPUs of a pool that Ray's autoscaler starts from zero, and say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ray_cluster import Cluster, cluster

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]
#: Prints what each worker gets, or why it gets nothing.
PROGRAM = """
import sys
from jobs.config.config import ResourcesSection
from jobs.runtime import ray_cluster, ray_start
from jobs.runtime.worker_resources import GpusUnavailableError

ray_start.GPU_SECONDS = 0.1  # less than a node takes to start, so that the wait is always reported
ray_cluster.ensure(workers=1)
try:
    print(ray_cluster.share_cluster(ResourcesSection(gpus=True, gpu_wait_minutes=float(sys.argv[2])), int(sys.argv[1])))
except GpusUnavailableError as error:
    print(error)
"""


def share(on: Cluster, workers: int, *, minutes: float) -> tuple[str, str]:
    """Share a cluster among workers with a GPU each, in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(workers), str(minutes)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=on.environment | {"RAY_ADDRESS": f"{on.head.address}:{on.port}"},
    )
    return done.stdout, done.stderr


def test_workers_wait_for_a_pool_at_zero_and_give_up_in_time(tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster", nodes=0, cpus=0, pool=1) as on:
        found, log = share(on, 1, minutes=5)
        assert found == "1 worker with a GPU each\n"
        assert "waiting for 1 GPU with a CPU each since" in log
        assert "for at most 5 min; the cluster has 0, and autoscaling is asked for the others" in log
        found, log = share(on, 2, minutes=0.1)
        assert "2 GPUs with a CPU each were not free within 0.1 min (resources.gpu_wait_minutes); the cluster has 1" in found
