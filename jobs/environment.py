"""What a run was made with: packages, source code, input data, hardware. Kept beside its figures as environment.json.

The names of hosts and people and the addresses of clusters are left out: the file goes where the results go.
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
from jobs.config import Config
from jobs.declared import input_urls
from jobs.stages import read_manifest
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage

#: The packages whose versions a result may depend on, as far as they are installed.
PACKAGES = (
    "mibf", "torch", "ray", "dask", "distributed", "zarr", "numcodecs", "numpy", "scipy", "xarray", "rasterio", "rioxarray",
    "odc-geo", "pyproj", "geopandas", "safetensors", "fsspec", "s3fs", "gcsfs", "adlfs", "tensorboardX", "mlflow-skinny",
)  # fmt: skip
#: Seconds that git may take.
PATIENCE = 5.0


def environment(config: Config, workspace: Workspace) -> dict[str, Any]:
    """What a training of this configuration is made with, as far as the machine that asks can tell.

    What cannot be told is null: the commit where there is no checkout, the fingerprint of an input that is gone.
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
    """The versions of packages, and of the CUDA that torch was built for, if any."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def source_code(root: Path | None = None) -> dict[str, Any] | None:
    """The commit of the checkout that mibf is run from, and whether files of its packages differ; None where it is none.

    `root` is the folder that holds the packages. Only that folder counts: a package that is installed below
    somebody else's checkout is not part of it.
    """
    root = root or Path(mibf.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "mibf", "pipeline", "jobs")
    return None if commit is None else {"commit": commit, "modified": None if changed is None else bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it is not installed, refuses, or takes long."""
    # GIT_DIR and the like, as a hook has them set, would have git look elsewhere.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**outside, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _data(config: Config, workspace: Workspace) -> dict[str, Any]:
    """What the stores were prepared from: the manifest's hashes, and a fingerprint of each input as it is now."""
    manifest = read_manifest(workspace, "prepare")
    prepared = None
    if manifest is not None:
        prepared = {"identity": manifest.identity, "fingerprint": manifest.fingerprint, "finished": manifest.finished}
    try:
        urls = input_urls(config)
    except InputError:  # a STAC item is gone, and with it the list of its files
        return {"prepare": prepared, "inputs": None}
    return {"prepare": prepared, "inputs": {storage.shown(url): _stamp(url) for url in urls}}


def _stamp(url: str) -> str | None:
    try:
        return storage.stamp(url)
    except InputError:  # gone: the stores may be used without it
        return None


def hardware() -> dict[str, Any]:
    """The processor, memory and GPUs of the machine that asks; its name is left out. A worker may ask for its own."""
    return {
        "cpu": _processor(),
        "cores": {
            "physical": psutil.cpu_count(logical=False),
            "logical": psutil.cpu_count(),
            "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    """The GPUs that torch may use here."""
    if not torch.cuda.is_available():
        return []
    driver = _driver()
    found = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        capability = f"{gpu.major}.{gpu.minor}"
        found.append({"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": capability, "driver": driver})
    return found


def _driver(told: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's driver, of the kernel's own account (Linux); torch does not tell it."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", told.read_text())
    except OSError:
        return None
    return found[1] if found else None
