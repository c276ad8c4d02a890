"""`mibf export`: the networks of a model for other runtimes, as ONNX and as a torch.export program.

Both take raw pixel values and return probabilities and class ids. They are compared with what maps are computed with, and
written only if they agree.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.config.loader import load
from jobs.products.export_check import SHAPES, TOLERANCE, largest_difference, random_inputs
from jobs.products.export_readme import describe, readme
from jobs.products.published import is_configuration
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.bundle.members import KIND_NAMES
from mibf.class_priors import PriorSetting
from mibf.errors import InputError
from mibf.inference.raw_model import RawModel
from pipeline.io import model_bundle, storage
from pipeline.io.retry import call_with_retry

ONNX, PROGRAM, DESCRIPTION, README = "model.onnx", "model.pt2", "model.json", "README.md"
#: Smallest sizes of the inputs: torch.export makes one row or column a case of its own.
MINIMUM = {"batch": 1, "rows": 2, "columns": 2}


@dataclass(frozen=True)
class Exported:
    """An exported model."""

    folder: str
    differences: dict[str, float]  #: largest difference of a probability, by file
    left_out: tuple[str, ...]  #: members of the model that are not in it, in words
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        checks = [f"  {name}: differs from mibf by at most {value:.1e}" for name, value in self.differences.items()]
        return [storage.redact_url(self.folder), *checks, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "folder": storage.redact_url(self.folder),
            "differences": self.differences,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def export(target: str, *, output: str | None = None, overrides: Sequence[str] = ()) -> Exported:
    """Export the networks of a model to a folder (URL), whose files are replaced.

    Args:
        target: the model's folder, or a configuration, whose `prediction.priors` then apply.
        output: where to write; `export` in the model's folder by default.
        overrides: values that replace those of the configuration.

    Raises:
        InputError: there is no such model, it has no networks, a package is missing, or the folder cannot be written to.
        ExportError: an exported model computes something else; nothing was written.
    """
    onnxruntime = _onnxruntime()
    bundle, folder, priors = _read(target, overrides)
    if not bundle.networks:
        raise InputError(
            f"{storage.redact_url(folder)}: the model is {bundle.method.lower()}, without a network; only networks can be "
            "exported. Train one with `train.model: network`, or use the model's own files."
        )
    output = storage.absolute(output or storage.join(folder, "export"))
    storage.check_writable(output)
    model = RawModel(
        [bundle.network(priors, position=position) for position in range(len(bundle.networks))],
        temperatures=[member.temperature for member in bundle.networks],
        shares=[member.share for member in bundle.networks],
        scaling=bundle.scaling,
        class_ids=[c.id for c in bundle.classes],
    ).eval()
    with _quiet():
        program = _program(model, bundle)
        content = io.BytesIO()
        torch.export.save(program, content)
        onnx = _onnx(program, model)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    names = [source.name for source in session.get_inputs()]

    def run_onnx(inputs: Sequence[Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
        probabilities, classes = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        return probabilities, classes

    def run_program(inputs: Sequence[Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
        probabilities, classes = program.module()(*inputs)
        return probabilities.numpy(), classes.numpy()

    differences = {
        ONNX: largest_difference(ONNX, run_onnx, bundle, priors),
        PROGRAM: largest_difference(PROGRAM, run_program, bundle, priors),
    }
    left_out = tuple(KIND_NAMES[member.kind] for member in bundle.pixelwise)
    description = describe(bundle, priors=priors, left_out=left_out, differences=differences, tolerance=TOLERANCE)
    files = {ONNX: onnx, PROGRAM: content.getvalue(), README: readme(description).encode()}
    files[DESCRIPTION] = (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode()
    _write(output, files)
    return Exported(output, differences, left_out, tuple(description["notes"]))


def _onnxruntime() -> Any:
    """Import the packages that exporting needs.

    Raises:
        InputError: one is missing.
    """
    try:
        import onnx  # noqa: F401  # torch.onnx needs it
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise InputError(f"`mibf export` needs the package {error.name}; run `pip install 'mibf[export]'`.") from error
    return onnxruntime


def _read(target: str, overrides: Sequence[str]) -> tuple[Bundle, str, PriorSetting]:
    """The model, its folder and the class priors to export it with."""
    if is_configuration(target):
        config = load(target, overrides=overrides)
        workspace = Workspace.of(config)
        return workspace.read_bundle(), workspace.bundle, config.prediction.priors
    if overrides:
        raise InputError(f"--set applies to a configuration; {storage.redact_url(target)} is a model.")
    folder = model_bundle.bundle_folder(target)
    return model_bundle.read_bundle(folder), folder, "trained"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and warnings about operations that do not occur out of the output."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _program(model: RawModel, bundle: Bundle) -> torch.export.ExportedProgram:
    """Trace the model for any number of windows, rows and columns."""
    batch, rows, columns = (torch.export.Dim(name, min=low, max=2**16) for name, low in MINIMUM.items())
    reach = model.spec.patch - 1
    shapes = tuple(
        {0: batch, 2: _scaled(rows, reach, source.scale), 3: _scaled(columns, reach, source.scale)}
        for source in model.spec.sources
    )
    with torch.no_grad():
        return torch.export.export(model, tuple(random_inputs(bundle, *SHAPES[0])), dynamic_shapes=(shapes,))


def _scaled(dimension: Any, reach: int, scale: int) -> Any:
    total = dimension + reach
    return total if scale == 1 else scale * total


def _onnx(program: torch.export.ExportedProgram, model: RawModel) -> bytes:
    names = [source.name for source in model.spec.sources]
    exported = torch.onnx.export(
        program, input_names=names, output_names=["probabilities", "class"], dynamo=True, verbose=False
    )
    assert exported is not None
    return bytes(exported.model_proto.SerializeToString())


def _write(folder: str, files: dict[str, bytes]) -> None:
    """Write the files, the description last: while it is missing, the export is not complete."""
    call_with_retry(folder, lambda: storage.remove(storage.join(folder, DESCRIPTION)))
    for name, content in files.items():
        url = storage.join(folder, name)
        call_with_retry(url, lambda url=url, content=content: storage.write_bytes(url, content))  # type: ignore[misc]  # bound now
