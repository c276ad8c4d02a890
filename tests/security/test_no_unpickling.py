"""No code execution from stored data: no module unpickles or evaluates, and pickles in place of data are refused."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.cli.common import app
from mibf.bundle.bundle import MODEL, WEIGHTS
from mibf.bundle.files import from_files, to_files
from mibf.bundle.reference_checkpoint import from_bytes
from mibf.errors import InputError
from mibf.training.checkpoint import MAGIC, Checkpoint, DamagedCheckpointError, TrainingPosition
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.model_bundle import read_bundle, write_bundle
from pipeline.maps.ledger import Ledger
from pipeline.maps.predictor import TileInput
from pipeline.store.patch_store import PatchStore
from tests.support.bundles import make_bundle
from tests.support.paths import ROOT

MODULES = [path for layer in ("mibf", "pipeline", "jobs") for path in sorted((ROOT / layer).rglob("*.py"))]
UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
#: The only name of pickle that code may use: the error that torch raises for an invalid file.
ALLOWED = {"pickle.UnpicklingError"}
#: Functions of packages that can unpickle, which do not.
SAFE = {"joblib.cpu_count"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl", "pty.spawn",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load", "torch.hub.load",
    "torch.package.PackageImporter", "pandas.read_pickle", "pd.read_pickle", "tempfile.mktemp", "importlib.import_module",
    "runpy.run_path", "ssl._create_unverified_context",
}  # fmt: skip  # a list of names: one per line would fill a page
NAMES = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader"}
#: Keyword arguments that no call may pass with this value.
KEYWORDS = {"shell": True, "allow_pickle": True, "verify": False, "ssl": False, "autoescape": False}
#: Keyword arguments that these calls must pass, with their value.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "jinja2.Environment": ("autoescape", True),
    "jinja2.Template": ("autoescape", True),
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_code(source: str) -> list[str]:
    """List what a module does that could execute data that it reads, each entry with its line number."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named = {alias.name.split(".")[0] for alias in node.names if alias.name != "pickle"}
            found += [f"{node.lineno}: imports {name}" for name in named & UNPICKLING]
        elif isinstance(node, ast.ImportFrom):
            qualified = {f"{node.module}.{alias.name}" for alias in node.names}
            if qualified <= SAFE:
                continue
            parts = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
            if parts & UNPICKLING or qualified & (CALLS | NAMES):
                found.append(f"{node.lineno}: imports from {node.module}")
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in NAMES or (name.startswith("pickle.") and name not in ALLOWED):
                found.append(f"{node.lineno}: uses {name}")
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            passed = {word.arg for word in node.keywords}
            if name in CALLS:
                found.append(f"{node.lineno}: calls {name}")
            for keyword, value in KEYWORDS.items():
                computed = keyword in passed and keyword not in given
                if computed or (keyword in given and given[keyword] is value):
                    found.append(f"{node.lineno}: calls {name} with {keyword}")
            keyword, value = REQUIRED.get(name, ("", None))
            if keyword and given.get(keyword) is not value:
                found.append(f"{node.lineno}: calls {name} without {keyword}={value}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_has_no_unsafe_deserialization_or_execution(path: Path) -> None:
    assert unsafe_code(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import dill", "import joblib.numpy_pickle",
        "from joblib import cpu_count, load", "from pickle import loads", "from ray import cloudpickle",
        "import pickle\npickle.loads(b)", "import pickle\nf = pickle.Unpickler", "torch.load(f)",
        "torch.load(f, weights_only=False)", "torch.load(f, weights_only=x)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)",
        "yaml.load(t, Loader=yaml.SafeLoader)", "yaml.load(t, yaml.Loader)", "from yaml import unsafe_load", "eval('1')",
        "exec(code)", "subprocess.run(c, shell=True)", "subprocess.run(c, shell=flag)", "os.system(c)",
        "jinja2.Environment()", "jinja2.Environment(autoescape=False)", "requests.get(u, verify=False)",
    ],
)  # fmt: skip  # a list of names: one per line would fill a page
def test_scanner_finds_unsafe_code(source: str) -> None:
    assert unsafe_code(source)


def test_scanner_accepts_safe_code() -> None:
    source = (
        "from joblib import cpu_count\n"
        "import pickle, re\ntry:\n    torch.load(f, weights_only=True)\nexcept pickle.UnpicklingError:\n    pass\n"
        "re.compile('a')\n"
        "np.load(f, allow_pickle=False)\nyaml.safe_load(t)\nnetwork.eval()\nsubprocess.run(['git'], check=True)\n"
        "jinja2.Environment(autoescape=True)\n"
    )
    assert unsafe_code(source) == []


# --- pickles in place of data


class MaliciousObject:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.touched),)


@pytest.fixture
def evils(tmp_path: Path) -> Any:
    """Yield contents by kind that create a folder when unpickled; check at the end that the folder does not exist."""
    touched = tmp_path / "owned"
    saved, old, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"network": MaliciousObject(touched)}, saved)
    torch.save({"network": MaliciousObject(touched)}, old, _use_new_zipfile_serialization=False)
    np.savez(arrays, arr_0=np.array([MaliciousObject(touched)], object), wanted=np.ones(1, bool), present=np.ones(1, bool))
    contents = {
        "pickle": pickle.dumps(MaliciousObject(touched)),
        "old pickle": pickle.dumps(MaliciousObject(touched), protocol=0),
        "torch": saved.getvalue(),
        "old torch": old.getvalue(),
        "numpy": arrays.getvalue(),
    }
    yield contents
    assert not touched.exists(), "the pickle was executed"
    pickle.loads(contents["pickle"])
    assert touched.exists(), "the pickle must be executable for this test to mean anything"


KINDS = ("pickle", "old pickle", "torch", "old torch", "numpy")


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_checkpoint_is_refused_and_not_executed(tmp_path: Path, evils: dict[str, bytes], kind: str) -> None:
    content = evils[kind]
    kept = Checkpoints(str(tmp_path / "checkpoints"))
    for planted in (content, MAGIC + hashlib.sha256(content).digest() + content):
        with pytest.raises(DamagedCheckpointError):
            Checkpoint.from_bytes(planted)
        storage.write_bytes(kept.checkpoint_url(TrainingPosition(1, 0)), planted)
        with pytest.raises(InputError, match="all checkpoints are corrupt"):
            kept.newest()


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_bundle_files_is_refused_and_not_executed(tmp_path: Path, evils: dict[str, bytes], kind: str) -> None:
    write_bundle(str(tmp_path / "model"), make_bundle())
    weights, model = tmp_path / "model" / WEIGHTS, tmp_path / "model" / MODEL
    weights.write_bytes(evils[kind])
    values = json.loads(model.read_text())
    values["weights"] = {"sha256": hashlib.sha256(evils[kind]).hexdigest(), "bytes": len(evils[kind])}
    model.write_text(json.dumps(values))
    with pytest.raises(InputError, match="the model bundle is damaged"):
        read_bundle(str(tmp_path / "model"))
    shown = CliRunner().invoke(app, ["bundle", "show", str(tmp_path / "model")])
    assert shown.exit_code == 2, shown.output
    model.write_bytes(evils[kind])
    with pytest.raises(InputError, match="the model bundle is damaged"):
        read_bundle(str(tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_reference_checkpoint_is_refused_and_not_executed(evils: dict[str, bytes], kind: str) -> None:
    with pytest.raises(InputError, match=r"a\.pth\.tar: "):
        from_bytes(evils[kind], name="a.pth.tar")


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_serialized_tile_is_refused_and_not_executed(evils: dict[str, bytes], kind: str) -> None:
    with pytest.raises(Exception, match=r".*"):  # of any type: such bytes come only from our own process
        TileInput.from_bytes(evils[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_ledger_segment_is_refused_and_not_executed(tmp_path: Path, evils: dict[str, bytes], kind: str) -> None:
    (tmp_path / "000001.parquet").write_bytes(evils[kind])
    with pytest.raises(InputError, match="parquet"):
        Ledger.open(str(tmp_path)).table()


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_store_metadata_is_refused_and_not_executed(tmp_path: Path, evils: dict[str, bytes], kind: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_bytes(evils[kind])
    with pytest.raises(Exception, match=r".*"):
        PatchStore(str(tmp_path / "a.zarr"))


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_as_json_is_refused_and_not_executed(tmp_path: Path, evils: dict[str, bytes], kind: str) -> None:
    (tmp_path / "a.json").write_bytes(evils[kind])
    with pytest.raises(ValueError, match=r".*"):
        storage.read_json(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "module",
    ["pipeline.store.patch_store", "pipeline.maps.tile_mapper", "pipeline.sampling.sampler", "jobs.map.ray_workers"],
)
def test_worker_process_cannot_unpickle_zarr_arrays(module: str) -> None:
    program = (
        f"import numcodecs, {module}\n"
        "try:\n"
        "    numcodecs.get_codec({'id': 'pickle'})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pickles, which can run arbitrary code" in done.stdout


# --- untrusted models


@pytest.mark.parametrize(
    "change",
    [
        {"color": "red; background-image: url(https://host/x)"},
        {"color": "#fff"},
        {"color": None},
        {"name": "wa\x1b[2Jter"},
        {"name": ""},
        {"name": ["water"]},
        {"id": 255},
        {"id": -1},
        {"id": "1"},
        {"id": True},
    ],
)
def test_invalid_classes_in_model_json_raise(change: dict[str, Any]) -> None:
    files = to_files(make_bundle())
    model = json.loads(files[MODEL])
    model["classes"][0] |= change
    with pytest.raises(InputError) as caught:
        from_files({**files, MODEL: json.dumps(model).encode()})
    assert "model.json has the class" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_deeply_nested_model_json_raises() -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        from_files({**to_files(make_bundle()), MODEL: b'{"format": ' + b"[" * 100_000})


def test_bundle_show_escapes_control_characters_and_redacts_urls(tmp_path: Path) -> None:
    write_bundle(
        str(tmp_path), make_bundle(provenance={"run": "a\x1b[2Jb", "fingerprint": "https://me:planted@host/?sig=planted"})
    )
    shown = CliRunner().invoke(app, ["bundle", "show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "a<U+001B>[2Jb" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "planted" not in shown.stdout
