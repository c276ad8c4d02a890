"""The number of CPUs that this process may use: the only place that decides it. joblib, Dask and standard library."""

from __future__ import annotations

import os

import dask.system
from joblib import cpu_count as container_cpu_count


def cpu_count() -> int:
    """Return how many CPUs this process was given, at least 1: the least of what limits it.

    - The CPUs of the machine, and this process's affinity (as Slurm and `taskset` set it).
    - The quota of its control group, a fraction rounded up: joblib reads that of a container, Dask that of a group below,
      such as a systemd service with `CPUQuota=`.
    - `OMP_NUM_THREADS`, the number of threads that OpenMP libraries, such as torch, start: Slurm scripts set it, and Ray
      sets it to the CPUs that a submitted job's driver was given (`--entrypoint-num-cpus`; 1 if none).
    """
    limits = [container_cpu_count(), dask.system.cpu_count()]
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # "4,2" has a number for each level of nesting
    if wanted.strip().isdecimal() and int(wanted):
        limits.append(int(wanted))
    return max(1, int(min(limits)))
