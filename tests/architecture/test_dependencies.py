"""Every third-party package that the code imports is declared in pyproject.toml, not only installed by another one."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions

from tests.support.imports import PACKAGES, PATHS, dotted, packages
from tests.support.paths import ROOT

#: Extras for developing mibf; the code may import what the others install.
FOR_DEVELOPMENT = {"test", "docs"}


def normalized(name: str) -> str:
    """A distribution's name in the normal form of the packaging specifications."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Names of the distributions that mibf requires, always or by an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra not in FOR_DEVELOPMENT]
    requirements = [line for lines in (project["dependencies"], *extras) for line in lines]
    return {normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}


def test_every_imported_package_is_declared() -> None:
    distributions, names = packages_distributions(), declared()
    undeclared = [
        f"{dotted(path)} imports {package}"
        for path in PATHS
        for package in sorted(packages(path) - set(PACKAGES))
        if not names & {normalized(distribution) for distribution in distributions.get(package, [package])}
    ]
    assert not undeclared
