"""`mibf bundle show`: read a model bundle at any URL, verify it and summarise its content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mibf.bundle.bundle import CARD, MODEL, Bundle
from mibf.bundle.files import member_files
from mibf.bundle.model_card import figures, format_limits, members, surroundings, temperatures, trained_on
from mibf.network.spec import ONE_SOURCE, SourceSpec
from mibf.redaction import redact
from pipeline.io import model_bundle, storage

#: Maximum number of bands whose limits are listed one by one; for more, only the range is shown.
BANDS = 12


@dataclass(frozen=True)
class BundleSummary:
    """A bundle that was read and verified, with the sizes of its files; the model card may be missing."""

    url: str
    bundle: Bundle
    model: dict[str, Any]
    sizes: dict[str, int | None]

    def lines(self) -> list[str]:
        """Format the content of a bundle for a person."""
        bundle = self.bundle
        total = sum(size or 0 for size in self.sizes.values())
        lines = [
            self.url,
            f"format {self.model['format']}, {bundle.parameters:,} parameters, {total / 1e6:.2f} MB "
            f"({', '.join(_file(name, size) for name, size in self.sizes.items())})",
            *_checked(self),
            "",
            f"sources; the model uses {surroundings(bundle)}",
        ]
        for source in bundle.spec.sources:
            lines += _source(source, bundle)
        if bundle.spec.centre and bundle.networks:
            lines.append("centre path: the centre pixel's own values are added to the pooled features")
        if len(bundle.spec.sources) == 1 and bundle.networks:
            lines.append(ONE_SOURCE)
        return [redact(line) for line in (*lines, "", *_classes(bundle), "", *_origin(bundle))]

    def to_json(self) -> dict[str, Any]:
        """The content of model.json, with the URL and the file sizes."""
        return self.model | {"url": self.url, "files": self.sizes, "parameters": self.bundle.parameters}


def summarize(url: str) -> BundleSummary:
    """Read and verify the bundle at a URL, which may be its folder or a file in it.

    Raises:
        InputError: no bundle was found, it cannot be reached, or it is damaged.
    """
    files = model_bundle.read_files(url)
    bundle = model_bundle.parse_bundle(files, url)
    folder = model_bundle.bundle_folder(url)
    sizes: dict[str, int | None] = {name: len(files[name]) for name in (*member_files(files[MODEL]), MODEL)}
    sizes[CARD] = _size(model_bundle.bundle_file(folder, CARD))
    return BundleSummary(storage.redact_url(storage.absolute(folder)), bundle, json.loads(files[MODEL]), sizes)


def _size(url: str) -> int | None:
    """A file's size; None if it cannot be read, because no reader needs it."""
    try:
        return len(storage.read_bytes(url))
    except Exception:  # each file system raises its own errors
        return None


def _file(name: str, size: int | None) -> str:
    return f"no {name}" if size is None else f"{name} {size:,} bytes"


def _checked(summary: BundleSummary) -> list[str]:
    tensors = sum(len(member.weights) for member in summary.bundle.networks)
    matching = f"the names, shapes and types of {tensors} tensors match the network, as do " if tensors else ""
    return [_digests(summary.model), f"checked: {matching}normalization, classes and priors"]


def _digests(model: dict[str, Any]) -> str:
    if "members" in model:
        return f"checked: the SHA-256 of {len(model['members'])} members match {MODEL}"
    if "weights" in model:
        return f"checked: the SHA-256 of the weights matches {MODEL} ({model['weights']['sha256'][:12]}...)"
    return f"not checked: a bundle of format {model['format']} has no SHA-256 of its weights"


def _source(source: SourceSpec, bundle: Bundle) -> list[str]:
    scaling = bundle.scaling[source.name]
    low, high, fill = scaling.low.tolist(), scaling.high.tolist(), scaling.fill.tolist()
    widths = " and ".join(map(str, source.widths))
    head = f"  {source.name}: {source.bands} band{'s' if source.bands > 1 else ''}, scale {source.scale}"
    if bundle.networks:
        head += f", widths {widths}"
    head += "" if scaling.reference is None else ", each scene matched to the training distribution"
    if source.bands > BANDS:
        return [f"{head}; {format_limits(low, high)} (--json lists each band)"]
    rows = enumerate(zip(low, high, fill, scaling.constant.tolist(), strict=True), start=1)
    return [
        head,
        *(
            f"    band {number:>2}: {a:.6g} to {b:.6g}, fill {c:.6g}{', constant: set to 0' if constant else ''}"
            for number, (a, b, c, constant) in rows
        ),
    ]


def _classes(bundle: Bundle) -> list[str]:
    width = max(len("class"), *(len(c.name) for c in bundle.classes))
    known = bundle.priors
    natural, trained = (known.natural, known.trained) if known else ((None,) * len(bundle.classes),) * 2
    lines = [f"  {'id':>3}  {'class':<{width}}  {'colour':<7}  {'natural':>8}  {'trained':>8}"]
    lines += [
        f"  {c.id:>3}  {c.name:<{width}}  {c.color:<7}  {_share(n):>8}  {_share(t):>8}"
        for c, n, t in zip(bundle.classes, natural, trained, strict=True)
    ]
    if known is None:
        lines.append(
            "  class proportions in training are not known, so predictions cannot be corrected to other class priors"
        )
    calibration = (
        [f"temperature {bundle.single.temperature:.4g}"]
        if bundle.single is not None
        else [*members(bundle), temperatures(bundle)]
    )
    return ["classes and their proportions", *lines, *calibration]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.4f}"


def _origin(bundle: Bundle) -> list[str]:
    provenance = bundle.provenance
    lines = [f"  {key} {provenance[key]}" for key in ("run", "fingerprint") if isinstance(provenance.get(key), str)]
    authors = provenance.get("authors")
    if isinstance(authors, dict):
        lines.append("  imported from a reference checkpoint (written by the authors' released code); training data unknown")
        lines += [f"  {key} {authors[key]}" for key in ("checkpoint", "sha256", "form") if key in authors]
    lines += [f"  {phrase}" for phrase in trained_on(bundle)]
    chosen = provenance.get("chosen")
    known = chosen if isinstance(chosen, dict) else {}
    length = next((f"{key} {known[key]}" for key in ("epoch", "rounds") if known.get(key) is not None), None)
    listed = ", ".join(f"{name} {value:.3f}" for name, value in figures(bundle))
    if length is not None or listed:
        lines.append(f"  {length or 'epoch -'}; on validation pixels {listed or 'no metrics'}")
    versions = provenance.get("versions")
    if isinstance(versions, dict):
        lines.append("  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return ["provenance", *(lines or ["  not recorded"])]
