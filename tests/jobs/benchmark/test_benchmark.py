"""`mibf benchmark`: plan, runs, resuming, the table, and refused arguments."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.baseline.table import HEADINGS, Baselines, Row, SubsetTable
from jobs.benchmark import command
from jobs.benchmark.dataset import SPLITS
from jobs.benchmark.table import Benchmark, CellResult
from jobs.cli.common import app
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.config.split import BlocksSection
from jobs.workflow.manifest import Manifest, StageName
from mibf.errors import InputError
from tests.support.published_data_sets import with_masks

SETTINGS = ("train.recipe=standard", "train.workers=0", "train.epochs=1", "train.batch_size=64", "model.patch=5")


def run(folder: Path, *options: str, name: str = "houston2013", settings: tuple[str, ...] = SETTINGS) -> Any:
    """Run the command on files in `folder`, with its workspace there."""
    arguments = ["benchmark", name, "--data", str(folder), "--workspace", str(folder / "work"), *options]
    return CliRunner().invoke(app, arguments + [part for value in settings for part in ("--set", value)])


def refused(folder: Path, *options: str, name: str = "houston2013", settings: tuple[str, ...] = SETTINGS) -> str:
    """The message of a refused command, after checking that nothing was written."""
    before = sorted(folder.rglob("*"))
    done = run(folder, *options, name=name, settings=settings)
    assert done.exit_code == 2, done.output
    assert sorted(folder.rglob("*")) == before
    return str(done.stderr)


def test_every_split_is_run_once_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_masks(tmp_path, monkeypatch)
    # The majority class and the first forest are always fitted.
    monkeypatch.setattr(command, "baseline", partial(command.baseline, samples=300, seconds=1e-3))
    planned = run(tmp_path, "--plan", "--seeds", "0", "--json", "--block", "14")
    assert [(c["split"], c["finished"]) for c in json.loads(planned.stdout)["cells"]] == [
        ("official", False),
        ("random", False),
        ("blocks", False),
    ]
    assert not (tmp_path / "work").exists()
    done = run(tmp_path, "--splits", "official,blocks", "--seeds", "0", "--block", "14", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "work/benchmark.json").read_text())
    assert list(found["splits"]) == ["official", "blocks"]
    for cell in found["cells"]:
        folder = tmp_path / "work" / ("official" if cell["split"] == "official" else "blocks-seed-0")
        evaluation = json.loads((folder / "runs/seed-0/evaluation.json").read_text())
        split = json.loads((folder / "split.json").read_text())
        assert cell["models"]["MIBF-Net"] == {
            key: evaluation[key] for key in ("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "ece")
        }
        assert cell["samples"] == {subset: sum(split["counts"][subset].values()) for subset in cell["samples"]}
        assert cell["overlap"] == next(iter(split["overlap"].values()))
        assert len(cell["models"]) == 14 - len(cell["left_out"])
        (forest,) = (name for name in cell["models"] if name.startswith("random forest"))
        assert cell["models"][forest]["overall_accuracy"] > 0.9  # each band alone separates the classes
    blocks = next(cell for cell in found["cells"] if cell["split"] == "blocks")
    assert blocks["overlap"] == 0
    table = (tmp_path / "work/benchmark.md").read_text()
    assert "| official | MIBF-Net |" in table
    assert "spatial blocks with a buffer" in table

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a finished run is repeated")

    monkeypatch.setattr(command, "baseline", fails)
    again = run(tmp_path, "--splits", "official,blocks", "--seeds", "0", "--block", "14", "--json")
    assert json.loads(again.stdout) == found
    assert again.stderr.count("current, skipped") == 6
    split = load(str(tmp_path / "work/configurations/blocks-seed-0.yaml")).split
    assert isinstance(split, BlocksSection)
    assert split.block == 14


def finished(stage: StageName, figures: dict[str, Any]) -> Manifest:
    """The manifest of a stage that ran."""
    return Manifest(stage=stage, fingerprint="x", finished="now", seconds=1, peak_memory_bytes=1, figures=figures)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_an_impossible_split_is_noted_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_masks(tmp_path, monkeypatch)
    ran: list[tuple[str, str, StageName]] = []

    def stage(config: Config, name: StageName) -> Manifest:
        ran.append((Path(config.workspace).name, config.run, name))
        if config.split.method == "blocks" and config.split.seed == 1:
            raise InputError("no training samples of class 'x'.")
        counts = {subset: {"a": 1} for subset in ("train", "validation", "test")}
        return finished(name, {"counts": counts, "overlap": {"s": 0.5}, **dict.fromkeys(HEADINGS, 0.75)})

    row = Row("majority class", None, None, dict.fromkeys(HEADINGS, 0.5), None, 0.0, 1.0)
    table = SubsetTable("test", 1, 1, 1, 8, [row], "the majority class", None)
    fitted = Baselines(train=1, available=1, seed=0, seconds=1, left_out=[], notes=[], tables=[table])
    monkeypatch.setattr(command, "baseline", lambda *_, **__: fitted)
    done = command.benchmark("houston2013", str(tmp_path), stage, workspace=str(tmp_path / "work"))
    assert isinstance(done, Benchmark)
    assert [(cell.split, cell.seed) for cell in done.cells] == [
        (split, seed) for split in SPLITS for seed in range(3) if (split, seed) != ("blocks", 1)
    ]
    assert done.refused == {"blocks-seed-1": "no training samples of class 'x'."}
    assert {workspace for workspace, run, _ in ran if run == "seed-2"} == {"official", "random-seed-2", "blocks-seed-2"}
    assert done.models("random")["majority class"]["kappa"] == [0.5] * 3
    with pytest.raises(InputError, match="no training samples"):
        command.benchmark("houston2013", str(tmp_path), stage, workspace=str(tmp_path / "b"), splits=["blocks"], seeds=[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--splits", "official,radom"], "--splits radom: unknown split; use official, random, blocks"),
        (["--seeds", "0,x"], "--seeds 0,x: give different integers from 0"),
        (["--seeds", "1,1"], "--seeds 1,1: give different integers from 0"),
        (["--set", "split.block=5"], "--set split.block=5: the benchmark sets split itself"),
        (["--set", "train.seeds=[1]"], "--set train.seeds=[1]: the benchmark sets train.seeds itself"),
        (["--set", "train.epocs=5"], "train.epocs: unknown key; did you mean 'epochs'?"),
    ],
)
def test_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    with_masks(tmp_path, monkeypatch)
    assert message in " ".join(refused(tmp_path, *options).split())


def test_unknown_names_get_the_nearest_one(tmp_path: Path) -> None:
    assert "houston_2013: unknown data set; did you mean 'houston2013'?" in refused(tmp_path, name="houston_2013")
    with pytest.raises(InputError, match=r"xyz: unknown data set\. Known are houston2013, "):
        command.find_dataset("xyz")


def test_a_missing_official_split_is_refused_by_name(tmp_path: Path) -> None:
    message = refused(tmp_path, "--splits", "official", name="indian-pines")
    assert "--splits official: indian-pines has no official split; use random,blocks." in message


def test_other_files_are_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_masks(tmp_path, monkeypatch)
    small.write("LiDAR.mat", LiDAR=np.zeros(small.labels.shape, np.float32))
    assert "LiDAR.mat: has the SHA-256" in refused(tmp_path)


def result(split: Any, seed: int, accuracy: float | None) -> CellResult:
    figures = dict.fromkeys(("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "ece"), accuracy)
    counts = {"train": 10, "validation": 5, "test": 20}
    return CellResult(split, seed, "id", counts, 0.25, {"MIBF-Net": figures, "the forest": figures}, 15, [])


def test_table_has_means_and_deviations_over_seeds_and_the_gap_of_the_splits() -> None:
    cells = [result("random", 0, 0.9), result("random", 1, 0.8), result("blocks", 0, 0.6), result("blocks", 1, None)]
    found = Benchmark("x", "Title", "origin", {}, [], cells[:3], {"blocks-seed-1": "no class"}, "work")
    lines = found.lines()
    assert "| random | MIBF-Net | 0.850 ± 0.071 | 0.850 ± 0.071 | 0.850 ± 0.071 | 0.850 ± 0.071 | 0.850 ± 0.071 |" in lines
    assert "| blocks | the forest | 0.600 | 0.600 | 0.600 | 0.600 | 0.600 |" in lines
    assert "MIBF-Net: the random split is +25.0 points of overall accuracy from the block split." in lines
    assert "note: blocks-seed-1: not run: no class" in lines
    assert any("25.0% of test patches overlap" in line and "15 drawn test pixels" in line for line in lines)
    summary = found.to_json()["splits"]["random"]["models"]["MIBF-Net"]["kappa"]
    assert summary == {
        "mean": pytest.approx(0.85),
        "deviation": pytest.approx(np.std([0.9, 0.8], ddof=1)),
        "values": [0.9, 0.8],
    }
    unknown = Benchmark("x", "Title", "origin", {}, [], cells[3:], {}, "work")
    assert "| blocks | MIBF-Net | - | - | - | - | - |" in unknown.lines()
