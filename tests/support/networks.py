"""Small network specifications and random inputs for tests."""

from __future__ import annotations

from itertools import combinations

import torch

from mibf.network.spec import NARROW, PARTS, WIDE, NetworkPart, NetworkSpec, SourceSpec


def spec_of(
    bands: tuple[int, ...] = (4, 2),
    *,
    classes: int = 3,
    patch: int = 7,
    scales: tuple[int, ...] = (1, 1, 1, 1),
    without: tuple[NetworkPart, ...] = (),
    centre: bool = False,
) -> NetworkSpec:
    """Return a specification with one source for each number of bands, named s0, s1 and so on."""
    sources = [
        SourceSpec(f"s{i}", b, NARROW if i else WIDE, scales[i] if i < len(scales) else 1) for i, b in enumerate(bands)
    ]
    return NetworkSpec(tuple(sources), classes=classes, patch=patch, without=without, centre=centre)


def patches_of(spec: NetworkSpec, count: int) -> list[torch.Tensor]:
    """Return a batch of random patches for each source, shape (count, bands, patch * scale, patch * scale)."""
    return [torch.rand(count, s.bands, spec.patch * s.scale, spec.patch * s.scale) for s in spec.sources]


#: All ways to omit parts of a network with two or three sources, and those valid for a single source.
ABLATED = [
    spec_of(bands, patch=5, without=without)
    for bands in [(4, 2), (3, 1, 2)]
    for count in range(len(PARTS) + 1)
    for without in combinations(PARTS, count)
] + [spec_of((3,), patch=5, without=without) for without in (("noise", "relation"), PARTS)]
