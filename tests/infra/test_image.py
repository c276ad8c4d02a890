"""The image of infra/docker, built by buildah and run. Takes minutes and a package index: set MIBF_BUILD_IMAGE=1.

No registry is needed: the base image that the Dockerfile names is made of Debian's packages, with Debian's Python instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mibf import __version__
from tests.support.manifests import INFRA
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
DOCKERFILE = INFRA / "docker/Dockerfile"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
#: pip's variables for a private index, certificate or folder of wheels, which the build gets as a secret and as volumes.
PIP = ("index_url", "extra_index_url", "find_links", "cert")


@dataclass(frozen=True)
class Buildah:
    """buildah with storage of its own; the isolation and the driver that also run inside containers."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        storage = ["--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run", "--storage-driver", "vfs"]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            ["buildah", *storage, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, f"buildah {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()


def make_base(buildah: Buildah, image: str) -> None:
    """Make the Debian release that the tag of an image ends with, with Python, and name it like the image."""
    release = image.rpartition("-")[2]
    sources = next(
        path for path in map(Path, ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")) if path.exists()
    )
    archive = buildah.folder / "base.tar"
    arguments = ["--variant=minbase", f"--include={PACKAGES}", release, str(archive), str(sources)]
    done = subprocess.run(["mmdebstrap", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    container = buildah("from", "scratch")
    buildah("add", container, str(archive), "/")
    buildah("run", container, "--", "ln", "-s", "/usr/bin/python3", "/usr/local/bin/python")
    buildah("commit", container, f"docker.io/library/{image}")
    archive.unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Buildah, str]]:
    """Buildah, and a container of the image."""
    if os.environ.get("MIBF_BUILD_IMAGE") != "1":
        pytest.skip("building the image takes minutes; set MIBF_BUILD_IMAGE=1")
    for name in ("buildah", "mmdebstrap"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    if os.geteuid() != 0:
        pytest.skip("mmdebstrap makes the base image as root")
    folder = tmp_path_factory.mktemp("image")
    buildah = Buildah(folder)
    (image,) = set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE))
    make_base(buildah, image)
    given = {name: value for name in PIP if (value := os.environ.get(f"PIP_{name.upper()}"))}
    (folder / "pip.conf").write_text("\n".join(["[global]", *(f"{k.replace('_', '-')} = {v}" for k, v in given.items())]))
    mounted = [str(Path(path).parent if Path(path).is_file() else path) for path in given.values() if Path(path).exists()]
    volumes = [part for path in mounted for part in ("--volume", f"{path}:{path}:ro")]
    secret = ["--secret", f"id=pip,src={folder / 'pip.conf'}"]
    buildah("bud", "--pull-never", *volumes, *secret, "--file", str(DOCKERFILE), "--tag", "mibf:test", str(ROOT))
    yield buildah, buildah("from", "--pull-never", "mibf:test")
    shutil.rmtree(folder)


def test_image_runs_mibf_as_an_ordinary_user(built: tuple[Buildah, str]) -> None:
    buildah, container = built
    assert buildah("run", container, "--", "id", "--user") == "1000"
    assert buildah("run", container, "--", "mibf", "--version") == f"mibf {__version__}"
    sample = buildah("run", container, "--", "python", "-c", "from jobs.sample import sample_folder; print(sample_folder())")
    plan = buildah("run", "--env", f"MIBF_SAMPLE={sample}", container, "--", "mibf", "plan", f"{sample}/demo.yaml")
    assert "brandenburg: 768 x 1,536 pixels" in plan
