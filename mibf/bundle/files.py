"""Write a bundle to files and read it back, checking every byte against its digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from mibf.bundle import stac_mlm
from mibf.bundle.bundle import CARD, MODEL, REMEDY, WEIGHTS, Bundle, check_weights
from mibf.bundle.classes import ClassName
from mibf.bundle.members import LinearMember, Member, NetworkMember, TreesMember, check_members, file_names
from mibf.bundle.model_card import model_card
from mibf.class_priors import Priors
from mibf.errors import InputError
from mibf.metrics.prediction_sets import PredictionSets
from mibf.network.spec import NetworkSpec
from mibf.normalization import scaling_from_json
from mibf.redaction import control_character
from mibf.serialization import without_nan

#: The formats of a single network, and of any other model. Format 2 has no priors and no digest of its weights.
SINGLE, FORMAT = 3, 4
READ = (2, SINGLE, FORMAT)
_COLOR = re.compile("#[0-9a-fA-F]{6}")
_MEMBER_FILE = re.compile(r"(weights|linear)(-[0-9]{1,3})?\.safetensors|trees(-[0-9]{1,3})?\.txt")


def to_files(bundle: Bundle) -> dict[str, bytes]:
    """Return a bundle as file names and contents, in the order in which to write them: model.json last."""
    values = bundle.to_json()
    key = "members" if bundle.single is None else "weights"
    members = values.pop(key)
    model = {
        "format": FORMAT if bundle.single is None else SINGLE,
        **values,
        "provenance": bundle.provenance,
        key: members,
        **({} if bundle.prediction_sets is None else {"prediction_sets": bundle.prediction_sets.to_json()}),
        **stac_mlm.item(bundle),
    }
    contents = zip(file_names(bundle.members), bundle.members, strict=True)
    return {
        **{name: member.content() for name, member in contents},
        CARD: model_card(bundle).encode(),
        MODEL: (json.dumps(without_nan(model), indent=1, allow_nan=False) + "\n").encode(),
    }


def member_files(model: bytes) -> list[str]:
    """Return the names of the files that a model.json refers to; the names of weights alone if it is damaged.

    Only names that `to_files` gives are returned, whatever the file says.
    """
    try:
        members = json.loads(model).get("members")
        names = [str(member["file"]) for member in members] if isinstance(members, list) else [WEIGHTS]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [WEIGHTS]
    return [name for name in names if _MEMBER_FILE.fullmatch(name)] or [WEIGHTS]


def from_files(files: Mapping[str, bytes]) -> Bundle:
    """Read a bundle that `to_files` wrote, from its members' files and model.json.

    Raises:
        InputError: a file's content does not match its name, is truncated or from another bundle, or has a format
            that this version cannot read.
    """
    try:
        model = json.loads(files[MODEL])
        if model["format"] not in READ:
            raise InputError(
                f"{MODEL} has format {model['format']}; this version reads {', '.join(map(str, READ[:-1]))} and {READ[-1]}. "
                "Retrain, or use the version of mibf that wrote it."
            )
        bundle = Bundle(
            spec=NetworkSpec.from_json(model["network"]),
            members=_members(model, files),
            scaling=scaling_from_json(model["scaling"]),
            classes=tuple(ClassName(**c) for c in model["classes"]),
            provenance=model["provenance"],
            priors=None if model.get("priors") is None else Priors.from_json(model["priors"]),
            prediction_sets=_prediction_sets(model),
        )
        _check(bundle)
    except RecursionError as error:
        raise InputError(f"the model bundle is damaged ({MODEL} is nested too deeply); {REMEDY}.") from error
    except (KeyError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"the model bundle is damaged ({error!r}); {REMEDY}.") from error
    return bundle


def _prediction_sets(model: Mapping[str, Any]) -> PredictionSets | None:
    found = model.get("prediction_sets")
    return None if found is None else PredictionSets.from_json(found, classes=len(model["classes"]))


def _members(model: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[Member, ...]:
    """Read the members of a bundle from their files, each checked against its digest."""
    if model["format"] < FORMAT:
        if model["format"] == SINGLE:
            _check_digest(WEIGHTS, files[WEIGHTS], model["weights"])
        return (NetworkMember(safetensors.torch.load(files[WEIGHTS]), model["temperature"]),)
    found: list[Member] = []
    for entry in model["members"]:
        content = files[entry["file"]]
        _check_digest(entry["file"], content, entry)
        numbers = {"temperature": entry["temperature"], "share": entry["share"]}
        if entry["kind"] == "network":
            found.append(NetworkMember(safetensors.torch.load(content), **numbers))
        elif entry["kind"] == "trees":
            found.append(TreesMember(content.decode(), **numbers))
        elif entry["kind"] == "linear":
            found.append(LinearMember(safetensors.torch.load(content), **numbers))
        else:
            raise InputError(f"{MODEL} has a member of kind {entry['kind']!r}, which this version does not know; {REMEDY}.")
    return tuple(found)


def _check_digest(name: str, content: bytes, recorded: Mapping[str, Any]) -> None:
    """Check that a file is the one that was written with this model.json."""
    found, wanted = hashlib.sha256(content).hexdigest(), str(recorded["sha256"])
    if found == wanted:
        return
    size = int(recorded["bytes"])
    cause = (
        f"is truncated: {len(content):,} of {size:,} bytes"
        if len(content) < size
        else f"is damaged or from another model: {len(content):,} bytes, {size:,} were written"
    )
    raise InputError(f"{name} {cause}; SHA-256 is {found[:12]}..., {MODEL} records {wanted[:12]}...; {REMEDY}.")


def _check(bundle: Bundle) -> None:
    """Check that the parts of a bundle belong to one model."""
    try:
        check_members(bundle.members)
    except InputError as error:
        raise InputError(f"{MODEL}: {str(error).rstrip('.')}; {REMEDY}.") from error
    for member in bundle.networks:
        check_weights(bundle.spec, member.weights)
    classes = bundle.spec.classes
    if len(bundle.classes) != classes:
        raise InputError(f"{MODEL} lists {len(bundle.classes)} classes, but its network has {classes}; {REMEDY}.")
    for c in bundle.classes:
        _check_class(c)
    if bundle.priors is not None and len(bundle.priors.natural) != classes:
        raise InputError(
            f"{MODEL} has {len(bundle.priors.natural)} class priors, but its network has {classes} classes; {REMEDY}."
        )
    for source in bundle.spec.sources:
        limits = bundle.scaling[source.name]
        if any(values.shape != (source.bands,) for values in (limits.low, limits.high, limits.fill)):
            raise InputError(
                f"{MODEL}: the normalization of source {source.name!r} does not fit its {source.bands} bands; {REMEDY}."
            )
        if not all(np.isfinite(values).all() for values in (limits.low, limits.high, limits.fill)):
            raise InputError(f"{MODEL}: the normalization limits of source {source.name!r} are not all finite; {REMEDY}.")
    ids = [c.id for c in bundle.classes]
    if len(set(ids)) < len(ids) or not all(isinstance(i, int) and 0 <= i <= 255 for i in ids):
        raise InputError(f"{MODEL} has class ids {', '.join(map(str, ids))}; ids must be unique, from 0 to 255; {REMEDY}.")
    if not isinstance(bundle.provenance, dict):
        raise InputError(f"{MODEL}: provenance is not a JSON object; {REMEDY}.")


def _check_class(c: ClassName) -> None:
    """Check that a class is safe for rasters, messages and pages: id, name and colour may come from an untrusted file."""
    fit = type(c.id) is int and 0 <= c.id <= 254
    fit = fit and isinstance(c.name, str) and bool(c.name) and control_character(c.name) is None
    if not (fit and isinstance(c.color, str) and _COLOR.fullmatch(c.color)):
        raise InputError(
            f"{MODEL} has the class {vars(c)!r}; a class needs an id from 0 to 254, a name without control characters and a "
            f"colour #rrggbb; {REMEDY}."
        )
