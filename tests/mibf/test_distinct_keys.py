"""Keys of names: accepted by STAC, distinct whatever the names, and those of single names as they always were."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.distinct_keys import as_key, distinct_keys

#: Names that often give the same key, and those that look like keys with numbers.
WORDS = st.sampled_from(["forest", "Forest", "forest_1", "forest_1_1", "forest 2", "forest!", "nodata", "class_3", "沼泽"])


@given(st.lists(WORDS | st.text(min_size=1, max_size=8), unique=True, max_size=12), st.integers(0, 5))
def test_keys_are_accepted_and_distinct(names: list[str], first: int) -> None:
    keys = distinct_keys(names, range(first, first + len(names)), kind="class", reserved=("nodata",))
    assert len({key.lower() for key in keys} | {"nodata"}) == len(names) + 1
    assert all(re.fullmatch("[0-9A-Za-z_-]+", key) for key in keys)


def test_key_of_a_name_without_a_like_is_the_name() -> None:
    assert distinct_keys(["Water", "Moor (nass)"], [4, 9], kind="class") == ["Water", "Moor_nass"]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["Forest (wet)", "forest wet", "Water"], ["Forest_wet_2", "forest_wet_3", "Water"]),
        (["Wälder", "Wölder", "Wälder_2"], ["W_lder_2_2", "W_lder_3", "W_lder_2"]),
        (["森林", "沼泽", "class 2"], ["class_2_2", "class_3", "class_2_4"]),
        (["s.1", "s_1", "s-1"], ["s_1_2", "s_1_3", "s-1"]),
        (["No data", "nodata"], ["No_data", "nodata_3"]),
    ],
)
def test_keys_of_names_that_are_alike(names: list[str], keys: list[str]) -> None:
    assert distinct_keys(names, [2, 3, 4][: len(names)], kind="class", reserved=("nodata",)) == keys


def test_name_without_accepted_characters_has_no_key() -> None:
    assert as_key("湿地!") == ""
