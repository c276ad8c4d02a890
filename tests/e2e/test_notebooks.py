"""The notebooks of the examples, and the code of the page about Python, run offline from beginning to end."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.support.mapped_scene import Mapped
from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
#: What stored outputs have in place of the folders of the machine that recorded them.
FOLDERS = {"notebook": "/home/you/notebooks", "mibf": "/home/you/mibf"}
#: Set it to store the outputs of this run in the notebooks.
RECORD = "MIBF_RECORD_NOTEBOOKS"


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook in a folder with this Python; a cell that raises fails the test."""
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": None, "kernel_name": "python3", "coalesce_streams": True}
    return NotebookClient(notebook, **options, resources={"metadata": {"path": str(folder)}}).execute()


def stored(notebook: Any, folder: Path) -> Any:
    """The notebook as it is stored: its outputs, without times and the folders of this machine."""
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("text/html", None)  # a second form of tables
            for texts, key in ((output, "text"), (output.get("data", {}), "text/plain")):
                if key in texts:
                    texts[key] = texts[key].replace(str(folder), FOLDERS["notebook"]).replace(str(ROOT), FOLDERS["mibf"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def kinds(notebook: Any) -> list[set[str]]:
    """The kinds of each cell's outputs: `text` and `image/png`."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        found.append({"image/png" if "image/png" in output.get("data", {}) else "text" for output in outputs})
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_offline_and_has_its_outputs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "notebook"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    if os.environ.get(RECORD):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # times of all cores are stored
    for name in ("http_proxy", "https_proxy"):  # a closed port
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    notebook = executed(path, folder)
    if os.environ.get(RECORD):
        nbformat.write(stored(notebook, folder), path)
    assert kinds(nbformat.read(path, as_version=4)) == kinds(notebook), f"outputs are out of date: set {RECORD}=1"


def test_stored_outputs_name_no_folders_of_the_machine_that_recorded_them() -> None:
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        found = set(re.findall(r"/(?:home|root|tmp|work|usr|opt|Users)/[\w./-]*", path.read_text("utf-8")))
        assert all(name.startswith(tuple(FOLDERS.values())) for name in found), found


def test_code_of_the_python_page_runs(
    trained: Mapped, reference: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "work/small"
    workspace.mkdir(parents=True)
    for name in ("models", "stores", "maps"):
        (workspace / name).symlink_to(reference.folder / "work" / name)
    (tmp_path / "small.yaml").write_bytes(trained.config.read_bytes())
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/python.md").read_text("utf-8").replace("valley", "small")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)
    codes = names["found"]["class"][0]
    assert (codes == reference.pixels()[0, :128, :128]).all()
    probabilities = names["found"]["probabilities"]
    assert np.nansum(probabilities, axis=0)[codes != 255] == pytest.approx(1, abs=1e-5)
    assert names["ids"].shape == (100, 80)
    assert not names["ran"], "both stages are current, so that nothing is written to the shared scene"
