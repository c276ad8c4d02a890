"""Every file of the corpus is read as what it is: values, validity, place and CRS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.case import Case
from tests.corpus.oracle import check
from tests.corpus.table import all_cases, write

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_file_is_read_pixel_for_pixel(case: Case, tmp_path: Path) -> None:
    file, truth = write(tmp_path, case)
    check(case, file, truth)


def test_corpus_has_enough_distinct_cases() -> None:
    assert len(set(CASES)) == len(CASES) >= 300
