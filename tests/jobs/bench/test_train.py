"""`mibf bench train`: complete tables and refused options. No measured value is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.bench import train
from jobs.bench.harness.random_workspace import random_workspace
from jobs.cli.common import app
from jobs.config.config import Config
from tests.support.scenes import SmallScene


@pytest.mark.slow
def test_bench_train_table_has_all_cases_with_their_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of a twentieth of the samples: the workers train two each, in four ways."""

    def short_epochs(folder: Path, **scene: Any) -> Config:
        config = random_workspace(folder, **scene)
        return config.model_copy(update={"sampling": config.sampling.model_copy(update={"epoch_fraction": 0.05})})

    monkeypatch.setattr(train, "random_workspace", short_epochs)
    result = train.bench_train(None, bands=[3, 1], rounds=1, steps=2, workers=True, side=160, workers_side=144)
    assert [(row.what, row.baseline) for row in result.rows] == [
        ("authors' loop", "authors' loop"),
        ("mibf, float32", "authors' loop"),
        ("mibf, bf16", "authors' loop"),
        ("mibf, float32, batch size 64", "authors' loop"),
        ("one worker", "one worker"),
        ("two workers", "one worker"),
        ("two independent", "one worker"),
        ("two independent, half the batch", "one worker"),
    ]
    assert result.rows[0].ratio == result.rows[4].ratio == 1.0
    assert all(row.rate > 0 for row in result.rows)
    assert all(0 <= row.waits < 1 for row in result.rows if row.waits is not None)
    assert [row.waits is None for row in result.rows] == [True] + [False] * 7
    assert result.epoch == int(0.05 * 135 * 144) // 256 * 256 == 768
    text = "\n".join(result.lines())
    assert all(row.what in text for row in result.rows)
    json.dumps(result.to_json())


def test_bench_train_without_prepared_stores_exits_2(scene: SmallScene) -> None:
    result = CliRunner().invoke(app, ["bench", "train", str(scene.write_config())])
    assert result.exit_code == 2
    assert "run `mibf prepare` first" in result.output


def test_bench_train_with_ray_address_of_a_cluster_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    result = CliRunner().invoke(app, ["bench", "train"])
    assert result.exit_code == 2
    assert "unset it, or give --no-workers" in result.output
