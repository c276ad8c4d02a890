"""Configuration of the split into training, validation and test pixels."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.base import Section
from pipeline.codes import Subset


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


class ScenesSplitSection(Section):
    """A split by scene: entire scenes for testing, and the other labelled scenes for training and validation.

    `validation` names scenes that are entirely for validation, or is the share of the other scenes' blocks that is; those
    are assigned and kept apart as by `BlocksSection`. The remaining labelled scenes are entirely for training.
    """

    method: Literal["scenes"]
    test: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] | Annotated[float, Field(gt=0, lt=1)] = 0.2
    block: int = Field(default=96, ge=1, le=1_000_000)
    buffer: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("validation", mode="before")
    @classmethod
    def _names_or_share(cls, value: Any) -> Any:
        if isinstance(value, str):  # a variable of the environment
            with suppress(ValueError):
                value = float(value)
        names = isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)
        share = isinstance(value, float) and 0 < value < 1
        if not (names or share):
            raise ValueError(
                "must be a list of scenes, or the share of the other scenes' blocks, above 0 and below 1, such as 0.2"
            )
        return value

    @model_validator(mode="after")
    def _disjoint(self) -> ScenesSplitSection:
        twice = sorted(name for name, count in Counter(self.test + self.validation_scenes).items() if count > 1)
        if twice:
            raise ValueError(f"scene {', '.join(twice)} is listed twice; a scene belongs to one subset")
        unused = sorted({"block", "seed"} & self.model_fields_set)
        if self.validation_scenes and unused:
            raise ValueError(
                f"`{'` and `'.join(unused)}` would have no effect, because `validation` lists entire scenes; remove "
                f"{'it' if len(unused) == 1 else 'them'}"
            )
        return self

    @property
    def validation_scenes(self) -> tuple[str, ...]:
        """The scenes that are entirely for validation; none if blocks of the other scenes are."""
        return self.validation if isinstance(self.validation, tuple) else ()

    def subset(self, scene: str) -> Subset | None:
        """The subset of all samples of a labelled scene; None if its blocks are for training and validation."""
        if scene in self.test:
            return "test"
        if scene in self.validation_scenes:
            return "validation"
        return "train" if self.validation_scenes else None


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
