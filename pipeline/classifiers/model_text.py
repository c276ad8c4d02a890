"""Read the text of a LightGBM model.

Everything is checked, because LightGBM itself ends the process when it meets a malformed tree, and follows children that are
out of range. Format: `GBDT::LoadModelFromString` and `Tree::Tree` of https://github.com/microsoft/LightGBM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

END = "end of trees\n"
#: Fields of a tree with one value per split and per leaf, and those of them that may be missing.
SPLIT_FIELDS = (
    "split_feature", "threshold", "decision_type", "left_child", "right_child", "split_gain", "internal_value",
    "internal_weight", "internal_count",
)  # fmt: skip  # a list of names
LEAF_FIELDS = ("leaf_value", "leaf_weight", "leaf_count")
OPTIONAL = {"split_gain", "internal_value", "internal_weight", "internal_count", "leaf_weight", "leaf_count"}
INTEGERS = {"split_feature", "decision_type", "left_child", "right_child", "internal_count", "leaf_count"}
TREE_FIELDS = {"Tree", "num_leaves", "num_cat", "is_linear", "shrinkage", *SPLIT_FIELDS, *LEAF_FIELDS}
#: Splits without categories: whether missing values go left (bit 1), and whether they are NaN (bit 3) or count as 0.
DECISIONS = (0, 2, 8, 10)
LEFT, NAN = 2, 8
#: Most leaves of a tree, so that a byte holds the number of a leaf.
MOST_LEAVES = 256


class ModelTextError(ValueError):
    """A text is not a LightGBM model that can be used here."""


class Split(NamedTuple):
    """A split of a tree: a feature above the threshold goes right, any other left."""

    feature: int
    threshold: np.float32
    missing_left: bool
    left: int  #: a later split, or -1 - the number of a leaf
    right: int


@dataclass(frozen=True)
class Tree:
    """A tree, whose first split is the root; without splits, it has one leaf."""

    splits: tuple[Split, ...]
    leaves: NDArray[np.float64]  #: the score of each leaf


@dataclass(frozen=True)
class Model:
    """Boosted trees. In each round, a multiclass model has a tree per class, a binary one has one tree."""

    classes: int
    features: int
    rounds: int
    sigmoid: float | None  #: factor of the scores of a binary model; None for a multiclass one
    trees: tuple[Tree, ...]


def read_model(text: str) -> Model:
    """Read a model.

    Raises:
        ModelTextError: the text is not a model, is damaged, or is a model of another kind than boosted trees for classes.
    """
    if not text.startswith("tree\n") or not text.isascii():
        raise ModelTextError("is not a LightGBM model in text format")
    head, _, _ = text.partition("\n\n")
    fields = _fields(head)
    if "average_output" in fields:
        raise ModelTextError("is a random forest of LightGBM, not boosted trees")
    numbers = {
        name: _integer(fields, name) for name in ("num_class", "num_tree_per_iteration", "max_feature_idx", "label_index")
    }
    per_round, features = numbers["num_tree_per_iteration"], numbers["max_feature_idx"] + 1
    classes, sigmoid = _objective(fields.get("objective", ""), numbers["num_class"])
    if per_round != (classes if sigmoid is None else 1):
        raise ModelTextError(f"is damaged: {per_round} trees a round for {classes} classes")
    if any(len(fields.get(name, "").split()) != features for name in ("feature_names", "feature_infos")):
        raise ModelTextError(f"is damaged: not {features} names and ranges of features")
    trees = tuple(_tree(tree, i, features) for i, tree in enumerate(_trees(text, len(head) + 2, fields)))
    if not trees or len(trees) % per_round:
        raise ModelTextError(f"is damaged: {len(trees)} trees, {per_round} a round")
    return Model(classes, features, len(trees) // per_round, sigmoid, trees)


def _fields(text: str) -> dict[str, str]:
    """Split lines of names and values."""
    lines = text.split("\n")
    fields = dict(line.partition("=")[::2] for line in lines)
    if len(fields) < len(lines) or any("=" in value for value in fields.values()):  # LightGBM might use another value
        raise ModelTextError("is damaged: a field occurs twice")
    return fields


def _integer(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name, "")
    if not re.fullmatch(r"\d{1,9}", value):
        raise ModelTextError(f"is damaged: {name} is {value!r}")
    return int(value)


def _objective(objective: str, classes: int) -> tuple[int, float | None]:
    """Number of classes, and the factor of the scores of a binary model."""
    if classes >= 2 and objective == f"multiclass num_class:{classes}":
        return classes, None
    binary = re.fullmatch(r"binary sigmoid:(\d+(?:\.\d+)?)", objective)
    if classes == 1 and binary and float(binary[1]) > 0:
        return 2, float(binary[1])
    raise ModelTextError(f"has the objective {objective!r}; mibf reads the objectives multiclass (softmax) and binary")


def _trees(text: str, start: int, fields: Mapping[str, str]) -> Iterator[str]:
    """Yield the text of every tree; LightGBM finds them by their sizes."""
    sizes = fields.get("tree_sizes", "").split()
    if not all(re.fullmatch(r"\d{1,9}", size) for size in sizes):
        raise ModelTextError("is damaged: no sizes of trees")
    for size in map(int, sizes):
        yield text[start : start + size]
        start += size
    if not text.startswith(END, start):
        raise ModelTextError("is damaged or incomplete: the trees do not end where they should")


def _tree(text: str, number: int, features: int) -> Tree:
    """Read a tree."""
    if not text.startswith(f"Tree={number}\n"):
        raise ModelTextError(f"is damaged or incomplete: tree {number} is not where it should be")
    fields = _fields(text.rstrip("\n"))
    leaves = _integer(fields, "num_leaves")
    if (fields.get("num_cat"), fields.get("is_linear", "0")) != ("0", "0"):
        raise ModelTextError("has categorical features or linear leaves, which mibf does not read")
    if not fields.keys() <= TREE_FIELDS:  # LightGBM stops reading at some of them
        raise ModelTextError(f"is damaged: tree {number} has an unknown field")
    if leaves < 1 or not np.isfinite(_values(fields, "shrinkage", 1)).all():
        raise ModelTextError(f"is damaged: tree {number}")
    found = {name: _values(fields, name, leaves) for name in LEAF_FIELDS}
    if leaves > 1:
        found |= {name: _values(fields, name, leaves - 1) for name in SPLIT_FIELDS}
    if not all(np.isfinite(values).all() for name, values in found.items() if name != "threshold"):
        raise ModelTextError(f"is damaged: tree {number} holds a value that is not a number")
    if leaves > MOST_LEAVES:
        raise ModelTextError(f"has trees of more than {MOST_LEAVES} leaves")
    if leaves > 1 and not _valid_splits(found, leaves, features):
        raise ModelTextError(f"is damaged: a split of tree {number} has a feature, kind or child that does not exist")
    return Tree(_splits(found) if leaves > 1 else (), found["leaf_value"])


def _splits(tree: Mapping[str, NDArray[np.float64]]) -> tuple[Split, ...]:
    # A float32 is above a threshold exactly if it is above the largest float32 that is not.
    exact = tree["threshold"]
    thresholds = exact.astype(np.float32)
    thresholds = np.where(thresholds > exact, np.nextafter(thresholds, np.float32(-np.inf)), thresholds)
    kinds = tree["decision_type"].astype(int)
    missing_left = np.where(kinds & NAN, kinds & LEFT > 0, exact >= 0)
    integers = (tree[name].astype(int).tolist() for name in ("split_feature", "left_child", "right_child"))
    features, left, right = integers
    return tuple(map(Split, features, thresholds, missing_left.tolist(), left, right))


def _values(fields: Mapping[str, str], name: str, count: int) -> NDArray[np.float64]:
    """The values of a field; none where an optional field is missing or, in a tree of one leaf, empty."""
    text = fields.get(name)
    if name in OPTIONAL and (text is None or (not text and count == 1)):
        return np.empty(0)
    words = (text or "").split(" ")
    number = r"-?\d+" if name in INTEGERS else r"[-+.\deE]+"
    if name == "threshold":  # infinite where only missing values go the other way
        number += r"|inf"
    try:
        if len(words) == count and all(re.fullmatch(number, word) for word in words):
            return np.array(words, np.float64)
    except ValueError:
        pass
    raise ModelTextError(f"is damaged: {name} does not hold {count} numbers")


def _valid_splits(tree: Mapping[str, NDArray[np.float64]], leaves: int, features: int) -> bool:
    """Whether every split has a feature and children that exist. A split's children come after it, so every path ends."""
    own = np.arange(leaves - 1)
    children = np.stack([tree["left_child"], tree["right_child"]])
    feature = tree["split_feature"]
    return bool(
        np.where(children >= 0, (children > own) & (children < leaves - 1), children >= -leaves).all()
        and ((feature >= 0) & (feature < features)).all()
        and np.isin(tree["decision_type"], DECISIONS).all()
    )
