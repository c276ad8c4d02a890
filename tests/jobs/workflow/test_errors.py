"""Exit statuses: 1 failed, 2 refused input, 3 failed tiles or corruption, 4 in use by another run."""

from __future__ import annotations

import pytest

from jobs.workflow.errors import BrokenError, StageError, TilesFailedError, exit_status
from mibf.errors import InputError
from pipeline.io.lease import LeaseHeldError, LeaseLostError
from pipeline.io.retry import StorageUnavailableError
from pipeline.maps.ledger import LedgerTakenError
from pipeline.maps.map_store import IncompleteMapError
from pipeline.publishing.publish import PublishError


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InputError, 2),
        (StageError, 1),
        (TilesFailedError, 3),
        (BrokenError, 3),
        (LeaseHeldError, 4),
        (LedgerTakenError, 4),
        (LeaseLostError, 4),
        (StorageUnavailableError, 1),
        (PublishError, 1),
        (IncompleteMapError, 1),
        (ValueError, None),
        (OSError, None),
    ],
)
def test_each_failure_has_its_exit_status(kind: type[Exception], status: int | None) -> None:
    assert exit_status(kind("why")) == status


def test_bug_has_no_exit_status_even_if_an_input_error_caused_it() -> None:
    error = RuntimeError("bug")
    error.__cause__ = InputError("a file")
    assert exit_status(error) is None
