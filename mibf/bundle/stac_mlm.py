"""Describe a bundle as a STAC item with the Machine Learning Model (MLM) extension, for catalogues and other tools.

Plain values, https://github.com/stac-extensions/mlm, version 1.6.0. They are derived from the bundle when it is written
and ignored when it is read: the bundle's own keys are authoritative.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from mibf.bundle.bundle import CARD, Bundle
from mibf.bundle.classes import ClassName
from mibf.bundle.members import file_names
from mibf.distinct_keys import as_key, distinct_keys
from mibf.network.spec import FEATURES, HIDDEN, SourceSpec
from mibf.normalization import BandScaling

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
#: What each kind of member is.
ARCHITECTURES = {"network": "MIBF-Net", "trees": "gradient boosted trees", "linear": "logistic regression"}
#: The package that trains a model without networks, by the kind of its first member, and the name of its framework.
FRAMEWORKS = {"trees": ("lightgbm", "LightGBM"), "linear": ("scikit-learn", "scikit-learn")}
#: Media type of the file of each kind of member, and what wrote it.
ARTIFACTS = {
    "network": ("application/octet-stream; application=safetensors", "safetensors.torch.save_file"),
    "linear": ("application/octet-stream; application=safetensors", "safetensors.torch.save_file"),
    "trees": ("text/plain", "lightgbm.Booster.save_model"),
}
#: A model is of no one time. STAC needs an interval with two ends, for which the extension suggests these.
ALWAYS = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
#: The extension's term for classifying every pixel; it reserves `classification` for one class per input.
TASK = "semantic-segmentation"


def item(bundle: Bundle) -> dict[str, Any]:
    """Return the members of a STAC item in the bundle's folder. It has no geometry: a model is of no one place."""
    run = bundle.provenance.get("run")
    name = as_key(run) if isinstance(run, str) else ""
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": f"{name or 'model'}-{bundle.digest[:12]}",
        "geometry": None,
        "properties": ALWAYS | properties(bundle),
        "links": [],
        "assets": _assets(bundle),
    }


def _assets(bundle: Bundle) -> dict[str, Any]:
    """The files of the members, in their order, and the model card."""
    found: dict[str, Any] = {}
    for file, member in zip(file_names(bundle.members), bundle.members, strict=True):
        media_type, artifact = ARTIFACTS[member.kind]
        found[file] = {
            "href": f"./{file}",
            "type": media_type,
            "title": ARCHITECTURES[member.kind],
            "roles": ["mlm:model", "mlm:weights"],
            "mlm:artifact_type": artifact,
            "bands": _bands(bundle),  # STAC allows bands in the properties only if assets have them, too
        }
    return found | {CARD: {"href": f"./{CARD}", "type": "text/markdown", "title": "Model card", "roles": ["metadata"]}}


def properties(bundle: Bundle) -> dict[str, Any]:
    """Return the properties of a STAC item that describe the model, without those of a place and time."""
    found: dict[str, Any] = {
        "mlm:name": _name(bundle),
        "mlm:architecture": _architecture(bundle),
        "mlm:tasks": [TASK],
        **_framework(bundle),
        "mlm:memory_size": bundle.memory_bytes,
        "mlm:total_parameters": bundle.parameters,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(source, bundle) for source in bundle.spec.sources],
        "mlm:output": [_output(bundle)],
        "mlm:hyperparameters": _hyperparameters(bundle),
        "bands": _bands(bundle),
    }
    if "chosen" in bundle.provenance:  # trained by mibf, from random initial weights
        found |= {"mlm:pretrained": False, "mlm:pretrained_source": None}
    return found


def _bands(bundle: Bundle) -> list[dict[str, str]]:
    return [{"name": name} for source in bundle.spec.sources for name in band_names(source)]


def band_names(source: SourceSpec) -> list[str]:
    """Name a source's bands by their position: `optical 1`, `optical 2`, for not all sources have names for them."""
    return [f"{source.name} {number}" for number in range(1, source.bands + 1)]


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
            f"The patch around a reference pixel, with {source.scale} x {source.scale} pixels of {source.name} per "
            "reference pixel. Values are in the source's own units; pixels without data take each band's mibf:fill value, "
            "then all are scaled from the limits in value_scaling to [0, 1] and clipped."
        ),
        "value_scaling": _value_scaling(scaling),
        "mibf:fill": scaling.fill.tolist(),
        "resize_type": None,
        "pre_processing_function": {
            "format": "python",
            # For STAC tools; mibf does not read it. Bundles of earlier versions name `mibf.scaling`, where the class was.
            "expression": f"{BandScaling.__module__}:{BandScaling.apply.__qualname__}",
            "description": "Fills, scales as value_scaling describes, and clips; it replaces these three steps.",
        },
    }


def _value_scaling(scaling: BandScaling) -> list[dict[str, Any]]:
    """Describe each band's limits; a constant band is 0 everywhere, which min-max scaling cannot express."""
    return [
        {"type": "clip", "minimum": 0, "maximum": 0} if constant else {"type": "min-max", "minimum": low, "maximum": high}
        for low, high, constant in zip(scaling.low.tolist(), scaling.high.tolist(), scaling.constant.tolist(), strict=True)
    ]


def _output(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": "logits",
        "tasks": [TASK],
        "result": {"shape": [-1, bundle.spec.classes], "dim_order": ["batch", "class"], "data_type": "float32"},
        "description": "Logits of each patch's centre pixel; classes are in the order of classification:classes.",
        "classification:classes": [
            {
                "value": c.id,
                "name": key,
                "description": c.name,
                "color_hint": color_hint(c),
            }
            for c, key in zip(bundle.classes, class_keys(bundle.classes), strict=True)
        ],
        "post_processing_function": {
            "format": "formula",
            "expression": formula(bundle),
            "description": "Class probabilities.",
        },
    }


def class_keys(classes: Sequence[ClassName]) -> list[str]:
    """Convert classes' names to distinct ones that the classification extension accepts, other than `nodata`."""
    return distinct_keys([c.name for c in classes], [c.id for c in classes], kind="class", reserved=("nodata",))


def color_hint(c: ClassName) -> str:
    """Format a class's colour as the classification extension requires."""
    return c.color.removeprefix("#").upper()


def _hyperparameters(bundle: Bundle) -> dict[str, Any]:
    """Return the network's hyperparameters, and those of its training if provenance records them."""
    recorded = bundle.provenance.get("hyperparameters")
    hyperparameters = recorded if isinstance(recorded, dict) else {}
    return {key: value for key, value in hyperparameters.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", key)} | {
        "patch": bundle.spec.patch,
        "features": FEATURES,
        "code": HIDDEN,
        "hidden": bundle.spec.hidden,
        "widths": {source.name: list(source.widths) for source in bundle.spec.sources},
        **_calibration(bundle),
        **({"centre": True} if bundle.spec.centre else {}),
    }


def _calibration(bundle: Bundle) -> dict[str, Any]:
    """Return the temperature of a single network, or kind, temperature and share of every member."""
    if bundle.single is not None:
        return {"temperature": bundle.single.temperature}
    return {"members": [{"kind": m.kind, "temperature": m.temperature, "share": m.share} for m in bundle.members]}


def formula(bundle: Bundle) -> str:
    """Return the formula of the class probabilities from the logits of each member."""
    if bundle.single is not None:
        return f"softmax(logits / {float(bundle.single.temperature)!r})"
    terms = [
        f"{float(m.share)!r} * softmax(logits_{number} / {float(m.temperature)!r})"
        for number, m in enumerate(bundle.members, start=1)
    ]
    return " + ".join(terms)


def _name(bundle: Bundle) -> str:
    """Build a name that the extension accepts: letters, digits, `_`, `.`, `-` and spaces, ending in a letter or digit."""
    run = bundle.provenance.get("run")
    name = re.sub(r"[^a-zA-Z0-9_.\- ]+", "-", run).strip("_.- ") if isinstance(run, str) else ""
    return f"{bundle.method} {name}".rstrip()


def _architecture(bundle: Bundle) -> str:
    """Name what the model consists of."""
    return " and ".join(dict.fromkeys(ARCHITECTURES[member.kind] for member in bundle.members))


def _framework(bundle: Bundle) -> dict[str, str]:
    """Return the framework and its version at training: PyTorch, or for a model without networks that of its first member.

    Where the version was not recorded, that of PyTorch is the one in use now, as a semantic version; others are left out,
    because mapping does not need them.
    """
    recorded = bundle.provenance.get("versions")
    versions = recorded if isinstance(recorded, dict) else {}
    package, name = FRAMEWORKS.get(bundle.members[0].kind, ("torch", "PyTorch"))
    fallback = str(torch.__version__) if bundle.networks else ""
    version = versions.get(package)
    semantic = re.match(r"\d+\.\d+\.\d+(\+[0-9a-zA-Z.-]+)?", version if isinstance(version, str) else fallback)
    if semantic:
        return {"mlm:framework": name, "mlm:framework_version": semantic.group()}
    return {"mlm:framework": name} | ({"mlm:framework_version": "0.0.0"} if bundle.networks else {})
