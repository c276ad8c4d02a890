"""Fixtures of the tests of model bundles."""

from __future__ import annotations

import pytest

from mibf.bundle.bundle import Bundle
from mibf.bundle.files import to_files
from tests.support.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="module")
def files(bundle: Bundle) -> dict[str, bytes]:
    return to_files(bundle)
