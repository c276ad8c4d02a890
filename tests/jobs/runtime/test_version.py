"""A submitted job runs the version of mibf that it was submitted with."""

from __future__ import annotations

import pytest
import rasterio
import torch

from jobs.runtime.version import SUBMITTED_WITH, check_version, library_versions, pinned_versions, version_changes
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


def test_versions_are_those_of_the_libraries_in_use() -> None:
    found = library_versions()
    assert found["mibf"] == __version__
    assert found["torch"] == torch.__version__
    assert found["gdal"] == rasterio.__gdal_version__
    assert set(found) == {"mibf", "gdal", "proj", "torch", "numpy"}
    assert pinned_versions() == {name: ".".join(found[name].split(".")[:2]) for name in ("gdal", "proj", "torch")}


def test_changes_name_each_library_with_both_versions() -> None:
    then = {"mibf": "1.0", "gdal": "3.9.1", "numpy": "2.0"}
    now = {"mibf": "1.0", "gdal": "3.10.0", "numpy": "2.1", "torch": "2.9"}
    assert version_changes(then, now) == "numpy 2.0 (now 2.1), GDAL 3.9.1 (now 3.10.0)"
    assert version_changes(now, now) == ""
    assert version_changes({}, now) == "", "nothing is recorded"
