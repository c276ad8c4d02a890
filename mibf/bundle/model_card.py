"""The model card: what a user should know about a bundle before trusting its maps, as Markdown. No dependencies.

The card reports only what the bundle contains: a metric that provenance lacks is omitted, never invented.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from mibf.bundle.bundle import Bundle
from mibf.bundle.members import KIND_NAMES
from mibf.class_priors import FULL_SUPPORT
from mibf.network.spec import ONE_SOURCE

CITATION = (
    'Geng et al., "Multisource Joint Representation Learning Fusion Classification for Remote Sensing Images", '
    "IEEE TGRS 61, 2023, doi [10.1109/TGRS.2023.3296813](https://doi.org/10.1109/TGRS.2023.3296813)"
)
#: The sentence on a network's centre path.
CENTRE = "Its centre path, which the paper's network lacks, adds the values of the pixel itself to the pooled features."
#: Maximum rows of a table; more rows are written as one line.
ROWS = 16
#: The validation metrics that the card reports, by their key in `provenance["chosen"]`.
FIGURES = {
    "validation_overall_accuracy": "overall accuracy",
    "validation_average_accuracy": "average accuracy",
    "validation_macro_f1": "macro-F1",
    "validation_kappa": "kappa",
    "validation_cross_entropy": "cross-entropy",
}
CALIBRATION = {"ece": "expected calibration error", "brier": "Brier score"}


def model_card(bundle: Bundle) -> str:
    """Write the card of a bundle: fewer than 80 lines of Markdown, whatever the bundle contains."""
    sections = [
        _title(bundle),
        _section("Expected inputs", _inputs(bundle)),
        _section("Classes", _classes(bundle)),
        _section("How it was trained", _origin(bundle)),
        _section("Limits", _limits(bundle)),
        _section("Use and citation", _use(bundle)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def figures(bundle: Bundle) -> list[tuple[str, float]]:
    """Return the validation metrics in provenance, by name, without those that are not numbers."""
    chosen = _object(bundle.provenance.get("chosen"))
    calibration = _object(chosen.get("calibration"))
    named = [(name, chosen.get(key)) for key, name in FIGURES.items()]
    named += [(name, calibration.get(key)) for key, name in CALIBRATION.items()]
    return [(name, float(value)) for name, value in named if _is_number(value)]


def trained_on(bundle: Bundle) -> list[str]:
    """Describe the scenes and the split recorded in provenance, one phrase each."""
    phrases = []
    scenes = bundle.provenance.get("scenes")
    if isinstance(scenes, list | tuple) and scenes:
        phrases.append(f"scene{'s' if len(scenes) > 1 else ''} {_join_first(map(_text, scenes))}")
    split = _object(bundle.provenance.get("split"))
    if "method" in split:
        buffer = split.get("buffer")
        between = f" with a buffer of {buffer} pixels" if _is_number(buffer) and buffer else ""
        phrases.append(f"split by method `{_text(split['method'])}`{between}")
    return phrases


def format_limits(low: Iterable[float], high: Iterable[float]) -> str:
    """Summarise the normalization limits of a source's bands."""
    low, high = list(low), list(high)
    if len(low) == 1:
        return f"{low[0]:.4g} to {high[0]:.4g}"
    return f"low {min(low):.4g} to {max(low):.4g}, high {min(high):.4g} to {max(high):.4g}"


def _title(bundle: Bundle) -> list[str]:
    run = bundle.provenance.get("run")
    method = bundle.method
    name = f"{method}, run {_text(run)}" if isinstance(run, str) else method
    spec = bundle.spec
    only = len(spec.sources) == 1
    sources = "one source" if only else f"{len(spec.sources)} co-registered sources"
    return [
        f"# {name}",
        "",
        f"Classifies every pixel into one of {spec.classes} classes, from {sources}.",
        f"It uses {surroundings(bundle)}. {bundle.parameters:,} parameters, {bundle.memory_bytes / 1e6:.1f} MB.",
        *([CENTRE] if spec.centre and bundle.networks else []),
        *([f"{ONE_SOURCE[0].upper()}{ONE_SOURCE[1:]}."] if only and bundle.networks else []),
        *members(bundle),
        "`mibf bundle show` on this folder prints everything that the bundle contains and checks that it is complete.",
    ]


def _inputs(bundle: Bundle) -> list[str]:
    rows = []
    for source in bundle.spec.sources:
        scaling = bundle.scaling[source.name]
        limits = format_limits(scaling.low.tolist(), scaling.high.tolist())
        rows.append((_text(source.name), str(source.bands), str(source.scale), limits))
    return [
        *_table(("source", "bands", "pixels per reference pixel, along an axis", "limits, in source units"), rows),
        "",
        (
            "Sources are in this order. Values are scaled from the limits to [0, 1] and clipped; pixels without data take "
            "each band's fill value."
        ),
    ]


def _classes(bundle: Bundle) -> list[str]:
    rows = []
    for position, c in enumerate(bundle.classes):
        shares = ("-", "-")
        if bundle.priors is not None:
            shares = (f"{bundle.priors.natural[position]:.4f}", f"{bundle.priors.trained[position]:.4f}")
        rows.append((str(c.id), _text(c.name), _text(c.color), *shares))
    note = (
        "The class proportions in training are not known, so predictions cannot be corrected to other class priors."
        if bundle.priors is None
        else "Predictions reflect the class proportions in training unless other class priors are requested."
    )
    if bundle.priors is not None and (
        few := [c.name for c, w in zip(bundle.classes, bundle.priors.credibility, strict=True) if w < 1]
    ):
        note += (
            f" Other priors raise {_join_first(map(_text, few))} only in part: fewer than {FULL_SUPPORT} training or "
            "validation samples."
        )
    return [*_table(("id", "class", "colour", "proportion of training pixels", "proportion in training"), rows), "", note]


def _origin(bundle: Bundle) -> list[str]:
    authors = bundle.provenance.get("authors")
    if authors is not None:
        origin = _object(authors)
        return [
            f"Converted from a checkpoint of the method's authors, `{_text(origin.get('checkpoint', 'unknown'))}`, SHA-256 "
            f"`{_text(origin.get('sha256', 'unknown'))}`.",
            f"The training data are unknown. {temperatures(bundle)}",
        ]
    lines = [f"Trained on {', '.join(phrases)}." for phrases in [trained_on(bundle)] if phrases]
    chosen = _object(bundle.provenance.get("chosen"))
    epoch, rounds = chosen.get("epoch"), chosen.get("rounds")
    found = figures(bundle)
    last = not found or _object(bundle.provenance.get("hyperparameters")).get("select") == "last"
    if _is_number(rounds):
        by = f"{rounds} rounds of boosting"
        lines.append(f"{by}; validation pixels decided their number." if found else f"{by}, a fixed number.")
    elif _is_number(epoch):
        whose = "" if bundle.single is not None else " of the best network"
        selected = "was selected by its metrics on validation pixels, which were not used to fit weights"
        lines.append(
            f"The model is that of epoch {epoch}{whose}, the last one." if last else f"Epoch {epoch}{whose} {selected}."
        )
    if found:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in found)
        chose = " They were used to select the epoch, so they are too optimistic to serve as test results."
        if bundle.single is None:
            chose = " They were used to fit the model, so they are too optimistic to serve as test results."
        elif last:
            chose = ""
        lines.append(f"On validation pixels: {listed}.{chose}")
    elif _is_number(epoch) or _is_number(rounds):
        lines.append("There were no validation pixels, so confidences are not calibrated.")
    lines.append(temperatures(bundle))
    return lines


def surroundings(bundle: Bundle) -> str:
    """Say which pixels around a pixel its class depends on."""
    patch = f"the {bundle.spec.patch} x {bundle.spec.patch} reference pixels around each pixel"
    others = "means and deviations of the 7 x 7 reference pixels around each pixel"
    if not bundle.pixelwise:
        return patch
    kinds = " and ".join(dict.fromkeys(KIND_NAMES[member.kind] for member in bundle.pixelwise))
    return f"{patch} for its networks, and {others} for its {kinds}" if bundle.networks else others


def members(bundle: Bundle) -> list[str]:
    """List the members of a model that is not a single network, with their shares, as one sentence."""
    if bundle.single is not None:
        return []
    listed = _join_first(f"{KIND_NAMES[m.kind]} {m.share:.2f}" for m in bundle.members)
    return [f"Probabilities are the mean over its members, weighted by these shares: {listed}."]


def temperatures(bundle: Bundle) -> str:
    """Say by what logits are divided."""
    if bundle.single is not None:
        return f"Logits are divided by temperature {bundle.single.temperature:.4g} before the softmax."
    listed = _join_first(f"{m.temperature:.4g}" for m in bundle.members)
    return f"The members' logits are divided by temperatures {listed} before the softmax."


def _limits(bundle: Bundle) -> list[str]:
    recorded = _object(bundle.provenance.get("split"))
    method, caveat = recorded.get("method"), recorded.get("caveat")
    if method == "random":
        split = [
            "- **The split was random and leaks**: patches overlap; metrics can compare methods but do not measure a map."
        ]
    else:
        if isinstance(caveat, str) and caveat:
            split = [f"- **{_text(caveat[0].upper() + caveat[1:])}.**"]
        elif "caveat" in recorded:
            split = ["- No test patch shared a pixel with a training patch: metrics measure transfer to other ground."]
        else:
            split = ["- Metrics measure transfer to other ground only if test patches share no pixel with training patches."]
        split += ["- No split measures the accuracy of a map: only a probability sample does."]
        split += ["- The split method of this model is not recorded."] if method is None else []
    return [
        "- Inputs must have the same sensors, bands, order and units: others are misclassified without any warning.",
        *split,
        "- Confidence is a softmax probability, calibrated at best for ground like the validation pixels and for no other.",
        "- Every pixel gets one of these classes, even where none of them fits.",
        "- Estimate areas from reference samples, not by counting pixels of the map.",
    ]


def _use(bundle: Bundle) -> list[str]:
    versions = _object(bundle.provenance.get("versions"))
    lines = [
        f"The method: {CITATION}. Please cite it.",
        "The software, mibf, is licensed under Apache-2.0; rights to these weights are granted by whoever trained them.",
    ]
    if versions:
        lines.append(
            "Created with " + _join_first(f"{_text(name)} {_text(version)}" for name, version in versions.items()) + "."
        )
    return lines


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Format a table, or one line with all rows if there are many."""
    if len(rows) > ROWS:
        return [f"{len(rows)} rows ({', '.join(heads)}): " + "; ".join(", ".join(row) for row in rows) + "."]
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


def _join_first(texts: Iterable[str]) -> str:
    """Join a list, limited to `ROWS` items."""
    listed = list(texts)
    return ", ".join(listed[:ROWS]) + (f" and {len(listed) - ROWS} more" if len(listed) > ROWS else "")


def _text(value: Any) -> str:
    """Escape a value so that it cannot break a line, table or code span, nor contain HTML, which Markdown passes through."""
    return " ".join(str(value).replace("|", "\\|").replace("`", "'").replace("<", "\\<").split())


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
