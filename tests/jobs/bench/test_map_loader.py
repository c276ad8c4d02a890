"""`mibf bench loader`: rates of reading and writing tiles. No measured value is asserted."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from jobs.bench.map_loader import DECODING, MAPPING, MAPPING_2, READING, READING_2, bench_loader
from jobs.cli.common import app


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_table_has_all_cases_of_each_scene(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.bench.map_loader.cpu_count", lambda: cores)
    found = bench_loader([[3, 1], [2, 1]], side=128, rounds=1)
    cases = [DECODING, READING, MAPPING] if cores == 1 else [DECODING, READING, READING_2, MAPPING, MAPPING_2]
    assert [[row.what for row in scene.rows] for scene in found.scenes] == [cases] * 2
    assert {row.what: row.baseline for row in found.scenes[0].rows}.get(READING_2, READING) == READING
    assert all(row.rate > 0 for scene in found.scenes for row in scene.rows)
    text = "\n".join(found.lines())
    assert all(name in text for name in (DECODING, READING, MAPPING, "3+1 bands", "2+1 bands"))
    json.dumps(found.to_json())


def test_invalid_side_exits_2() -> None:
    result = CliRunner().invoke(app, ["bench", "loader", "--size", "100"])
    assert result.exit_code == 2
    assert "--size 100" in result.output
