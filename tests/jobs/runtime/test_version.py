"""A submitted job runs the version of mibf that it was submitted with."""

from __future__ import annotations

import pytest

from jobs.runtime.version import SUBMITTED_WITH, check_version
from mibf import __version__
from mibf.errors import InputError


@pytest.mark.parametrize("submitted_with", [None, __version__])
def test_same_version_or_no_submission_is_accepted(monkeypatch: pytest.MonkeyPatch, submitted_with: str | None) -> None:
    monkeypatch.delenv(SUBMITTED_WITH, raising=False)
    if submitted_with is not None:
        monkeypatch.setenv(SUBMITTED_WITH, submitted_with)
    check_version()


def test_other_version_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_WITH, "0.0.1")
    with pytest.raises(InputError, match=rf"has mibf {__version__}, but the job was submitted with mibf 0\.0\.1"):
        check_version()
