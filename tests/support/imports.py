"""What the modules of the three packages import, read from their source without importing them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.support.paths import ROOT

PACKAGES = ("mibf", "pipeline", "jobs")
PATHS = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def dotted(path: Path) -> str:
    """The dotted name of a module; that of its package for `__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in PATHS}


def imports(path: Path, *, known: Collection[str] = MODULES) -> Iterator[str]:
    """Dotted names of everything that a module imports, inside functions too.

    `from A import B` gives `A.B` if that is one of the `known` modules, else `A`.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else str(node.module)


def packages(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, without the standard library."""
    return {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
