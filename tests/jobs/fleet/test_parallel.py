"""Many runs at a time in threads: order, prefixes, number at a time, interruption."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable

import pytest

from jobs.fleet.parallel import run_parallel
from jobs.runtime.progress import info, progress_bar, take_warnings, warn


def test_results_are_in_order_and_lines_have_the_prefix_of_their_run(capsys: pytest.CaptureFixture[str]) -> None:
    together = threading.Barrier(2)

    def run(name: str) -> Callable[[], tuple[str, list[str]]]:
        def call() -> tuple[str, list[str]]:
            together.wait(30)
            info(f"{name} maps\nand continues")
            warn(f"{name} is odd")
            with progress_bar(name, 3, unit="tiles"):
                return name, take_warnings()

        return call

    names = ["a", "b", "c", "d"]
    found = run_parallel([(f"[{name}] ", run(name)) for name in names], parallel=2)
    assert found == [(name, [f"{name} is odd"]) for name in names], "each run has its own warnings"
    lines = capsys.readouterr().err.splitlines()
    for name in names:
        assert [line for line in lines if line.startswith(f"[{name}] ")] == [
            f"[{name}] {name} maps",
            f"[{name}] and continues",
            f"[{name}] warning: {name} is odd",
            f"[{name}] {name} (3 tiles) ...",
        ]
    assert len(lines) == 16
    info("done")
    assert capsys.readouterr().err == "done\n"


def test_at_most_that_many_runs_at_a_time() -> None:
    running, most = [], []

    def run() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    run_parallel([("", run)] * 20, parallel=3)
    assert max(most) <= 3


def test_interruption_reaches_the_running_runs_and_starts_no_other() -> None:
    started, interrupted = threading.Semaphore(0), []

    def run() -> None:
        started.release()
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            interrupted.append(threading.get_ident())
            raise

    def interrupt() -> None:
        started.acquire()
        started.acquire()
        _thread.interrupt_main()  # as Ctrl-C does
        run()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # an earlier test may have left another
    try:
        with pytest.raises(KeyboardInterrupt):
            run_parallel([("", run), ("", run), ("", interrupt), ("", run)], parallel=3)
    finally:
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    assert 2 <= len(interrupted) <= 3, "of the runs that had begun; the last one never did"
