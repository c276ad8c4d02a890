"""Configuration of sources from STAC items: assets, masks and composites."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from jobs.config.base import Section
from pipeline.scenes.acquisition_time import days
from pipeline.stac.periods import CALENDAR, Gaps, intervals

#: What pydantic inserts into the location of an error below a key whose value has keys of its own instead of being a name.
IN_BRACES = "{}"


def kind_of_value(value: Any) -> str:
    """Return which of two kinds a value is: a name, or keys in braces."""
    return "name" if isinstance(value, str) else IN_BRACES


def check_mask_rule(valid: tuple[int, ...], invalid: tuple[int, ...], bits: tuple[int, ...]) -> None:
    """Check that a mask says what it accepts, in one way.

    Raises:
        ValueError: it does not.
    """
    if not (valid or invalid or bits):
        raise ValueError("give `valid` values, `invalid` values or `bits` that must not be set")
    if valid and invalid:
        raise ValueError("give either `valid` or `invalid` values")


class PercentileSection(Section):
    """A percentile of the dates of each pixel."""

    percentile: float = Field(ge=0, le=100)


def _composite(value: Any) -> Any:
    if isinstance(value, dict) or value in get_args(CompositeName):
        return value
    raise ValueError(f"`composite` is {', '.join(get_args(CompositeName))} or {{percentile: 20}}")


#: Composites that need no number.
CompositeName = Literal["first", "median", "mean", "min", "max", "medoid"]
CompositeKey = Annotated[
    Annotated[CompositeName, Tag("name")] | Annotated[PercentileSection, Tag(IN_BRACES)],
    Discriminator(kind_of_value),
    BeforeValidator(_composite),
]


def _periods(value: Any) -> Any:
    if isinstance(value, str) and value in CALENDAR:
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str | date) for text in value):
        raise ValueError(f"`periods` is {', '.join(CALENDAR)} or a list of intervals, such as [2024-03-01/2024-05-31]")
    return tuple(period.name for period in intervals([str(text) for text in value]))


PeriodsKey = Annotated[Literal["month", "season", "year"] | tuple[str, ...], BeforeValidator(_periods)]


class StacMaskSection(Section):
    """An asset that says where an item may be used: valid or invalid values, a limit, or bits that must not be set."""

    asset: str
    valid: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: tuple[Annotated[int, Field(ge=0, le=31)], ...] = ()
    above: float | None = None
    dilate: int = Field(default=0, ge=0, le=100)

    @model_validator(mode="after")
    def _says_something(self) -> StacMaskSection:
        if self.above is None or self.valid or self.invalid:
            check_mask_rule(self.valid, self.invalid, self.bits)
        return self


def _check_dates(value: str) -> str:
    days(value)
    return value


def check_filter(value: Any) -> Any:
    """Check that a value has the form of CQL2, and return it.

    Raises:
        ValueError: it has not.
    """
    json_of_cql2 = isinstance(value, dict) and isinstance(value.get("op"), str) and isinstance(value.get("args"), list)
    if value is None or json_of_cql2 or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(
        "`filter` is CQL2: text such as eo:cloud_cover < 40, or JSON such as "
        '{op: "<", args: [{property: "eo:cloud_cover"}, 40]}'
    )


class SearchSection(Section):
    """A search for the items of the scene's area in a STAC API, a static catalogue or a file of items.

    `prepare` searches once and keeps what it finds in the workspace; `filter` is CQL2, as text or JSON, for an API.
    """

    url: str = Field(min_length=1)
    collections: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    dates: Annotated[
        str,
        BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),  # YAML parses dates itself
        AfterValidator(_check_dates),
    ]
    filter: Annotated[str | dict[str, Any] | None, BeforeValidator(check_filter)] = None
    max_items: int = Field(default=1000, ge=1)


class StacSection(Section):
    """STAC items, and the assets that hold the bands, in order: keys, or names of bands.

    The items are those of a file, or what a search finds. They are mosaicked; with `composite`, those of one day are, and
    the days are combined, of each of `periods` alone. Of several days, an item with a missing or damaged file is left out,
    unless `on_error` is `refuse`.
    """

    url: str | None = Field(default=None, min_length=1)
    search: SearchSection | None = None
    assets: tuple[str, ...] = Field(min_length=1)
    alternate: str | None = None
    mask: StacMaskSection | None = None
    composite: CompositeKey | None = None
    on_error: Literal["skip", "refuse"] = "skip"
    periods: PeriodsKey | None = None
    gaps: Gaps = "exclude"

    @model_validator(mode="after")
    def _has_items(self) -> StacSection:
        if (self.url is None) == (self.search is None):
            raise ValueError(
                "give either `url`, an item or a file of items, or `search`, which finds them in the scene's area"
            )
        return self

    @property
    def items(self) -> str:
        """URL of the items; those of a search have one once `found_items` has put them in its place."""
        assert self.url is not None, "a search is replaced by what it found before its items are read"
        return self.url

    @model_validator(mode="after")
    def _combined(self) -> StacSection:
        if self.periods is not None and self.composite is None:
            raise ValueError("`periods` needs `composite`, which combines the dates of each; give, for example, median")
        if self.gaps != "exclude" and self.periods is None:
            raise ValueError("`gaps` is about periods without an observation; give `periods`, or leave it out")
        return self
