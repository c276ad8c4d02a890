"""Keys that formats with few characters accept, made from names in any script. Distinct names get distinct keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence


def as_key(name: str) -> str:
    """Reduce a name to ASCII letters, digits, `_` and `-`, the characters that STAC's extensions accept; may be empty.

    >>> as_key("Forest (wet)"), as_key("沼泽")
    ('Forest_wet', '')
    """
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_")


def distinct_keys(names: Sequence[str], numbers: Sequence[int], *, kind: str, reserved: Collection[str] = ()) -> list[str]:
    """Return a key for each name, in their order; no two are equal, even if upper and lower case are the same to a reader.

    A name whose characters are not accepted becomes `kind` and its number. Where several names give the same key, or a
    reserved one, all of them get their number at the end.

    Args:
        names: any text.
        numbers: of each name a number of its own, which stays the same when others are added, such as an id.
        kind: what is named, such as `class`.
        reserved: keys in lower case that are not to be used.

    >>> distinct_keys(["Water", "Forest (wet)", "forest wet", "沼泽"], [1, 2, 3, 4], kind="class")
    ['Water', 'Forest_wet_2', 'forest_wet_3', 'class_4']
    """
    bases = [as_key(name) or f"{kind}_{number}" for name, number in zip(names, numbers, strict=True)]
    alike = Counter(base.lower() for base in bases)
    found = [base if alike[base.lower()] == 1 and base.lower() not in reserved else "" for base in bases]
    taken = {key.lower() for key in found} | set(reserved)
    for position, key in enumerate(bases):
        if found[position]:
            continue
        while key.lower() in taken or key == bases[position]:
            key = f"{key}_{numbers[position]}"
        found[position] = key
        taken.add(key.lower())
    return found
