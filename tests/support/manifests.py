"""The files of infra/: parsed Kubernetes manifests, and programs that check them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

INFRA = ROOT / "infra"
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


MANIFESTS = {path.name: read(f"kuberay/{path.name}") for path in sorted((INFRA / "kuberay").glob("*.yaml"))}
RAY = {name: manifest for name, manifest in MANIFESTS.items() if manifest["kind"] in CRDS}
CORE = {name: manifest for name, manifest in MANIFESTS.items() if name not in RAY}
RAYJOBS = {name: manifest for name, manifest in RAY.items() if manifest["kind"] == "RayJob"}


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a manifest, including the manifest itself."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def pods(manifest: Any) -> list[dict[str, Any]]:
    return [mapping for mapping in mappings(manifest) if "containers" in mapping]


SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|KEY", re.IGNORECASE)


def program(name: str) -> str:
    """Return the path of a program from the test environment or PATH; skip the test if not installed."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
