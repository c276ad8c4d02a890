"""Every `mibf` command in infra/ and in the documentation is accepted by the command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli.common import app
from tests.support.paths import ROOT

INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file())
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
#: Commands that run another command given as arguments.
WRAPPERS = {"docker", "exec", "flock", "ray", "tini"}


def is_mibf(word: str) -> bool:
    return word == "mibf" or word.endswith("/bin/mibf")


def in_line(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each mibf command in one line of shell."""
    for simple in re.split(r"&&|\|\||[;|]", line):
        try:
            words = shlex.split(simple.rstrip().removesuffix("&"), comments=True)
        except ValueError:  # a quote that continues on the next line: not an mibf command
            continue
        while words and re.match(r"[A-Za-z_]\w*=", words[0]):
            words = words[1:]
        while words and words[0] in WRAPPERS and not is_mibf(words[0]):
            at = next((i for i, word in enumerate(words) if is_mibf(word)), None)
            words = [] if at is None else words[at:]
        if words and is_mibf(words[0]):
            yield words[1:]


def in_values(value: Any) -> Iterator[list[str]]:
    """Yield the mibf commands in a manifest: in an entrypoint, or a container's command with its arguments."""
    if isinstance(value, dict):
        if isinstance(value.get("entrypoint"), str):
            yield from in_line(value["entrypoint"])
        words = [*(value.get("command") or ()), *(value.get("args") or ())]
        yield from in_line(shlex.join(map(str, words)))
        for inner in value.values():
            yield from in_values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from in_values(inner)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the mibf commands that a file runs, or shows in a code block; in infra/ also in `backticks` or after `#   `.

    The documentation abbreviates commands in its text.
    """
    text = path.read_text()
    for quoted in re.findall(r"(?<!`)`(mibf [^`]+)`(?!`)", re.sub(r"\n\s*", " ", text) if path in FILES else ""):
        for words in in_line(quoted):  # a bare name refers to the command itself
            yield words if len(words) > 1 else [*words, "--help"]
    lines = text.splitlines()
    for line in lines:
        if line.startswith("#   "):
            yield from in_line(line[1:])
    if path.suffix == ".md":
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    elif path.suffix in (".yaml", ".yml"):
        for document in yaml.safe_load_all(text):
            yield from in_values(document)
        lines = []
    elif path.suffix == ".service":
        lines = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    elif path.name == "crontab":
        lines = [re.sub(r"^(\S+\s+){5}\S+\s", "", line) for line in lines if re.match(r"[\d*]", line)]
    elif path.name == "Dockerfile":
        lines = re.sub(r"\\\n", " ", text).splitlines()
        listed = [json.loads(line.partition(" ")[2]) for line in lines if re.match(r"(CMD|ENTRYPOINT) ", line)]
        lines = [re.sub(r"^RUN (--mount=\S+\s+)*", "", line) for line in lines if line.startswith("RUN ")]
        lines += [shlex.join(words) for words in listed]
    elif path.suffix != ".sh":
        lines = []
    for line in lines:
        yield from in_line(line)


FOUND = sorted({(shlex.join(words), str(path.relative_to(ROOT))) for path in [*FILES, *PAGES] for words in commands(path)})


def parse(words: list[str]) -> None:
    """Parse arguments with the command line, through its groups, without running anything."""
    command: Any = typer.main.get_command(app)
    context = None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        words = [*context._protected_args, *context.args]
        if not words:
            return
        _, command, words = command.resolve_command(context, words)


@pytest.mark.parametrize(("line", "where"), FOUND, ids=[f"{where}: {line}" for line, where in FOUND])
def test_command_is_accepted(line: str, where: str) -> None:
    try:
        parse(shlex.split(line))
    except Exception as error:
        if type(error).__name__ == "Exit":  # --help
            return
        pytest.fail(f"{where}: mibf {line}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("line", ["mapp valley.yaml", "map valley.yaml --wrokers 2", "rerun valley.yaml --backoff soon"])
def test_misspelt_command_is_rejected(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid number"):
        parse(shlex.split(line))


def test_commands_are_found_in_every_kind_of_file() -> None:
    def found(name: str) -> list[str]:
        return [line for line, where in FOUND if where == f"infra/{name}"]

    nightly = "rerun --all s3://example-bucket/valley --parallel 4 --max-attempts 5 --backoff 600 --json"
    for name in ("schedule/mibf-rerun.service", "schedule/crontab"):
        assert found(name) == [nightly], name
    (submitted,) = found("kuberay/cronjob-rerun.yaml")
    assert submitted.startswith("submit rerun --all=s3://example-bucket/valley --address=http://mibf-head-svc:8265")
    assert "prepare s3://example-bucket/valley/valley.yaml --json" in found("kuberay/rayjob-prepare.yaml")
    assert "run valley.yaml" in found("README.md")
    assert "--help" in found("docker/Dockerfile")
    assert "--version" in found("docker/Dockerfile")
    assert "rerun CONFIG" in found("prometheus/alerts.yaml")
    assert any(line.startswith("run CONFIG --set workspace=s3://mibf/work") for line in found("local/up.sh"))
