"""Configuration of the split into training, validation and test pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.base import Section


class FractionsSection(Section):
    """Fractions of the labelled blocks per subset."""

    train: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> FractionsSection:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions sum to {total:g}; they must sum to 1")
        return self


class BlocksSection(Section):
    """A split into spatial blocks with a buffer between subsets."""

    method: Literal["blocks"] = "blocks"
    block: int = Field(default=96, ge=1, le=1_000_000)
    buffer: int | None = Field(default=None, ge=0)
    fractions: FractionsSection = FractionsSection()
    seed: int = Field(default=0, ge=0)


class RasterSplitSection(Section):
    """A split read from a raster: 1 train, 2 validation, 3 test, 0 unused."""

    method: Literal["raster"]
    url: str


class RandomSplitSection(Section):
    """A random split by pixel, only for comparison with papers: training and test patches overlap.

    `train` and `validation` are fractions of each class's labelled pixels if below 1, else pixel counts per class. Without
    validation pixels, as in many papers, the last epoch becomes the model.
    """

    method: Literal["random"]
    train: float = Field(default=0.1, gt=0)
    validation: float = Field(default=0.1, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("train", "validation")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("must be a fraction of each class's pixels below 1, or an integer number of pixels")
        return value
