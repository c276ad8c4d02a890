"""Sizes of the code: modules, functions, folders, and tests per source line. Standard library only; `make metrics` runs it.

Lines are physical lines of Python files, with comments, docstrings and blank lines. A function's length counts from its
`def` (decorators excluded) to its last line. A folder's size counts its modules without `__init__.py` and `__main__.py`.
"""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = ("mibf", "pipeline", "jobs")
TESTS = "tests"
#: Largest allowed module in lines, function in lines, and folder in modules; tests/architecture enforces them.
MODULE_LINES, FUNCTION_LINES, FOLDER_MODULES = 400, 60, 12


@dataclass(frozen=True)
class Size:
    """The size of one module, function or folder."""

    name: str
    size: int


@dataclass(frozen=True)
class Metrics:
    """All measurements of a source tree; each list is sorted from the largest to the smallest."""

    modules: list[Size]
    functions: list[Size]
    folders: list[Size]
    source_lines: int
    test_lines: int

    @property
    def tests_per_source_line(self) -> float:
        """Lines of tests per line of source."""
        return self.test_lines / self.source_lines

    def violations(self) -> list[str]:
        """Modules, functions and folders above their limits, one line each."""
        limits = (
            (self.modules, MODULE_LINES, "lines"),
            (self.functions, FUNCTION_LINES, "lines"),
            (self.folders, FOLDER_MODULES, "modules"),
        )
        return [
            f"{s.name}: {s.size} {unit}, at most {limit}" for sizes, limit, unit in limits for s in sizes if s.size > limit
        ]


def functions(path: Path, name: str) -> Iterator[Size]:
    """Every function and method of a module, nested ones too, as `MODULE:LINE NAME`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Size(f"{name}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)


def measure(root: Path) -> Metrics:
    """Measure the packages and tests below a repository's root."""
    modules, found, folders = [], [], {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = str(path.relative_to(root))
            modules.append(Size(name, len(path.read_text("utf-8").splitlines())))
            found += functions(path, name)
            folder = str(path.parent.relative_to(root))
            folders[folder] = folders.get(folder, 0) + (path.name not in ("__init__.py", "__main__.py"))
    tests = sum(len(path.read_text("utf-8").splitlines()) for path in (root / TESTS).rglob("*.py"))

    def largest_first(sizes: list[Size]) -> list[Size]:
        return sorted(sizes, key=lambda s: (-s.size, s.name))

    return Metrics(
        largest_first(modules),
        largest_first(found),
        largest_first([Size(*item) for item in folders.items()]),
        sum(module.size for module in modules),
        tests,
    )


def summary(metrics: Metrics) -> str:
    """The measurements as text."""
    lines = []
    for title, sizes, unit in (
        ("modules", metrics.modules, "lines"),
        ("functions", metrics.functions, "lines"),
        ("folders", metrics.folders, "modules"),
    ):
        values = [s.size for s in sizes]
        lines.append(f"{title}: {len(values)}, median {statistics.median(values):g} {unit}, largest:")
        lines += [f"  {s.size:5d}  {s.name}" for s in sizes[:5]]
    ratio = metrics.tests_per_source_line
    lines.append(f"tests per source line: {metrics.test_lines:,} / {metrics.source_lines:,} = {ratio:.2f}")
    broken = metrics.violations()
    lines.append(f"above the limits: {len(broken)}")
    return "\n".join([*lines, *(f"  {line}" for line in broken)])


if __name__ == "__main__":
    result = measure(
        Path(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else Path(__file__).resolve().parents[1]
    )
    if "--json" in sys.argv:
        print(json.dumps(asdict(result) | {"tests_per_source_line": round(result.tests_per_source_line, 3)}, indent=1))
    else:
        print(summary(result))
