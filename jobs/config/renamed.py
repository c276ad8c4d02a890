"""Renamed configuration keys, products and recipes: refused with the new name, translated in saved configurations."""

from __future__ import annotations

from typing import Any

from pipeline.codes import RENAMED_PRODUCTS

#: Old dotted keys and their new names.
RENAMED_KEYS = {
    "train.rate": "train.learning_rate",
    "train.batch": "train.batch_size",
    "train.clip": "train.clip_grad_norm",
    "train.accumulate": "train.accumulate_steps",
    "train.average": "train.ema",
    "train.failures": "train.max_failures",
    "train.patience": "train.early_stopping_patience",
    "train.optimiser": "train.optimizer",
    "sampling.rate": "sampling.epoch_fraction",
    "prepare.scheduler": "prepare.engine",
    "map.tile": "map.tile_size",
    "map.draws": "map.mc_samples",
}
#: Old names of `train.recipe` and their new names.
RENAMED_RECIPES = {"default": "standard"}


def translate(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with renamed keys, products and recipes in place of the old ones."""
    found = dict(values)
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.partition(".")
        below = found.get(section)
        if isinstance(below, dict) and key in below:
            name = new.partition(".")[2]
            found[section] = {name if k == key else k: v for k, v in below.items()}
    products = found["map"].get("products") if isinstance(found.get("map"), dict) else None
    if isinstance(products, list):
        found["map"] = found["map"] | {"products": [RENAMED_PRODUCTS.get(name, name) for name in products]}
    train = found.get("train")
    if isinstance(train, dict) and train.get("recipe") in RENAMED_RECIPES:
        found["train"] = train | {"recipe": RENAMED_RECIPES[train["recipe"]]}
    return found
