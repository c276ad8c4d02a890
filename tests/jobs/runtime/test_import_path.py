"""A folder's own `pipeline.py`, `mibf/` or `jobs/` does not replace mibf's packages, in commands or on Ray's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HOSTILE = "raise RuntimeError('the module of the current folder was imported')\n"
#: Start Ray as a command does, and have a worker import each package; print where it found them.
ON_A_WORKER = """
import importlib, json, ray
from jobs.runtime import ray_cluster
ray_cluster.ensure(workers=1)
found = ray.remote(lambda: [importlib.import_module(name).__file__ for name in ("jobs", "pipeline", "mibf", "yaml")])
print(json.dumps(ray.get(found.remote())))
ray_cluster.close()
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules of the same names as mibf's packages and one that mibf imports."""
    for name in ("pipeline.py", "yaml.py", "mibf/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(HOSTILE)
    return tmp_path


def python(*arguments: str, folder: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )


def test_command_started_as_a_module_does_not_import_from_the_current_folder(hostile: Path) -> None:
    done = python("-m", "jobs.cli", "schema", folder=hostile)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["title"] == "mibf configuration"


@pytest.mark.parametrize("name", ["pipeline.py", "mibf/__init__.py"])
def test_replaced_package_exits_2_and_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(HOSTILE)
    program = "import sys\nfrom jobs.cli import app\napp(['schema'])"
    done = python("-P", "-c", program, folder=tmp_path, path=os.pathsep.join(["", str(ROOT)]))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"mibf: {tmp_path / name}: would be imported instead of mibf's package")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ray_workers_do_not_import_from_the_drivers_folder(hostile: Path) -> None:
    (hostile / "jobs").mkdir()
    (hostile / "jobs" / "__init__.py").write_text(HOSTILE)
    done = python("-P", "-c", ON_A_WORKER, folder=hostile)
    assert done.returncode == 0, done.stderr
    jobs, pipeline, mibf, other = json.loads(done.stdout)
    assert [jobs, pipeline, mibf] == [str(ROOT / name / "__init__.py") for name in ("jobs", "pipeline", "mibf")]
    assert not other.startswith(str(hostile))
