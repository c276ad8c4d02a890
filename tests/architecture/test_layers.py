"""Imports point down only: between packages, between folders and between modules, and each layer imports what it may."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.imports import MODULES, PATHS, dotted, imports, packages
from tests.support.paths import ROOT

OURS = {"mibf", "pipeline", "jobs", "infra"}
#: Third-party packages that each layer may import; `jobs` may import anything.
ALLOWED = {
    "mibf": {"torch", "numpy", "safetensors", "triton", "numba", "llvmlite"},
    "pipeline": {
        "affine", "botocore", "dask", "distributed", "fsspec", "geopandas", "h5py", "joblib", "lightgbm",
        "numcodecs", "numpy", "odc", "pandas", "planetary_computer", "pyarrow", "pyogrio", "pyproj", "pystac",
        "pystac_client", "rasterio", "requests", "rio_cogeo", "rioxarray", "scipy", "shapely", "skimage",
        "sklearn", "stac_geoparquet", "torch", "xarray", "zarr",
    },
}  # fmt: skip  # a list of names: one per line would fill a page
BELOW = {"mibf": {"mibf"}, "pipeline": {"mibf", "pipeline"}, "jobs": {"mibf", "pipeline", "jobs"}}
#: The folders of each package from the bottom up; a folder may import only folders that stand before it.
ORDER = {
    "mibf": ("mibf", "mibf.network", "mibf.metrics", "mibf.training", "mibf.inference", "mibf.bundle"),
    "pipeline": (
        "pipeline", "pipeline.parallel", "pipeline.io.requests", "pipeline.io", "pipeline.decoding", "pipeline.rasters",
        "pipeline.stac",
        "pipeline.stratification", "pipeline.scenes", "pipeline.areas", "pipeline.store", "pipeline.classifiers",
        "pipeline.sampling", "pipeline.maps", "pipeline.geotiff", "pipeline.publishing.page",
        "pipeline.publishing.stac_fields", "pipeline.publishing",
        "pipeline.assessment", "pipeline.polygons", "pipeline.transitions",
    ),
    "jobs": (
        "jobs", "jobs.config.table", "jobs.config", "jobs.runtime", "jobs.workflow", "jobs.search", "jobs.sample",
        "jobs.train.tracking",
        "jobs.evaluate", "jobs.baseline", "jobs.trials", "jobs.models", "jobs.train", "jobs.prepare", "jobs.map",
        "jobs.report", "jobs.assess", "jobs.suggest", "jobs.products", "jobs.view", "jobs.inspection", "jobs.init",
        "jobs.benchmark", "jobs.fleet", "jobs.bench.harness",
        "jobs.bench", "jobs.bench.fleets", "jobs.cli",
    ),
}  # fmt: skip  # a list of names: one per line would fill a page


def folder(module: str) -> str:
    """The folder of a module as a dotted name."""
    return ".".join(MODULES[module].relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    names = packages(path)
    assert names & OURS <= BELOW[layer]
    if layer in ALLOWED:
        assert names - OURS <= ALLOWED[layer]


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_downward_only(package: str) -> None:
    order = ORDER[package]
    assert sorted(order) == sorted({folder(module) for module in MODULES if module.partition(".")[0] == package})
    upward = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == package
        for name in imports(path)
        if name in MODULES and name.partition(".")[0] == package and order.index(folder(name)) > order.index(folder(module))
    ]
    assert not upward


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: {name for name in imports(path) if name in MODULES} - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_command_imports_a_sibling_command() -> None:
    shared = {"jobs.cli", "jobs.cli.common", "jobs.cli.stage_runner"}
    commands = {module for module in MODULES if module.startswith("jobs.cli.")} - shared - {"jobs.cli.__main__"}
    found = {module: sorted(set(imports(MODULES[module])) & commands - {module}) for module in commands}
    assert not {module: names for module, names in found.items() if names}


def test_no_stage_imports_another() -> None:
    """What stages share belongs to the folders below them."""
    stages = {f"jobs.{name}" for name in ("prepare", "train", "evaluate", "map", "report")}
    found = {
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name in MODULES and folder(module) != folder(name) and {folder(module), folder(name)} <= stages
    }
    assert not found


def test_only_jobs_imports_ray() -> None:
    assert {dotted(path).partition(".")[0] for path in PATHS if "ray" in packages(path)} == {"jobs"}


def test_no_test_module_imports_another() -> None:
    """Shared helpers live in `tests/support`, shared fixtures in the nearest `conftest.py`."""
    paths = {dotted(path): path for path in sorted((ROOT / "tests").rglob("*.py"))}
    tests = {module for module in paths if module.rpartition(".")[2].startswith("test_")}
    found = {module: sorted(set(imports(path, known=paths)) & tests) for module, path in paths.items()}
    assert not {module: names for module, names in found.items() if names}


def test_infra_contains_no_python() -> None:
    assert not list((ROOT / "infra").rglob("*.py"))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["bundle", "show", "--help"], ["--version"]])
def test_help_does_not_import_heavy_packages(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom jobs.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'ray', 'dask', 'zarr', 'xarray', 'rasterio', 'numpy', 'sklearn', 'lightgbm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_stages_import_ray_only_where_they_use_it() -> None:
    """With no workers, a stage runs in its own process, where Ray need not be installed."""
    stages = [f"jobs.{name}.stage" for name in ("prepare", "train", "evaluate", "map", "report")]
    program = f"import sys, {', '.join(stages)}\nsys.exit('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_process_of_the_progress_actor_imports_no_torch() -> None:
    """It starts together with the training workers, which need the cores."""
    program = "import sys, jobs.runtime.progress_actor\nsys.exit('torch' in sys.modules or 'ray.train' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
