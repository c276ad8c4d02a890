"""Processes of measurements end with the command."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from jobs.bench.harness.processes import process_pool, run_in_subprocess


def test_interruption_ends_busy_processes() -> None:
    started, found = time.monotonic(), []

    def interrupted() -> None:
        with process_pool(1) as pool:
            found.append(psutil.Process(pool.submit(os.getpid).result()))
            pool.submit(time.sleep, 300)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 100
    assert not found[0].is_running()


def test_function_runs_in_another_process() -> None:
    assert run_in_subprocess(os.getpid) != os.getpid()
