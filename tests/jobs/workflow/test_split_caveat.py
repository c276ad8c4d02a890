"""The caveat of metrics follows from the measured overlap, whatever the method of the split."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.evaluate.stage import UNKNOWN_TRAINING, model_caveat
from jobs.workflow.split_caveat import is_apart, split_caveat
from tests.support.bundles import make_bundle


def split(method: str, overlap: float | None, **sources: float | None) -> dict[str, Any]:
    return {"method": method, "overlap": {"a": 0.0, "b": overlap}, "source_overlap": {"a": {}, "b": sources}}


@pytest.mark.parametrize(
    ("figures", "caveat"),
    [
        (split("blocks", 0.0), None),
        (split("raster", 0.0, radar=0.0), None),
        (split("blocks", None, radar=None), None),
        (split("random", 0.97), "the split is random and leaks: up to 97% of a scene's test patches overlap a training"),
        (split("random", None), "the split is random and leaks: up to 0% of a scene's test patches overlap a training"),
        (split("raster", 1.0), "the raster split leaks: up to 100% of a scene's test patches overlap a training patch"),
        (split("raster", 0.0004), "the raster split leaks: up to 0.04% of a scene's test patches"),
        (
            split("blocks", 0.0, dem=0.25, climate=0.84),
            "up to 84% of a scene's test patches hold a pixel of source 'climate'",
        ),
    ],
)
def test_caveat_follows_from_measured_overlap(figures: dict[str, Any], caveat: str | None) -> None:
    found = split_caveat(figures)
    assert found is None if caveat is None else (found is not None and found.startswith(caveat))
    assert is_apart(figures) == (caveat is None)


def test_split_without_measured_sources_is_not_called_apart() -> None:
    older = {"method": "blocks", "overlap": {"a": 0.0}}
    assert split_caveat(older) is None
    assert not is_apart(older)


def test_evaluation_joins_caveats_of_model_and_split() -> None:
    imported = make_bundle(provenance={"authors": {"checkpoint": "m.pth"}})
    assert model_caveat(imported, split("blocks", 0.0)) == UNKNOWN_TRAINING
    both = model_caveat(imported, split("raster", 0.5))
    assert both is not None
    assert both.startswith(f"{UNKNOWN_TRAINING}; the raster split leaks")
