"""The model card: what a person should know of a bundle before its map is believed, as Markdown. No dependencies.

It tells what the bundle holds and no more: a figure that provenance has not is left out, never made up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from mibf.bundle import Bundle

CITATION = (
    'Geng et al., "Multisource Joint Representation Learning Fusion Classification for Remote Sensing Images", '
    "IEEE TGRS 61, 2023, doi [10.1109/TGRS.2023.3296813](https://doi.org/10.1109/TGRS.2023.3296813)"
)
#: Rows of a table; what is more goes into one line.
ROWS = 16
#: The validation figures that are told, by their key in `provenance["chosen"]`.
FIGURES = {
    "validation_overall_accuracy": "overall accuracy",
    "validation_average_accuracy": "average accuracy",
    "validation_macro_f1": "macro-F1",
    "validation_kappa": "kappa",
    "validation_cross_entropy": "cross-entropy",
}
CALIBRATION = {"ece": "expected calibration error", "brier": "Brier score"}


def card(bundle: Bundle) -> str:
    """The card of a bundle: fewer than 80 lines of Markdown, whatever it holds."""
    sections = [
        _title(bundle),
        _section("What it expects", _inputs(bundle)),
        _section("Classes", _classes(bundle)),
        _section("How it was made", _origin(bundle)),
        _section("Limits", _limits(bundle)),
        _section("Use and citation", _use(bundle)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def figures(bundle: Bundle) -> list[tuple[str, float]]:
    """The validation figures that provenance holds, by name; those that are not numbers are left out."""
    chosen = _object(bundle.provenance.get("chosen"))
    calibration = _object(chosen.get("calibration"))
    named = [(name, chosen.get(key)) for key, name in FIGURES.items()]
    named += [(name, calibration.get(key)) for key, name in CALIBRATION.items()]
    return [(name, float(value)) for name, value in named if _is_number(value)]


def trained_on(bundle: Bundle) -> list[str]:
    """What provenance tells of the scenes and the split, a phrase each."""
    told = []
    scenes = bundle.provenance.get("scenes")
    if isinstance(scenes, list | tuple) and scenes:
        told.append(f"scene{'s' if len(scenes) > 1 else ''} {_some(map(_text, scenes))}")
    split = _object(bundle.provenance.get("split"))
    if "method" in split:
        buffer = split.get("buffer")
        between = f" with a buffer of {buffer} pixels" if _is_number(buffer) and buffer else ""
        told.append(f"split by method `{_text(split['method'])}`{between}")
    return told


def limits_of(low: Iterable[float], high: Iterable[float]) -> str:
    """The limits of a source's bands in few words."""
    low, high = list(low), list(high)
    if len(low) == 1:
        return f"{low[0]:.4g} to {high[0]:.4g}"
    return f"low {min(low):.4g} to {max(low):.4g}, high {min(high):.4g} to {max(high):.4g}"


def _title(bundle: Bundle) -> list[str]:
    run = bundle.provenance.get("run")
    name = f"MIBF-Net, run {_text(run)}" if isinstance(run, str) else "MIBF-Net"
    spec = bundle.spec
    return [
        f"# {name}",
        "",
        f"Names the class of every pixel, one of {spec.classes}, from {len(spec.sources)} co-registered sources.",
        f"It sees the {spec.patch} x {spec.patch} reference pixels around each. {bundle.parameters:,} parameters, "
        f"{bundle.memory_bytes / 1e6:.1f} MB.",
        "`mibf bundle show` on this folder tells all that it holds and checks that it is whole.",
    ]


def _inputs(bundle: Bundle) -> list[str]:
    rows = []
    for source in bundle.spec.sources:
        scaling = bundle.scaling[source.name]
        limits = limits_of(scaling.low.tolist(), scaling.high.tolist())
        rows.append((_text(source.name), str(source.bands), str(source.scale), limits))
    return [
        *_table(("source", "bands", "pixels to a reference pixel's side", "limits, in its own units"), rows),
        "",
        "In this order. The limits are brought to 0 and 1 and clipped; pixels without data take each band's fill value.",
    ]


def _classes(bundle: Bundle) -> list[str]:
    rows = []
    for place, c in enumerate(bundle.classes):
        shares = ("-", "-")
        if bundle.priors is not None:
            shares = (f"{bundle.priors.natural[place]:.4f}", f"{bundle.priors.trained[place]:.4f}")
        rows.append((str(c.id), _text(c.name), _text(c.color), *shares))
    told = (
        "The shares of the classes in training are not known: predictions cannot be brought to other ones."
        if bundle.priors is None
        else "Predictions answer for the shares in training unless others are asked for."
    )
    return [*_table(("id", "class", "colour", "share of training pixels", "share in training"), rows), "", told]


def _origin(bundle: Bundle) -> list[str]:
    authors = bundle.provenance.get("authors")
    if authors is not None:
        origin = _object(authors)
        return [
            f"Read from a checkpoint of the method's authors, `{_text(origin.get('checkpoint', 'unknown'))}`, SHA-256 "
            f"`{_text(origin.get('sha256', 'unknown'))}`.",
            f"What it was trained on is unknown. Temperature {bundle.temperature:.4g}.",
        ]
    lines = [f"Trained on {', '.join(told)}." for told in [trained_on(bundle)] if told]
    epoch = _object(bundle.provenance.get("chosen")).get("epoch")
    found = figures(bundle)
    last = not found or _object(bundle.provenance.get("hyperparameters")).get("select") == "last"
    if _is_number(epoch):
        lines.append(
            f"Epoch {epoch}, the last one, is the model."
            if last
            else f"Epoch {epoch} was chosen by its figures on validation pixels, which took no part in fitting weights."
        )
    if found:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in found)
        chose = "" if last else " They chose the epoch, and so are too good for a test."
        lines.append(f"On validation pixels: {listed}.{chose}")
    elif _is_number(epoch):
        lines.append("There was nothing to validate on: confidences are not calibrated.")
    lines.append(f"Logits are divided by temperature {bundle.temperature:.4g} before the softmax.")
    return lines


def _limits(bundle: Bundle) -> list[str]:
    method = _object(bundle.provenance.get("split")).get("method")
    if method == "random":
        split = [
            "- **The split was random and leaks**: its patches overlap, so that figures compare methods and measure no map."
        ]
    else:
        split = [
            "- Figures of a block split measure transfer to ground that was not trained on; those of a random split leak.",
            "- No split measures a map: only a probability sample does.",
        ]
        split += ["- How this model's split was made is not recorded."] if method is None else []
    return [
        "- Inputs must be of the same sensors, bands, order and units: others are classified wrongly, and nothing tells.",
        *split,
        "- Confidence is a softmax's: calibrated at best on ground like the validation pixels, on no other.",
        "- Every pixel gets one of these classes, also where none of them fits.",
        "- Areas come from reference samples, not from counting pixels of the map.",
    ]


def _use(bundle: Bundle) -> list[str]:
    versions = _object(bundle.provenance.get("versions"))
    lines = [
        f"The method: {CITATION}. Please cite it.",
        "The software, mibf, is under Apache-2.0; the rights in these weights are for whoever trained them to grant.",
    ]
    if versions:
        lines.append("Made with " + _some(f"{_text(name)} {_text(version)}" for name, version in versions.items()) + ".")
    return lines


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table; of many rows, one line with all of them."""
    if len(rows) > ROWS:
        return [f"{len(rows)} of them ({', '.join(heads)}): " + "; ".join(", ".join(row) for row in rows) + "."]
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


def _some(texts: Iterable[str]) -> str:
    """A list that does not grow without end."""
    listed = list(texts)
    return ", ".join(listed[:ROWS]) + (f" and {len(listed) - ROWS} more" if len(listed) > ROWS else "")


def _text(value: Any) -> str:
    """A value that cannot break a line, a table or a code span, and is no HTML, which Markdown lets through."""
    return " ".join(str(value).replace("|", "\\|").replace("`", "'").replace("<", "\\<").split())


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
