"""Versions of mibf and of the libraries that compute values: what a job needs, what made a result, what differs now."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping

import rasterio

from mibf import __version__
from mibf.errors import InputError

#: Environment variable of a job with the mibf version that submitted it.
SUBMITTED_WITH = "MIBF_SUBMITTED_WITH"
#: The libraries of which another minor version makes results stale with `stale_on_upgrade`, with their proper names.
PINNED = {"gdal": "GDAL", "proj": "PROJ", "torch": "torch"}
_NAMES = {"mibf": "mibf", "numpy": "numpy", **PINNED}


def check_version() -> None:
    """Check that this process, if a submitted job, was submitted with the mibf version installed here.

    Raises:
        InputError: the versions differ.
    """
    theirs = os.environ.get(SUBMITTED_WITH, __version__)
    if theirs != __version__:
        raise InputError(
            f"this cluster has mibf {__version__}, but the job was submitted with mibf {theirs}; install the same on both."
        )


def library_versions() -> dict[str, str]:
    """The versions of mibf and of the libraries that compute values; GDAL and PROJ are those that rasterio uses."""
    return {
        "mibf": __version__,
        "gdal": rasterio.__gdal_version__,
        "proj": rasterio.__proj_version__,
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
    }


def pinned_versions() -> dict[str, str]:
    """Major and minor versions of the libraries in `PINNED`, which are part of fingerprints with `stale_on_upgrade`."""
    found = library_versions()
    return {name: ".".join(found[name].split(".")[:2]) for name in PINNED}


def version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """List the libraries whose versions differ, as "GDAL 3.9.1 (now 3.10.0)"; empty if none do or none are recorded."""
    changed = [name for name in _NAMES if name in then and then[name] != now.get(name)]
    return ", ".join(f"{_NAMES[name]} {then[name]} (now {now.get(name, 'missing')})" for name in changed)
