"""`mibf bench map`: throughput, memory and scheduling tables. No measured value is asserted."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from jobs.bench import map as bench_map
from jobs.bench import map_memory, map_scheduling
from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.cli.common import app
from jobs.map.stage import map_scenes
from jobs.workflow.workspace import Workspace
from pipeline.grid import Window
from pipeline.io.lease import Lease
from pipeline.store.patch_store import PatchStore


@pytest.mark.slow
def test_bench_map_table_has_all_cases_with_ratio_and_time_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_map, "DENSE_BYTES", 4 * 4 * 64 * 64)
    result = bench_map.bench_map(None, bands=[3, 1], side=128, rounds=1)
    assert [row.what for row in result.rows] == ["bare network", "in this process", "one worker", "two workers"]
    assert (result.pixels, result.held) == (128 * 128, 64 * 64)
    assert result.rows[0].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert [set(row.shares) for row in result.rows] == [set(), *[set(bench_map.SHARES)] * 3]
    text = "\n".join(result.lines())
    assert all(row.what in text for row in result.rows)
    json.dumps(result.to_json())


def test_bench_map_leaves_the_workspace_unchanged(tmp_path: Path) -> None:
    config = stub_workspace(tmp_path, shape_yx=(100, 130), tile=64, filled=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    workspace = Workspace.of(config)
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = bench_map.MapsElsewhere(workspace.url, workspace.run, folder)
        config = config.model_copy(update={"map": config.map.model_copy(update={"workers": 0})})
        figures = map_scenes(config, elsewhere, "", Lease(), predictor=map_memory.Larger).figures
        with rasterio.open(Path(folder) / "maps" / "bare" / "class.tif") as dataset:
            ids = dataset.read(1)
    assert figures["pixels_mapped"] == 13000
    store = PatchStore(workspace.store("bare"))
    one, two = (store.read_source(name, Window(0, 0, 100, 130))[0][0] for name in ("one", "two"))
    np.testing.assert_array_equal(ids, np.where(two > one, 2, 1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_peak_memory_ratio_is_to_first_scene_with_same_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_memory, "WORKERS", (0,))
    found = map_memory.bench_memory([64, 128])
    peaks = found.peaks
    assert [(peak.side, peak.workers) for peak in peaks] == [(64, 0), (128, 0)]
    assert peaks[0].ratio == 1.0
    assert peaks[1].ratio == peaks[1].bytes / peaks[0].bytes > 0
    assert "128 x 128" in "\n".join(found.lines())
    json.dumps(found.to_json())


@pytest.mark.slow
def test_bench_tiles_maps_each_empty_tile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_scheduling, "WORKERS", (0,))
    # Each measurement has a process of its own, which the memory table's test starts; here there would be four.
    monkeypatch.setattr(map_scheduling, "run_in_subprocess", lambda function, *arguments: function(*arguments))
    found = map_scheduling.bench_tiles(100)
    runs = found.runs
    assert [(run.tiles, run.workers) for run in runs] == [(9, 0), (100, 0)]
    assert runs[0].ratio == 1.0
    assert all(run.ledger_bytes > 0 and run.segments > 0 and run.nothing_due > 0 for run in runs)
    assert "ms/tile" in "\n".join(found.lines())
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100"], "--size 100: give the scene's side in pixels, a multiple of 64"),
        (["--size", "64", "--size", "128"], "only with --memory"),
        (["--memory", "--size", "100"], "a multiple of 64"),
        (["--memory", "--tiles", "100"], "give only one"),
        (["any.yaml", "--memory"], "omit CONFIG"),
        (["--precision", "fp8"], "--precision fp8: must be one of float32, bf16, fp16"),
        (["--precision", "fp16"], "--precision is fp16, which needs a GPU"),
    ],
)
def test_bench_map_with_invalid_options_exits_2(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "map", *options])
    assert result.exit_code == 2
    assert message in result.output
