"""Describe an exported model: its inputs, outputs and classes, and what it does not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mibf import __version__
from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.redaction import redact

#: What is written, by file.
FILES = {
    "model.onnx": "ONNX, for onnxruntime and others",
    "model.pt2": "torch.export program, for `torch.export.load`",
    "model.json": "this description, for machines",
    "README.md": "this description",
}


def describe(
    bundle: Bundle,
    *,
    priors: PriorSetting,
    left_out: Sequence[str],
    differences: Mapping[str, float],
    tolerance: float,
) -> dict[str, Any]:
    """Describe an exported model as JSON values; `left_out` are the members that are not in it, in words."""
    return {
        "format": 1,
        "version": __version__,
        "model": bundle.digest,
        "patch": bundle.spec.patch,
        "halo": bundle.spec.halo,
        "priors": priors,
        "inputs": [_input(bundle, position) for position in range(len(bundle.spec.sources))],
        "outputs": [
            {"name": "probabilities", "dtype": "float32", "shape": ["batch", len(bundle.classes), "rows", "columns"]},
            {"name": "class", "dtype": "uint8", "shape": ["batch", "rows", "columns"]},
        ],
        "classes": [{"id": c.id, "name": c.name, "color": c.color} for c in bundle.classes],
        "networks": len(bundle.networks),
        "left_out": list(left_out),
        "notes": _notes(bundle, left_out),
        "verified": {"tolerance": tolerance, "differences": dict(differences)},
        "files": FILES,
    }


def _input(bundle: Bundle, position: int) -> dict[str, Any]:
    source = bundle.spec.sources[position]
    limits, reach = bundle.scaling[source.name], 2 * bundle.spec.halo
    side = [f"({axis} + {reach})" + (f" * {source.scale}" if source.scale > 1 else "") for axis in ("rows", "columns")]
    return {
        "name": source.name,
        "dtype": "float32",
        "shape": ["batch", source.bands, *side],
        "scale": source.scale,
        "bands": list(bundle.band_names.get(source.name, ())) or [f"band {n}" for n in range(1, source.bands + 1)],
        "units": "those of the training data, after its scale and offset",
        "nodata": "NaN; a pixel with NaN in any band takes the fill value in all bands",
        "low": limits.low.tolist(),
        "high": limits.high.tolist(),
        "fill": limits.fill.tolist(),
    }


def _notes(bundle: Bundle, left_out: Sequence[str]) -> list[str]:
    notes = []
    if left_out:
        counted = ", ".join(f"{left_out.count(kind)} x {kind}" for kind in dict.fromkeys(left_out))
        share = sum(member.share for member in bundle.pixelwise)
        notes.append(
            f"The model has members that are not networks ({counted}; {share:.0%} of its probabilities). They are not "
            "exported, so that probabilities and classes differ from those of the maps."
        )
    if len(bundle.networks) > 1:
        notes.append(f"Probabilities are the weighted mean of {len(bundle.networks)} networks.")
    matched = [source.name for source in bundle.spec.sources if bundle.scaling[source.name].reference is not None]
    if matched:
        notes.append(
            f"In maps, the values of {', '.join(matched)} are first matched to the training distribution, scene by scene "
            "(`prepare.histogram_matching`). The exported model does not do this: match the values before."
        )
    return notes


def readme(description: Mapping[str, Any]) -> str:
    """Format a description as Markdown."""
    halo = description["halo"]
    lines = ["# Exported land-cover model", "", f"Written by mibf {description['version']}.", ""]
    lines += [line for note in description["notes"] for line in (f"**{note}**", "")]
    lines += ["## Files", "", *(f"- `{name}`: {what}" for name, what in description["files"].items()), ""]
    lines += [
        "## Inputs",
        "",
        "One float32 tensor per source, in this order, with raw values: normalization is part of the model. The number of "
        f"windows is free, and so are rows and columns from 2. Every "
        f"window has a halo of {halo} reference pixels on each side, which is not classified; "
        "at the edges of a scene, mirror its pixels (the edge pixel is not repeated). Where a source has no data, pass NaN.",
        "",
        "| source | shape | bands | limits |",
        "|---|---|---|---|",
    ]
    for source in description["inputs"]:
        low, high = min(source["low"]), max(source["high"])
        shape = " x ".join(map(str, source["shape"])).replace("*", "\\*")
        lines.append(f"| `{source['name']}` | {shape} | {_listed(source['bands'])} | {low:.6g} to {high:.6g} |")
    lines += [
        "",
        f"Units are {description['inputs'][0]['units']}. Pixels without data in all sources have a result, too: mask them.",
        "",
        "## Outputs",
        "",
        *(f"- `{each['name']}`: {each['dtype']}, {' x '.join(map(str, each['shape']))}" for each in description["outputs"]),
        "",
        f"Class priors: {description['priors']}.",
        "",
        "| id | class | colour |",
        "|---|---|---|",
        *(f"| {each['id']} | {_cell(each['name'])} | {each['color']} |" for each in description["classes"]),
        "",
        "## Use",
        "",
        "```python",
        "import onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        "probabilities, classes = session.run(None, {"
        + ", ".join(f'"{source["name"]}": {_argument(n)}' for n, source in enumerate(description["inputs"]))
        + "})",
        "```",
        "",
        "Every patch is computed on its own: memory grows with the pixels per call. Windows of 64 x 64 are enough.",
        "",
        f"Both files were compared with mibf on random pixels when they were written: probabilities differ by at most "
        f"{max(description['verified']['differences'].values()):.1e}.",
    ]
    return redact("\n".join(lines)) + "\n"


def _argument(position: int) -> str:
    return f"values_{position + 1}"


def _listed(bands: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(_cell(name) for name in bands[:most])
    return shown if len(bands) <= most else f"{shown} and {len(bands) - most} more"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
