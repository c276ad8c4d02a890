"""Import path of mibf's processes: a folder's own `pipeline.py` or `jobs/` must not replace mibf's packages.

`python -m` and an empty entry of PYTHONPATH put the current folder first on Python's import path, and Ray puts the
driver's current folder first on that of its workers. This module imports none of the packages that it checks.
"""

from __future__ import annotations

import importlib.util
import site
import sys
from pathlib import Path

#: The folder that holds mibf's packages.
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "mibf", "pipeline")


def leave_current_folder() -> None:
    """Remove the current folder, which `python -m` puts first, from the import path, unless mibf's packages are in it."""
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]).resolve() == Path.cwd() != ROOT:
        sys.path.pop(0)


def replaced_package() -> str | None:
    """Return a message if another module would be imported instead of one of mibf's packages; otherwise None."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        origin = None if found is None else found.origin
        if origin is None or Path(origin).resolve() != ROOT / name / "__init__.py":
            return (
                f"{origin or name}: would be imported instead of mibf's package `{name}`. Run the command from another "
                "folder, rename that file, or remove its folder (or an empty entry) from PYTHONPATH."
            )
    return None


def worker_path() -> list[str]:
    """Return the folders to put first on the import path of Ray's workers: that of a source tree, none if installed."""
    installed = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    return [] if ROOT in installed else [str(ROOT)]
