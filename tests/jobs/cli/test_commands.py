"""The command line: panels of the help, results, renamed commands and options, shell completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from jobs.cli.common import ORDER, SUBMITTABLE, Failed, app, command, complete_config
from jobs.fleet.submit import COMMANDS
from jobs.workflow.errors import BrokenError
from jobs.workflow.result import Result
from mibf.errors import InputError
from pipeline.io.lease import acquire
from tests.support.paths import ROOT
from tests.support.scenes import SmallScene

PANELS = {
    "Run": ["demo", "search", "init", "run", "prepare", "train", "evaluate", "map", "report"],
    "Products": ["view", "polygons", "change"],
    "Assess": ["sample", "estimate", "suggest"],
    "Inspect": ["plan", "status", "verify", "runs", "schema"],
    "Operate": ["rerun", "submit"],
    "Models": ["bundle", "baseline", "calibrate", "ablate", "benchmark", "import-checkpoint", "export"],
    "Develop": ["synth", "bench"],
}


def invoke(*arguments: str, **env: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env=env, prog_name="mibf")


def test_help_lists_commands_in_panels() -> None:
    text = invoke("--help", COLUMNS="100", TERM="dumb").stdout
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (\w+) ─", line):
            found[title[1]] = []
        elif name := re.match(r"│ ([a-z][a-z-]*)  ", line):
            found[list(found)[-1]].append(name[1])
    assert list(found.items()) == [("Options", []), *PANELS.items()]
    assert max(map(len, text.splitlines())) <= 100


def test_order_names_every_visible_command() -> None:
    group: Any = typer.main.get_command(app)
    assert sorted(ORDER) == sorted(name for name, each in group.commands.items() if not each.hidden)


def test_submittable_commands_are_those_that_the_job_accepts() -> None:
    assert SUBMITTABLE == COMMANDS


# --- results ---


@dataclass(frozen=True)
class Answer:
    value: float

    def lines(self) -> list[str]:
        return [] if self.value == 0 else ["answer", f"  {self.value:g}"]

    def to_json(self) -> dict[str, float]:
        return {"value": self.value}


def make_app() -> typer.Typer:
    made = typer.Typer()

    @command(group=made)
    def answer(
        value: Annotated[float, typer.Argument()],
        corrupt: Annotated[bool, typer.Option("--corrupt")] = False,
        refused: Annotated[bool, typer.Option("--refused")] = False,
    ) -> Result | Failed:
        if refused:
            raise InputError("this value is refused.")
        return Failed(Answer(value), BrokenError("the value is corrupt.")) if corrupt else Answer(value)

    return made


@pytest.mark.parametrize(
    ("arguments", "stdout", "stderr", "status"),
    [
        (["42"], "answer\n  42\n", "", 0),
        (["0"], "", "", 0),
        (["42", "--json"], '{\n "value": 42.0\n}\n', "", 0),
        (["nan", "--json"], '{\n "value": null\n}\n', "", 0),
        (["42", "--corrupt"], "answer\n  42\n", "mibf: the value is corrupt.\n", 3),
        (["42", "--corrupt", "--json"], '{\n "value": 42.0\n}\n', "mibf: the value is corrupt.\n", 3),
        (["42", "--refused"], "", "mibf: this value is refused.\n", 2),
    ],
)
def test_result_is_printed_before_the_exit(arguments: list[str], stdout: str, stderr: str, status: int) -> None:
    done = CliRunner().invoke(make_app(), arguments)
    assert (done.stdout, done.stderr, done.exit_code) == (stdout, stderr, status)


def test_command_exits_with_status_4_while_lease_is_held(scene: SmallScene) -> None:
    with acquire(str(scene.folder / "work")):
        done = invoke("prepare", str(scene.write_config()))
    assert done.exit_code == 4
    assert "another run holds the workspace" in done.stderr
    assert not (scene.folder / "work" / "stores").exists()


# --- renamed commands and options ---


@pytest.mark.parametrize("name", ["run", "train", "map"])
def test_old_option_is_refused_with_the_new_name(name: str) -> None:
    done = invoke(name, "missing.yaml", "--anew")
    assert done.exit_code == 2
    assert done.stderr == "mibf: `--anew` is now called `--restart`.\n"
    shown = invoke(name, "--help", COLUMNS="100").stdout
    assert "--restart" in shown
    assert "--anew" not in shown


@pytest.mark.parametrize("arguments", [[], ["model.pth", "--config", "area.yaml", "--set", "run=authors"], ["--help"]])
def test_old_command_is_refused_with_the_new_name(arguments: list[str]) -> None:
    done = invoke("authors-to-bundle", *arguments)
    assert done.exit_code == 2
    assert done.stderr == "mibf: `mibf authors-to-bundle` is now called `mibf import-checkpoint`.\n"
    assert "authors-to-bundle" not in invoke("--help").stdout


# --- shell completion ---


def complete(line: str) -> list[str]:
    """What bash is offered after this line."""
    words = {"_MIBF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return str(invoke(**words).stdout).split()


def test_completion_script_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # tests do not run in a shell
    done = invoke("--show-completion", "bash")
    assert done.exit_code == 0
    assert "complete -o default -F _mibf_completion mibf" in done.stdout


def test_commands_and_stages_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "area.yaml").touch()
    assert complete("mibf im") == ["import-checkpoint"]
    assert complete("mibf authors") == []
    assert complete("mibf submit re") == ["report", "rerun"]
    assert complete("mibf submit ") == list(SUBMITTABLE)
    for before in ("run", "submit train", "rerun", "bench map", "import-checkpoint model.pth --config"):
        assert complete(f"mibf {before} ") == ["area.yaml"], before


def test_configuration_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "areas" / "alps").mkdir(parents=True)
    for name in ("a.yaml", ".hidden.yaml", "notes.txt", "areas/alps/north.yml", "areas/alps/south.yaml"):
        (tmp_path / name).touch()
    assert complete_config("") == ["a.yaml", "areas/"]
    assert complete_config(".h") == [".hidden.yaml"]
    assert complete_config("ar") == ["areas/alps/north.yml", "areas/alps/south.yaml"], "single folders are entered"
    assert complete_config("areas/alps/s") == ["areas/alps/south.yaml"]
    assert complete_config(f"{tmp_path}/a.") == [f"{tmp_path}/a.yaml"]
    assert complete_config("missing/a") == complete_config("s3://bucket/a") == []
    (tmp_path / "empty").mkdir()
    assert complete_config("e") == ["empty/"]


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "area.yaml").touch()
    program = (
        "import json, sys\nfrom jobs.cli import app\n"
        "try:\n    app(prog_name='mibf')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'dask', 'zarr', 'xarray', 'rasterio', 'numpy', 'sklearn', 'lightgbm'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))\n"
    )
    words = {"_MIBF_COMPLETE": "complete_bash", "COMP_WORDS": "mibf submit train ", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | words | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    offered, heavy = done.stdout.splitlines()
    assert offered == "area.yaml"
    assert json.loads(heavy) == []


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "лес.yaml"]])
def test_characters_beyond_the_terminals_encoding_are_escaped(arguments: list[str], tmp_path: Path) -> None:
    config = {"name": "x", "workspace": "w", "лес": 1}
    (tmp_path / "лес.yaml").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.cli", *arguments],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1:strict"},
        check=False,
    )
    text = (done.stdout + done.stderr).decode("latin-1")
    assert "Traceback" not in text
    assert done.returncode == (0 if arguments == ["--help"] else 2)
    assert ("Operate" if arguments == ["--help"] else r"\u043b\u0435\u0441: unknown key") in text
