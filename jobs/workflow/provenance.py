"""Provenance of a run: packages, source code, input data and hardware. Stored alongside its metrics as environment.json.

Host names, user names and cluster addresses are left out, because the file is published with the results.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

import mibf
from jobs.config.config import Config
from jobs.config.resolve import input_urls
from jobs.runtime.version import library_versions
from jobs.workflow.found_items import found_items
from jobs.workflow.manifest import read_manifest
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import checksums, storage
from pipeline.io.sidecars import Listings
from pipeline.parallel.cpu_count import cpu_count

#: The packages whose versions may affect a result; those that are installed are recorded.
PACKAGES = (
    "mibf", "torch", "ray", "dask", "distributed", "zarr", "numcodecs", "numpy", "scipy", "xarray", "rasterio", "rioxarray",
    "odc-geo", "pyproj", "geopandas", "safetensors", "fsspec", "s3fs", "gcsfs", "adlfs", "tensorboardX", "mlflow-skinny",
    "lightgbm", "scikit-learn",
)  # fmt: skip  # a list of names: one per line would fill a page
#: Timeout of git commands in seconds.
TIMEOUT_SECONDS = 5.0


def environment(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Record the environment that a configuration is trained in, as seen from this machine.

    Unknown values are null: the commit if there is no checkout, the fingerprint of an input that no longer exists.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "source": source_code(),
        "data": _data(config, workspace),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """The versions of the packages, of GDAL and PROJ, and of the CUDA version that torch was built for, if any."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found |= {name: library_versions()[name] for name in ("gdal", "proj")}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def source_code(root: Path | None = None) -> dict[str, Any] | None:
    """The commit of the checkout that mibf runs from, and whether its packages were modified; None if it is no checkout.

    `root` is the folder that contains the packages. Only that folder counts: a package that is installed below
    another project's checkout is not part of it.
    """
    root = root or Path(mibf.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "mibf", "pipeline", "jobs")
    return None if commit is None else {"commit": commit, "modified": None if changed is None else bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None if git is not installed, fails or times out."""
    # GIT_DIR and similar variables, as set in a git hook, would point git at another repository.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**outside, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _data(config: Config, workspace: Workspace) -> dict[str, Any]:
    """The data that the stores were prepared from: the manifest's hashes, and the current fingerprint of each input."""
    manifest = read_manifest(workspace, "prepare")
    prepared = None
    if manifest is not None:
        prepared = {"identity": manifest.identity, "fingerprint": manifest.fingerprint, "finished": manifest.finished}
    try:
        urls = input_urls(found_items(config))
    except InputError:  # a STAC item no longer exists, so its files are unknown
        return {"prepare": prepared, "inputs": None}
    listings = Listings()
    return {"prepare": prepared, "inputs": {storage.redact_url(url): _input_stamp(url, listings) for url in urls}}


def _input_stamp(url: str, listings: Listings) -> str | None:
    try:
        return checksums.input_fingerprint(url, listings)
    except InputError:  # the input no longer exists; the stores can be used without it
        return None


def hardware() -> dict[str, Any]:
    """The processor, memory and GPUs of this machine, without its name. Workers record their own."""
    return {
        "cpu": _processor(),
        "cores": {
            "physical": psutil.cpu_count(logical=False),
            "logical": psutil.cpu_count(),
            "usable": cpu_count(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def _processor() -> str:
    """The processor's name, or the architecture if the system does not report a name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    """The GPUs that torch can use here."""
    if not torch.cuda.is_available():
        return []
    driver = _driver()
    found = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        capability = f"{gpu.major}.{gpu.minor}"
        found.append({"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": capability, "driver": driver})
    return found


def _driver(version_file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of the NVIDIA driver as reported by the kernel (Linux only); torch does not report it."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", version_file.read_text())
    except OSError:
        return None
    return found[1] if found else None
