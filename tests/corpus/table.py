"""The table of cases: every feasible pair of levels of each container occurs in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.rasters.header import RasterFile
from tests.corpus.array_files import ARRAY_FORMATS, ArrayFormat
from tests.corpus.case import Case, Truth
from tests.corpus.gdal_files import FORMATS, Format, write_gdal
from tests.corpus.pairwise import pairwise


def all_cases() -> list[Case]:
    """All combinations, in a fixed order."""
    return [case for name, chosen in {**FORMATS, **ARRAY_FORMATS}.items() for case in _cases(name, chosen)]


def _cases(name: str, chosen: Format | ArrayFormat) -> Iterator[Case]:
    factors = {
        "layout": tuple(chosen.layouts),
        "dtype": chosen.dtypes,
        "nodata": chosen.nodata,
        "orientation": chosen.orientations,
        "crs": chosen.crss,
        "scaling": chosen.scalings,
    }
    found = pairwise(factors, lambda choice: Case(name, **choice).feasible)
    yield from (Case(name, **choice, bands=chosen.bands) for choice in found)


def write(folder: Path, case: Case) -> tuple[RasterFile, Truth]:
    """Write the file of a case, and return it as declared in a configuration, with what it holds."""
    truth = Truth(case)
    if case.container in FORMATS:
        return write_gdal(folder, case, truth), truth
    return ARRAY_FORMATS[case.container].write(folder, case, truth), truth
