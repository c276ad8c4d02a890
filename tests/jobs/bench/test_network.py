"""`mibf bench network`: complete tables and refused options. No measured value is asserted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.bench.network import _random, bench_network
from jobs.cli.common import app, parse_bands
from mibf.inference.cell import CELL


@pytest.mark.parametrize("bands", ["", "64+", "a+2", "0+2", "0"])
def test_bench_network_with_invalid_bands_exits_2(bands: str) -> None:
    result = CliRunner().invoke(app, ["bench", "network", "--bands", bands])
    assert result.exit_code == 2
    assert f"--bands {bands}: give the band count of each source" in result.output


@pytest.mark.parametrize(("text", "bands", "without"), [("64", [64], ("noise", "relation")), ("64+2", [64, 2], ())])
def test_bench_network_of_one_source_has_no_relation(text: str, bands: list[int], without: tuple[str, ...]) -> None:
    assert parse_bands(text) == bands
    assert _random(bands, CELL).network.spec.without == without


@pytest.mark.slow
def test_bench_network_table_has_all_cases_with_ratios() -> None:
    found = bench_network(None, bands=[[3, 1]], rounds=1, sides=(CELL, 2 * CELL))
    (result,) = found.results
    ways: list[tuple[str, Any]] = [(row.what, row.precision) for row in result.rows]
    assert ways == [
        ("patch by patch", "float32"),
        ("loader loop", "float32"),
        ("dense, torch", "float32"),
        ("dense", "float32"),
        ("dense, torch", "bf16"),
        ("dense", "bf16"),
        ("plain training", "float32"),
        ("training", "float32"),
        ("training", "bf16"),
    ]
    rows = {(row.what, row.precision): row for row in result.rows}
    assert rows["patch by patch", "float32"].ratios["patch by patch"] == 1.0
    assert all(row.rate > 0 and row.multiply_adds > 0 for row in result.rows)
    # Counted, not timed: dense inference computes overlapping patches once.
    assert rows["dense", "float32"].multiply_adds < 0.8 * rows["patch by patch", "float32"].multiply_adds
    assert result.largest_difference < 1e-5
    # A tile with four times the pixels needs less than 1.5 times the memory.
    for small, large in result.working_set.values():
        assert large < 1.5 * small
    text = "\n".join(found.lines())
    assert all(what in text for what, _ in ways)
    json.dumps(found.to_json())
