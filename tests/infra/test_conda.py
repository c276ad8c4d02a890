"""The conda recipe of infra/conda: the same package as pyproject.toml describes, and accepted by rattler-build."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from mibf import __version__
from tests.support.manifests import INFRA, read
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Names on conda-forge of what has another one on PyPI, with its extras; packages of an extra may have limits of their own.
CONDA_NAMES = {
    "dask[array]": ("dask-core",),  # and numpy, which is required itself
    "matplotlib": ("matplotlib-base",),  # without the graphical toolkits
    "pystac[validation]": ("pystac", "jsonschema"),
    "ray[data,train]": ("ray-data", "ray-train"),
    "tensorboardX": ("tensorboardx",),
    "torch": ("pytorch",),
}
#: Packages of extras, whose limits are those of the package with the extra.
LIMITS_OF_EXTRAS = {"jsonschema": ">=4.18"}


@pytest.fixture(scope="module")
def recipe() -> Any:
    return read("conda/recipe.yaml")


def test_dependencies_are_those_of_pyproject_under_the_names_of_conda_forge(recipe: Any) -> None:
    expected = []
    for requirement in PROJECT["dependencies"]:
        match = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)(.*)", requirement)
        assert match, requirement
        name, limits = match.groups()
        expected += [f"{n} {LIMITS_OF_EXTRAS.get(n, limits)}" for n in CONDA_NAMES.get(name, (name,))]
    minimum = recipe["context"]["python_min"]
    assert PROJECT["requires-python"] == f">={minimum}"
    assert recipe["requirements"]["run"] == ["python >=${{ python_min }}", *expected]


def test_package_is_that_of_pyproject(recipe: Any) -> None:
    assert recipe["context"]["version"] == __version__
    assert recipe["package"]["name"] == PROJECT["name"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]
    scripts = [f"{name} = {function}" for name, function in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts


def test_rattler_build_renders_the_recipe() -> None:
    rattler_build = pytest.importorskip("rattler_build", reason="py-rattler-build is not installed")
    recipe = rattler_build.Stage0Recipe.from_file(str(INFRA / "conda/recipe.yaml"))
    (variant,) = recipe.render(rattler_build.VariantConfig())
    assert variant.recipe.package.name == "mibf"
