"""`mibf bench loader`: rates of reading and writing tiles. No measured value is asserted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from jobs.bench.map_loader import DECODING, MAPPING, READING, bench_loader
from jobs.cli.common import app


@pytest.mark.slow
def test_table_has_all_cases_of_each_scene() -> None:
    found = bench_loader([[3, 1], [2, 1]], side=128, rounds=1)
    assert [[row.what for row in scene.rows] for scene in found.scenes] == [[DECODING, READING, MAPPING]] * 2
    assert all(row.rate > 0 for scene in found.scenes for row in scene.rows)
    text = "\n".join(found.lines())
    assert all(name in text for name in (DECODING, READING, MAPPING, "3+1 bands", "2+1 bands"))
    json.dumps(found.to_json())


def test_invalid_side_exits_2() -> None:
    result = CliRunner().invoke(app, ["bench", "loader", "--size", "100"])
    assert result.exit_code == 2
    assert "--size 100" in result.output
