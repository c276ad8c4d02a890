"""Integer codes and literals that stores, splits and maps share. Minimal dependencies in this module."""

from __future__ import annotations

from typing import Literal

#: The id of an unlabelled pixel, in stores and maps.
UNLABELLED = 255
#: How pixels without data in this source are handled: excluded, or filled with the training median.
Missing = Literal["exclude", "fill"]
Subset = Literal["train", "validation", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "validation", "test")
#: The code of each subset in stores and split rasters; 0 is unused.
CODES: dict[Subset, int] = {name: position + 1 for position, name in enumerate(SUBSETS)}
#: Old names of products, in maps and configurations of earlier versions, and their new ones.
RENAMED_PRODUCTS = {"second": "second_class", "information": "mutual_information", "rate": "kl"}
