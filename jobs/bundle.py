"""bundle show: what a model bundle holds, wherever it lies, once it is seen to be whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mibf.bundle import CARD, MODEL, WEIGHTS, Bundle
from mibf.card import figures, limits_of, trained_on
from mibf.discreet import told as fit
from mibf.spec import SourceSpec
from pipeline import bundles, storage

#: Bands whose limits are told one by one; of more, the range.
BANDS = 12


@dataclass(frozen=True)
class Shown:
    """A bundle that was read and checked, with its files' sizes; the card may be missing."""

    url: str
    bundle: Bundle
    model: dict[str, Any]
    sizes: dict[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """What model.json holds, and the place and sizes of the files."""
        return self.model | {"url": self.url, "files": self.sizes, "parameters": self.bundle.parameters}


def show(url: str) -> Shown:
    """Read and check the bundle at a URL: its folder's, or that of a file in it.

    Raises:
        InputError: there is none, it cannot be reached, or it is damaged.
    """
    files = bundles.read_files(url)
    bundle = bundles.bundle_of(files, url)
    folder = bundles.folder_of(url)
    sizes: dict[str, int | None] = {name: len(files[name]) for name in (WEIGHTS, MODEL)}
    sizes[CARD] = _size(bundles.file_of(folder, CARD))
    return Shown(storage.shown(storage.absolute(folder)), bundle, json.loads(files[MODEL]), sizes)


def lines(shown: Shown) -> list[str]:
    """What a bundle holds, for a person."""
    bundle = shown.bundle
    total = sum(size or 0 for size in shown.sizes.values())
    told = [
        shown.url,
        f"format {shown.model['format']}, {bundle.parameters:,} parameters, {total / 1e6:.2f} MB "
        f"({', '.join(_file(name, size) for name, size in shown.sizes.items())})",
        *_checked(shown),
        "",
        f"sources, seen through patches of {bundle.spec.patch} x {bundle.spec.patch} reference pixels",
    ]
    for source in bundle.spec.sources:
        told += _source(source, bundle)
    return [fit(line) for line in (*told, "", *_classes(bundle), "", *_origin(bundle))]


def _size(url: str) -> int | None:
    """A file's size; None where it cannot be read, for no reader needs it."""
    try:
        return len(storage.read_bytes(url))
    except Exception:  # file systems have errors of their own kinds
        return None


def _file(name: str, size: int | None) -> str:
    return f"no {name}" if size is None else f"{name} {size:,} bytes"


def _checked(shown: Shown) -> list[str]:
    digest = shown.model["weights"]["sha256"] if "weights" in shown.model else None
    return [
        f"checked: SHA-256 of the weights is that of {MODEL} ({digest[:12]}...)"
        if digest
        else f"not checked: a bundle of format {shown.model['format']} has no SHA-256 of its weights",
        f"checked: {len(shown.bundle.weights)} tensors have the names, shapes and types of the network; scaling, classes "
        "and priors fit it",
    ]


def _source(source: SourceSpec, bundle: Bundle) -> list[str]:
    scaling = bundle.scaling[source.name]
    low, high, fill = scaling.low.tolist(), scaling.high.tolist(), scaling.fill.tolist()
    widths = " and ".join(map(str, source.widths))
    head = f"  {source.name}: {source.bands} band{'s' if source.bands > 1 else ''}, scale {source.scale}, widths {widths}"
    if source.bands > BANDS:
        return [f"{head}; {limits_of(low, high)} (--json tells each band's)"]
    rows = enumerate(zip(low, high, fill, scaling.constant.tolist(), strict=True), start=1)
    return [
        head,
        *(
            f"    band {place:>2}: {a:.6g} to {b:.6g}, fill {c:.6g}{', constant: taken as 0' if constant else ''}"
            for place, (a, b, c, constant) in rows
        ),
    ]


def _classes(bundle: Bundle) -> list[str]:
    width = max(len("class"), *(len(c.name) for c in bundle.classes))
    known = bundle.priors
    natural, trained = (known.natural, known.trained) if known else ((None,) * len(bundle.classes),) * 2
    told = [f"  {'id':>3}  {'class':<{width}}  {'colour':<7}  {'natural':>8}  {'trained':>8}"]
    told += [
        f"  {c.id:>3}  {c.name:<{width}}  {c.color:<7}  {_share(n):>8}  {_share(t):>8}"
        for c, n, t in zip(bundle.classes, natural, trained, strict=True)
    ]
    if known is None:
        told.append("  shares of the classes in training are not known: predictions cannot be brought to other ones")
    return ["classes and their shares", *told, f"temperature {bundle.temperature:.4g}"]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.4f}"


def _origin(bundle: Bundle) -> list[str]:
    provenance = bundle.provenance
    told = [f"  {key} {provenance[key]}" for key in ("run", "fingerprint") if isinstance(provenance.get(key), str)]
    authors = provenance.get("authors")
    if isinstance(authors, dict):
        told.append("  read from a checkpoint of the authors; what it was trained on is unknown")
        told += [f"  {key} {authors[key]}" for key in ("checkpoint", "sha256", "form") if key in authors]
    told += [f"  {phrase}" for phrase in trained_on(bundle)]
    chosen = provenance.get("chosen")
    epoch = chosen.get("epoch") if isinstance(chosen, dict) else None
    listed = ", ".join(f"{name} {value:.3f}" for name, value in figures(bundle))
    if epoch is not None or listed:
        told.append(f"  epoch {'-' if epoch is None else epoch}; on validation pixels {listed or 'no figures'}")
    versions = provenance.get("versions")
    if isinstance(versions, dict):
        told.append("  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return ["provenance", *(told or ["  none is recorded"])]
