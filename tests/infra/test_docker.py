"""The image of infra/docker, and the image versions that infra/ names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from mibf import __version__
from tests.support.manifests import INFRA, mappings, program
from tests.support.paths import ROOT


def images() -> Iterator[tuple[str, str]]:
    for path in sorted(INFRA.rglob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text()):
            for mapping in mappings(document):
                if isinstance(mapping.get("image"), str):
                    yield str(path.relative_to(INFRA)), mapping["image"]
    for line in (INFRA / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("FROM "):
            yield "docker/Dockerfile", line.split()[1]


@pytest.mark.parametrize(("where", "image"), sorted(set(images())))
def test_image_tag_is_a_version(where: str, image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert re.match(r"v?\d+\.\d+", tag), f"{where}: {image}"
    if name.endswith("/mibf"):
        assert tag.removesuffix("-cuda") == __version__


def test_image_runs_as_ordinary_user_without_compiler() -> None:
    lines = (INFRA / "docker/Dockerfile").read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    final = "\n".join(lines[last:])
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert "\nUSER 1000:1000\n" in final
    assert 'ENTRYPOINT ["tini", "--"]' in final
    assert not re.search(r"build-essential|\bgcc\b|-dev\b|pip install", final)
    assert not re.search(r"^(ARG|ENV) .*(SECRET|TOKEN|PASSWORD)", "\n".join(lines), re.MULTILINE)


def test_docker_build_context_contains_only_the_packages() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    included = {pattern.removeprefix("!").rstrip("/") for pattern in patterns if pattern.startswith("!")}
    assert included == {"constraints.txt", "pyproject.toml", "LICENSE", "README.md", "jobs", "mibf", "pipeline", "setup.py"}
    assert all((ROOT / name).exists() for name in included)


def test_hadolint_reports_nothing_for_the_dockerfile() -> None:
    arguments = [program("hadolint"), "--no-color", "--failure-threshold", "style", "infra/docker/Dockerfile"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
