"""Licence and providers of a collection, from those of its items."""

from __future__ import annotations

import pytest

from pipeline.publishing.stac_fields.rights import Rights, joint_license, joint_providers

OFFICE, LAB = {"name": "Office", "roles": ["licensor"]}, {"name": "Lab"}


@pytest.mark.parametrize(
    ("licences", "joint"),
    [
        (["MIT", "MIT"], "MIT"),
        (["MIT", "CC0-1.0"], "other"),
        (["MIT", None], "other"),
        ([None], "other"),
        (["other"], "other"),
    ],
)
def test_licence_is_that_of_all_items_or_other(licences: list[str | None], joint: str) -> None:
    assert joint_license([Rights(licence) for licence in licences]) == joint


def test_providers_are_listed_once_in_their_order() -> None:
    assert joint_providers([Rights(providers=(OFFICE, LAB)), Rights(), Rights(providers=(LAB,))]) == [OFFICE, LAB]
