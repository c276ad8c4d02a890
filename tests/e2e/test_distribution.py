"""The distributions: an sdist of the tracked files, a wheel built from it, and that wheel without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from mibf import __version__
from tests.support.imports import PACKAGES
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build a distribution (`sdist` or `wheel`) of a source tree with the build backend of pyproject.toml."""
    program = f"from setuptools import build_meta\nprint('built', build_meta.build_{kind}({str(folder)!r}))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.rpartition("built ")[2].strip()


@dataclass(frozen=True)
class Distributions:
    """What was built, and of which files."""

    tracked: frozenset[str]
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The sdist of the tracked files, and the wheel of what the sdist contains."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy of the sources is not a git checkout")
    tracked = frozenset(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())
    folder = tmp_path_factory.mktemp("dist")
    for name in tracked:
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, path)
    sdist = build("sdist", folder / "tree", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return Distributions(tracked, sdist, build("wheel", source, folder))


@pytest.fixture(scope="module")
def installed(built: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, str(built.wheel)], check=True)
    return folder


def run(installed: Path, cwd: Path, *command: str) -> str:
    """Run a command that finds the installed wheel in place of the repository, and return its standard output."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_contains_every_file_of_the_packages_and_nothing_else(built: Distributions) -> None:
    of_packages = {name for name in built.tracked if name.split("/")[0] in PACKAGES}
    information = f"mibf-{__version__}.dist-info"
    with zipfile.ZipFile(built.wheel) as archive:
        contents = {name for name in archive.namelist() if not name.startswith(f"{information}/")}
        metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
        scripts = archive.read(f"{information}/entry_points.txt").decode()
        licences = {name: archive.read(f"{information}/licenses/{name}") for name in metadata.get_all("License-File", [])}
    assert contents == of_packages
    assert {"jobs/report/report.html.jinja", "jobs/sample/B02.jp2", "jobs/py.typed", "mibf/py.typed"} <= contents
    assert set(licences) == {"LICENSE", "jobs/sample/NOTICE.md", "pipeline/publishing/page/static/licenses.txt"}
    assert all(content == (ROOT / name).read_bytes() for name, content in licences.items())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "mibf = jobs.cli:app" in scripts


def test_description_has_no_relative_links(built: Distributions) -> None:
    """It is shown where the repository is not."""
    with zipfile.ZipFile(built.wheel) as archive:
        text = archive.read(f"mibf-{__version__}.dist-info/METADATA").decode().partition("\n\n")[2]
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets == [target for target in re.findall(r"\]\(([^)]*)\)", readme) if target.startswith("https://")]
    assert targets, "those to other sites are kept"
    assert not re.search(r"!\[|\[docs\]|\(docs\)", text)
    assert text.count("\n## ") == readme.count("\n## ")
    assert "A map in ten minutes goes through it step by step" in text, "the text of links is kept"


def test_sdist_contains_what_a_build_needs_and_no_tests(built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "jobs/sample/NOTICE.md"} <= names
    assert not {name for name in names if name.startswith(("tests", "docs", ".ci"))}


def test_installed_wheel_works_without_the_repository(installed: Path, tmp_path: Path) -> None:
    where = "import mibf, pipeline, jobs\nprint(mibf.__file__, pipeline.__file__, jobs.__file__)"
    paths = run(installed, tmp_path, sys.executable, "-c", where).split()
    assert all(Path(path).is_relative_to(installed) for path in paths), paths
    mibf = str(installed / "bin/mibf")
    assert run(installed, tmp_path, mibf, "--version") == f"mibf {__version__}\n"
    assert "--search" in run(installed, tmp_path, mibf, "demo", "--help")


def test_installed_wheel_writes_a_configuration_of_its_own_sample(installed: Path, tmp_path: Path) -> None:
    sample = installed / "jobs/sample"
    source = "optical=" + ",".join(str(sample / f"{band}.jp2") for band in ("B02", "B03", "B04", "B08"))
    labels = ["--labels", str(sample / "land_use.gpkg"), "--attribute", "fclass"]
    run(installed, tmp_path, str(installed / "bin/mibf"), "init", source, *labels)
    config = yaml.safe_load((tmp_path / "mibf.yaml").read_text())
    assert len(config["scenes"][0]["sources"]["optical"]["urls"]) == 4
    assert {"forest", "water"} <= {c["name"] for c in config["classes"]}
