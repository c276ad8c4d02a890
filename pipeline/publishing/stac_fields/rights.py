"""Licence and providers of maps, as STAC items and collections state them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pystac

#: STAC's word for a licence that SPDX does not list, or for several.
OTHER = "other"


@dataclass(frozen=True)
class Rights:
    """Licence (SPDX identifier or `OTHER`; None if it is not known), URL of its text, and providers as STAC has them."""

    license: str | None = None
    license_url: str | None = None
    providers: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Rights:
        """Those that an item states."""
        properties = item.get("properties", {})
        links = [link["href"] for link in item.get("links", []) if link.get("rel") == "license"]
        return cls(properties.get("license"), links[0] if links else None, tuple(properties.get("providers", ())))

    @property
    def properties(self) -> dict[str, Any]:
        """Properties of an item."""
        found: dict[str, Any] = {} if self.license is None else {"license": self.license}
        return found | ({"providers": [dict(provider) for provider in self.providers]} if self.providers else {})

    @property
    def links(self) -> list[pystac.Link]:
        """The link to the licence's text, if there is one."""
        return [] if self.license_url is None else [pystac.Link(pystac.RelType.LICENSE, self.license_url, title="Licence")]


#: Those of a map of which they are not known.
UNKNOWN = Rights()


def joint_license(rights: Iterable[Rights]) -> str:
    """The licence of a collection: that of all of its items, or `OTHER` if they differ or one is not known.

    >>> joint_license([Rights("CC-BY-4.0"), Rights("CC-BY-4.0")]), joint_license([Rights("CC-BY-4.0"), Rights()])
    ('CC-BY-4.0', 'other')
    """
    found = {each.license for each in rights}
    return next(iter(found)) or OTHER if len(found) == 1 else OTHER


def joint_providers(rights: Iterable[Rights]) -> list[dict[str, Any]]:
    """The providers of all items, each once."""
    found: list[dict[str, Any]] = []
    for each in rights:
        found += [dict(provider) for provider in each.providers if dict(provider) not in found]
    return found
