"""Arrows point down only: jobs -> pipeline -> mibf, and each layer imports what it may."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"mibf", "pipeline", "jobs", "infra"}
#: Third-party packages that each layer may import; `jobs` may import anything.
ALLOWED = {
    "mibf": {"torch", "numpy", "safetensors"},
    "pipeline": {
        "affine", "dask", "distributed", "fsspec", "geopandas", "h5py", "numcodecs", "numpy", "odc", "pyarrow", "pyogrio",
        "pystac", "rasterio", "rio_cogeo", "rioxarray", "scipy", "shapely", "skimage", "torch", "xarray", "zarr",
    },
}  # fmt: skip
BELOW = {"mibf": {"mibf"}, "pipeline": {"mibf", "pipeline"}, "jobs": {"mibf", "pipeline", "jobs"}}
MODULES = [path for layer in BELOW for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert names & OURS <= BELOW[layer]
    if layer in ALLOWED:
        assert names - OURS <= ALLOWED[layer]


def test_only_jobs_imports_ray() -> None:
    users = {path.relative_to(ROOT).parts[0] for path in MODULES if "ray" in imported(path)}
    assert users == {"jobs"}


def test_infra_holds_no_python_that_others_import() -> None:
    assert not list((ROOT / "infra").rglob("*.py"))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["bundle", "show", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom jobs.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'ray', 'dask', 'zarr', 'xarray', 'rasterio', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
