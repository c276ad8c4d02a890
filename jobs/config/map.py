"""Configuration of predictions and maps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.base import Section, Seed
from mibf.metrics.prediction_sets import PERCENT, SetChoice

#: An address that everybody can open: it is published. A query, or a user's name, could be a credential.
WebAddress = Annotated[str, Field(pattern=r"^https?://[^\s?@]+$")]


class SetsSection(Section):
    """Prediction sets: the share of pixels whose set is to hold their class, and whether it is that of each class."""

    coverage: float = 0.9
    class_conditional: bool = False

    @field_validator("coverage")
    @classmethod
    def _whole_percent(cls, value: float) -> float:
        if abs(100 * value - round(100 * value)) > 1e-6 or round(100 * value) not in PERCENT:
            raise ValueError("must be a share from 0.5 to 0.99 in steps of 0.01, such as 0.9")
        return round(value, 2)


class PredictionSection(Section):
    """Class priors of evaluation and map: as sampled in training, as in the training pixels, or uniform; prediction sets."""

    priors: Literal["trained", "natural", "uniform"] = "trained"
    sets: SetsSection = SetsSection()

    @property
    def set_choice(self) -> SetChoice:
        """Which prediction sets are wanted."""
        return SetChoice(self.sets.coverage, self.sets.class_conditional)


class ProviderSection(Section):
    """An organization that made, licensed, processed or hosts a map, as STAC names it."""

    name: str = Field(min_length=1)
    roles: tuple[Literal["licensor", "producer", "processor", "host"], ...] = ()
    url: WebAddress | None = None
    description: str | None = None


class MapSection(Section):
    """The map: tiles, products and storage. `mc_samples` and `seed` apply to the samples of `mutual_information`.

    `model` is the URL of an external bundle; default: the run's own. A failing tile is tried `attempts` times; the first
    retry waits `backoff` seconds, and the wait doubles each time. With `workers` 0 everything runs in this process.
    `readers` read tiles for the workers; without them workers read their own tiles.
    A scene with a band farther than `drift_distance` from the training data, in units of the training range, causes a
    warning or is refused (see `pipeline.maps.drift`). With `page` a page that shows the map is published with it.
    `license` (an SPDX identifier, or `other` with the text at `license_url`) and `providers` are for the STAC catalog.
    """

    model: str | None = None
    tile_size: int = 512
    products: tuple[
        Literal[
            "class",
            "second_class",
            "confidence",
            "probabilities",
            "entropy",
            "mutual_information",
            "kl",
            "gate",
            "sources",
            "set_size",
            "prediction_set",
        ],
        ...,
    ] = Field(default=("class", "confidence"), min_length=1)
    dtype: Literal["uint16", "uint8", "float32"] = "uint16"
    missing: Literal["declared", "nodata", "map"] = "declared"
    block: int = 32768
    mc_samples: int = Field(default=16, ge=2, le=1000)
    seed: Seed = 0
    workers: int = Field(default=1, ge=0)
    readers: int = Field(default=0, ge=0)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    attempts: int = Field(default=3, ge=1)
    backoff: float = Field(default=1.0, ge=0)
    drift: Literal["warn", "refuse", "ignore"] = "warn"
    drift_distance: float = Field(default=0.3, gt=0)
    page: bool = True
    license: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.+-]+$")
    license_url: WebAddress | None = None
    providers: tuple[ProviderSection, ...] = ()

    @field_validator("products")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: the same product is listed twice")
        return value

    @model_validator(mode="after")
    def _readers_need_workers(self) -> MapSection:
        if self.readers and not self.workers:
            raise ValueError(
                f"`readers` is {self.readers} but `workers` is 0; readers need workers to read for: set `workers`"
            )
        return self

    @field_validator("tile_size")
    @classmethod
    def _whole_cells(cls, value: int) -> int:
        if value < 64 or value % 64:
            raise ValueError("the tile side must be a multiple of 64 pixels (the cell side)")
        return value

    @field_validator("block")
    @classmethod
    def _whole_squares(cls, value: int) -> int:
        if value < 512 or value % 512:
            raise ValueError("the block side must be a multiple of 512 pixels (the internal tile side of the output files)")
        return value
