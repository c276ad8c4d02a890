"""A bundle in the words of STAC's Machine Learning Model extension, so that catalogues and other tools can read it.

Plain values, https://github.com/stac-extensions/mlm, version 1.6.0. They are derived from the bundle when it is written
and ignored when it is read: the bundle's own keys own every fact.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from mibf.scaling import BandScaling
from mibf.spec import FEATURES, HIDDEN, SourceSpec

if TYPE_CHECKING:
    from mibf.bundle import Bundle, ClassName

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
ARCHITECTURE = "MIBF-Net"
#: The extension's word for what names every pixel's class; `classification` it keeps for a class of the whole input.
TASK = "semantic-segmentation"


def properties(bundle: Bundle) -> dict[str, Any]:
    """The properties of a STAC item of the model, those that tell of it and not of a place and time."""
    found: dict[str, Any] = {
        "mlm:name": _name(bundle.provenance.get("run")),
        "mlm:architecture": ARCHITECTURE,
        "mlm:tasks": [TASK],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": _version(bundle),
        "mlm:memory_size": bundle.memory_bytes,
        "mlm:total_parameters": bundle.parameters,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(source, bundle) for source in bundle.spec.sources],
        "mlm:output": [_output(bundle)],
        "mlm:hyperparameters": _hyperparameters(bundle),
        "bands": [{"name": name} for source in bundle.spec.sources for name in band_names(source)],
    }
    if "chosen" in bundle.provenance:  # trained by mibf, from first weights drawn at random
        found |= {"mlm:pretrained": False, "mlm:pretrained_source": None}
    return found


def band_names(source: SourceSpec) -> list[str]:
    """Names of a source's bands, by their place: `optical 1`, `optical 2`; those of its files are not kept."""
    return [f"{source.name} {place}" for place in range(1, source.bands + 1)]


def _input(source: SourceSpec, bundle: Bundle) -> dict[str, Any]:
    side = bundle.spec.patch * source.scale
    scaling = bundle.scaling[source.name]
    return {
        "name": source.name,
        "bands": band_names(source),
        "input": {
            "shape": [-1, source.bands, side, side],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "description": (
            f"The patch around a reference pixel, {source.scale} x {source.scale} pixels of {source.name} to each reference "
            "pixel. Values are in the source's own units; pixels without data take each band's value of mibf:fill; then all "
            "are brought from the limits of value_scaling to 0 and 1, and clipped there."
        ),
        "value_scaling": _value_scaling(scaling),
        "mibf:fill": scaling.fill.tolist(),
        "resize_type": None,
        "pre_processing_function": {
            "format": "python",
            "expression": "mibf.scaling:BandScaling.apply",
            "description": "Fills, does what value_scaling tells, and clips, in place of all three.",
        },
    }


def _value_scaling(scaling: BandScaling) -> list[dict[str, Any]]:
    """Each band's limits; a constant band is 0 everywhere, which a division by its span could not say."""
    return [
        {"type": "clip", "minimum": 0, "maximum": 0} if constant else {"type": "min-max", "minimum": low, "maximum": high}
        for low, high, constant in zip(scaling.low.tolist(), scaling.high.tolist(), scaling.constant.tolist(), strict=True)
    ]


def _output(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": "logits",
        "tasks": [TASK],
        "result": {"shape": [-1, bundle.spec.classes], "dim_order": ["batch", "class"], "data_type": "float32"},
        "description": "The logits of each patch's centre pixel; the classes are in the order of classification:classes.",
        "classification:classes": [
            {
                "value": c.id,
                "name": class_key(c),
                "description": c.name,
                "color_hint": color_hint(c),
            }
            for c in bundle.classes
        ],
        "post_processing_function": {
            "format": "formula",
            "expression": f"softmax(logits / {float(bundle.temperature)!r})",
            "description": "Probabilities of the classes.",
        },
    }


def class_key(c: ClassName) -> str:
    """A class's name as the classification extension takes one: of letters, digits, `_` and `-`."""
    return as_name(c.name) or f"class_{c.id}"


def as_name(name: str) -> str:
    """What of a name the classification extension takes."""
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_")


def color_hint(c: ClassName) -> str:
    """A class's colour as the classification extension writes one."""
    return c.color.removeprefix("#").upper()


def _hyperparameters(bundle: Bundle) -> dict[str, Any]:
    """The network's, and those of its training where provenance tells them."""
    told = bundle.provenance.get("hyperparameters")
    of_training = told if isinstance(told, dict) else {}
    return {key: value for key, value in of_training.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", key)} | {
        "patch": bundle.spec.patch,
        "features": FEATURES,
        "code": HIDDEN,
        "hidden": bundle.spec.hidden,
        "widths": {source.name: list(source.widths) for source in bundle.spec.sources},
        "temperature": bundle.temperature,
    }


def _name(run: Any) -> str:
    """A name that the extension takes: letters, digits, `_`, `.`, `-` and spaces, a letter or digit at the end."""
    told = re.sub(r"[^a-zA-Z0-9_.\- ]+", "-", run).strip("_.- ") if isinstance(run, str) else ""
    return f"{ARCHITECTURE} {told}".rstrip()


def _version(bundle: Bundle) -> str:
    """The version of PyTorch that trained, or else that writes, as a semantic one."""
    versions = bundle.provenance.get("versions")
    told = versions.get("torch") if isinstance(versions, dict) else None
    version = told if isinstance(told, str) else torch.__version__
    semantic = re.match(r"\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?", version)
    return semantic.group() if semantic else "0.0.0"
