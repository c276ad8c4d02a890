"""Benchmarks: how rates become ratios, and that the table holds all rows. No figure is asserted."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from jobs.bench import batches, map_memory, map_tiles, timing, train
from jobs.bench import map as bench_map
from jobs.bench.bare_scene import bare_scene
from jobs.bench.network import as_json, bench_network, table
from jobs.bench.plain import PlainNetwork
from jobs.bench.timing import Case, Timing, measure
from jobs.cli import app
from jobs.map import map_scenes
from jobs.workspace import Workspace
from mibf.cell import CELL
from mibf.network import MIBFNet
from mibf.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from pipeline.grid import Window
from pipeline.lease import Lease
from pipeline.store import PatchStore
from tests.conftest import SmallScene


def test_every_case_is_timed_in_every_round_after_one_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = cycle([9.0, 9.0, 2.0, 1.0, 4.0, 1.0])  # two cases, a warm-up and two rounds
    monkeypatch.setattr(timing, "_seconds", lambda work: (work(), next(seconds))[1])
    done: list[str] = []
    found = measure([Case("a", 8, lambda: done.append("a")), Case("b", 8, lambda: done.append("b"))], rounds=2)
    assert done == ["a", "b"] * 3
    assert found == {"a": Timing("a", (4.0, 2.0)), "b": Timing("b", (8.0, 8.0))}
    assert found["b"].ratio(found["a"]) == 3.0  # the median of 2 and 4
    assert found["a"].rate == 3.0


def test_a_slow_round_changes_no_ratio() -> None:
    assert Timing("a", (20.0, 2.0, 20.0)).ratio(Timing("b", (10.0, 1.0, 10.0))) == 2.0


@pytest.mark.parametrize("bands", ["64", "64+", "a+2", "0+2"])
def test_bands_that_cannot_be_are_refused(bands: str) -> None:
    result = CliRunner().invoke(app, ["bench", "network", "--bands", bands])
    assert result.exit_code == 2
    assert f"--bands {bands}: give the number of bands of two or more sources" in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to some of its cores")
def test_one_core_is_one_for_all_threads_and_all_come_back() -> None:
    before, threads, seen = os.sched_getaffinity(0), torch.get_num_threads(), []
    go, end = threading.Event(), threading.Event()

    def look() -> None:
        go.wait()
        seen.append(os.sched_getaffinity(0))
        end.wait()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=look)
    thread.start()
    with batches.one_core() as held:
        assert held
        assert len(os.sched_getaffinity(0)) == torch.get_num_threads() == 1
        go.set()
        while not seen:
            pass
    end.set()
    thread.join()
    assert os.sched_getaffinity(0) == seen[1] == before
    assert len(seen[0]) == 1
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_batches_table_has_every_way_with_its_ratio_and_what_training_waits() -> None:
    result = batches.bench_batches(None, bands=[3, 1], rounds=1, steps=3, side=256)
    assert result.samples == 240 * 256
    assert [row.what for row in result.rows] == [
        "loader",
        "batches",
        "with threads",
        "balanced, turned",
        "training, with threads",
        "training, without",
    ]
    assert result.rows[0].ratio == result.rows[-1].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert [row.waits is None for row in result.rows] == [True] * 4 + [False] * 2
    assert all(0 < row.waits < 1 for row in result.rows if row.waits is not None)
    text = batches.table(result)
    assert all(row.what in text for row in result.rows)
    json.dumps(batches.as_json(result))


def test_batches_of_what_was_not_prepared_are_refused(scene: SmallScene) -> None:
    result = CliRunner().invoke(app, ["bench", "batches", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare` first" in result.output


def test_the_plain_network_is_the_same_function_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    sources = (SourceSpec("a", 5, WIDE), SourceSpec("b", 2, NARROW, scale=2), SourceSpec("c", 1, NARROW))
    # Without noise and draws, which are random: they are all that training may differ in.
    spec = NetworkSpec(sources, classes=4, without=frozenset({"noise", "bottleneck"}))
    ours, plain = MIBFNet(spec), PlainNetwork(spec)
    plain.load_state_dict(ours.state_dict())
    patches = [torch.rand(8, s.bands, 7 * s.scale, 7 * s.scale) for s in sources]
    results = [network.train()(patches) for network in (ours, plain)]
    for output in results:
        torch.autograd.backward(output.logits.square().sum())
    torch.testing.assert_close(results[1].logits, results[0].logits)
    torch.testing.assert_close(results[1].gate, results[0].gate)
    torch.testing.assert_close(plain.noise.mean_gate, ours.noise.mean_gate)
    for own, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_the_plain_network_adds_noise_to_one_source_in_training_alone() -> None:
    spec = NetworkSpec((SourceSpec("a", 3, WIDE), SourceSpec("b", 1, NARROW)), classes=4)
    noise = PlainNetwork(spec).noise
    features = [torch.zeros(20, 64, 3, 3) for _ in range(2)]
    disturbed = [x for x in noise.train()(features) if x.any()]
    assert len(disturbed) == 1
    assert 0 < int(disturbed[0].flatten(1).any(dim=1).sum()) <= 14
    assert not any(x.any() for x in noise.eval()(features))


@pytest.mark.slow
def test_the_training_table_has_every_way_with_its_baseline() -> None:
    result = train.bench_train(None, bands=[3, 1], rounds=1, steps=2, workers=True, side=160, workers_side=144)
    assert [(row.what, row.baseline) for row in result.rows] == [
        ("authors' loop", "authors' loop"),
        ("mibf, float32", "authors' loop"),
        ("mibf, bf16", "authors' loop"),
        ("mibf, float32, 64 a step", "authors' loop"),
        ("one worker", "one worker"),
        ("two workers", "one worker"),
        ("two apart", "one worker"),
        ("two apart, half the batch", "one worker"),
    ]
    assert result.rows[0].ratio == result.rows[4].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert all(0 <= row.waits < 1 for row in result.rows if row.waits is not None)
    assert [row.waits is None for row in result.rows] == [True] + [False] * 7
    assert result.epoch == 135 * 144 // 256 * 256
    text = train.table(result)
    assert all(row.what in text for row in result.rows)
    json.dumps(train.as_json(result))


def test_training_of_what_was_not_prepared_is_refused(scene: SmallScene) -> None:
    result = CliRunner().invoke(app, ["bench", "train", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare` first" in result.output


def test_workers_on_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    result = CliRunner().invoke(app, ["bench", "train"])
    assert result.exit_code == 2
    assert "unset it, or give --no-workers" in result.output


@pytest.mark.slow
def test_the_networks_table_has_every_way_with_its_ratios() -> None:
    (result,) = bench_network(None, bands=[[3, 1]], rounds=1, sides=(CELL, 2 * CELL))
    ways: list[tuple[str, Any]] = [(row.what, row.precision) for row in result.rows]
    assert ways == [
        ("patch by patch", "float32"),
        ("loader loop", "float32"),
        ("dense", "float32"),
        ("dense", "bf16"),
        ("training, plain", "float32"),
        ("training", "float32"),
        ("training", "bf16"),
    ]
    rows = {(row.what, row.precision): row for row in result.rows}
    assert rows["patch by patch", "float32"].ratios["patch by patch"] == 1.0
    assert all(row.rate > 0 and row.multiply_adds > 0 for row in result.rows)
    # Counted, not timed: what patches share is computed once.
    assert rows["dense", "float32"].multiply_adds < 0.8 * rows["patch by patch", "float32"].multiply_adds
    assert result.largest_difference < 1e-5
    # A tile of four times the pixels takes hardly more memory.
    for small, large in result.working_set.values():
        assert large < 1.5 * small
    text = table([result])
    assert all(what in text for what, _ in ways)
    json.dumps(as_json([result]))


@pytest.mark.slow
def test_the_maps_table_has_every_way_with_its_ratio_and_its_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_map, "HELD_BYTES", 4 * 4 * 64 * 64)
    result = bench_map.bench_map(None, bands=[3, 1], side=128, rounds=1)
    assert [row.what for row in result.rows] == ["bare dense", "in this process", "one worker", "two workers"]
    assert (result.pixels, result.held) == (128 * 128, 64 * 64)
    assert result.rows[0].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert [set(row.shares) for row in result.rows] == [set(), *[set(bench_map.SHARES)] * 3]
    text = bench_map.table(result)
    assert all(row.what in text for row in result.rows)
    json.dumps(bench_map.as_json(result))


def test_a_map_is_measured_without_a_trace_in_its_workspace(tmp_path: Path) -> None:
    config = bare_scene(tmp_path, shape_yx=(100, 130), tile=64, filled=True)
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
def test_peaks_are_compared_with_the_first_scene_of_as_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_memory, "WORKERS", (0,))
    peaks = map_memory.bench_memory([64, 128])
    assert [(peak.side, peak.workers) for peak in peaks] == [(64, 0), (128, 0)]
    assert peaks[0].ratio == 1.0
    assert peaks[1].ratio == peaks[1].bytes / peaks[0].bytes > 0
    assert "128 x 128" in map_memory.table(peaks)
    json.dumps(map_memory.as_json(peaks))


@pytest.mark.slow
def test_tiles_with_nothing_in_them_go_through_the_driver_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_tiles, "WORKERS", (0,))
    runs = map_tiles.bench_tiles(100)
    assert [(run.tiles, run.workers) for run in runs] == [(9, 0), (100, 0)]
    assert runs[0].ratio == 1.0
    assert all(run.ledger_bytes > 0 and run.segments > 0 and run.nothing_due > 0 for run in runs)
    assert "ms a tile" in map_tiles.table(runs)
    json.dumps(map_tiles.as_json(runs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100"], "--size 100: give the scene's side in pixels, a multiple of 64"),
        (["--size", "64", "--size", "128"], "with --memory alone"),
        (["--memory", "--size", "100"], "a multiple of 64"),
        (["--memory", "--tiles", "100"], "give one"),
        (["any.yaml", "--memory"], "leave CONFIG out"),
        (["--precision", "fp16"], "--precision fp16: there are float32, bf16"),
    ],
)
def test_options_of_the_maps_benchmark_that_cannot_be_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "map", *options])
    assert result.exit_code == 2
    assert message in result.output
